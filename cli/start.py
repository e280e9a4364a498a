"""Where the command ``kpstore`` begins and ends: Ctrl-C ends it with 130 and without a traceback.

Importing the commands takes a while, and so may leaving Python. In both, an interrupt would be an
error of whichever line was running.

The process ends without taking the interpreter apart, as threads of libraries may still run then:
one of Icechunk's once aborted the process after all was done.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading

from . import INTERRUPTED

_SOON_S = 0.01


def main() -> None:
    """Run the command line of this process and end it."""
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not under nohup
    code = INTERRUPTED
    try:
        if heeds:
            signal.signal(signal.SIGINT, _end)
            sys.unraisablehook = interrupt_again
        _open_streams()
        from .main import run_process

        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run_process()
    except SystemExit as asked:  # by Typer, when the reader of a pipe has gone
        code = asked.code if isinstance(asked.code, int) else 1
    except KeyboardInterrupt:
        pass
    finally:
        if heeds:
            signal.signal(signal.SIGINT, _end)
    # Python waits for threads first, and then calls what was registered last.
    atexit.register(_leave, code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Do all else that is due at the end, and end this process."""
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # closed before this process began
                stream.flush()
        except (OSError, ValueError):
            # Its reader has gone, or its disk is full, which is said by then if it can be.
            code = code or 1
    os._exit(code)


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


def interrupt_again(dropped: sys.UnraisableHookArgs) -> None:
    """Interrupt once more where Python has dropped Ctrl-C, as it does while objects are freed."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    # Not from here, where it would be dropped as well.
    again = threading.Timer(_SOON_S, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def _end(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
