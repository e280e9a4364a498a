"""Speed and size, measured, a question a file.

``python -m benchmarks`` runs all, docs/benchmarks.md has figures.
"""
