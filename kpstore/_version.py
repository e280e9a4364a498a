"""The version of kpstore, once: setup.cfg reads it, provenance and stores record it."""

__version__ = "0.1.0"
