"""Stores to and from other formats, one module each."""
