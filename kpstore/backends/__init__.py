"""Where arrays and their versions live: a contract, and one module per storage system."""

import sys

from kpstore.errors import UnsupportedError

try:
    import fcntl  # noqa: F401
except ImportError:
    raise UnsupportedError(
        f"kpstore runs on Linux and macOS, and on Windows in WSL, but not on {sys.platform!r}: "
        "Python has no module 'fcntl' here, with which kpstore locks stores"
    ) from None
