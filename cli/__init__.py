"""The command line: every command parses, calls the library, and renders what comes back."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
