"""Where arrays and their versions live: a contract, and one module per storage system."""
