"""Videos and features on top of a backend: immutable versions to read, transactions to write."""
