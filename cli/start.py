"""Where the command ``kpstore`` begins and ends: Ctrl-C ends it with 130 and without a traceback.

Importing the commands takes a while, and so may leaving Python. In both, an interrupt would be an
error of whichever line was running.
"""

from __future__ import annotations

import os
import signal
import sys

from . import INTERRUPTED


def main() -> None:
    """Run the command line of this process and end it."""
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    code = INTERRUPTED
    try:
        if heeds:
            signal.signal(signal.SIGINT, _end)
        _open_streams()
        from .main import run_process

        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run_process()
        sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _end)
    sys.exit(code)


def _open_streams() -> None:
    """Open streams that the caller has closed (``>&-``), to nothing.

    Otherwise the next file that is opened, one of a store, gets the number of such a stream, and
    what libraries print would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
