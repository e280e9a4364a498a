"""Sources × extractors → a store: plan, run in parallel, merge, commit; killed and resumed without loss."""
