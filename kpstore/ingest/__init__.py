"""Sources × extractors → a store: plan, run in parallel, merge, commit.

Killed and resumed without loss.
"""
