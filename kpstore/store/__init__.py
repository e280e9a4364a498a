"""Videos and features on top of a backend: versions to read, transactions to write."""
