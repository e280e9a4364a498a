"""How a command ends: Ctrl-C with 130 and without a traceback, whenever it comes."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.processes import finish

AT_IMPORT = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == NAME:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
AT_EXIT = """
import atexit, os, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
"""
IN_COMMAND = """
import os, signal, sys
import kpstore
from kpstore import _version
class Interrupting(str):
    def __format__(self, spec):
        os.kill(os.getpid(), signal.SIGINT)
        return "1"
_version.__version__ = Interrupting("1")
"""
WHERE_PYTHON_DROPS_IT = """
import os, signal, sys
import kpstore
from kpstore import _version
class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
class Freeing(str):
    def __format__(self, spec):
        Freed()
        signal.pause()
        return "1"
_version.__version__ = Freeing("1")
"""
IGNORED = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)" + AT_EXIT


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (AT_IMPORT.replace("NAME", "'typer'"), 130),
        (AT_IMPORT.replace("NAME", "'kpstore.cli.versions'"), 130),
        (AT_EXIT, 130),
        (IN_COMMAND, 130),
        (WHERE_PYTHON_DROPS_IT, 130),
        (IGNORED, 0),
        ("import sys", 0),
    ],
)
def test_an_interrupt_at_any_moment_ends_with_130_and_no_traceback(before: str, code: int) -> None:
    program = (
        # A job in the background of a shell begins with interrupts ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"{before}\nsys.argv = ['kpstore', '--version']\n"
        "from kpstore.cli.start import main\nmain()\n"
    )
    done = finish([sys.executable, "-c", program])
    assert done.returncode == code
    assert done.stderr == ""
    assert "Traceback" not in done.stdout


# An object that ends the process when Python takes it apart, as a library's thread once did
ABORTS_AT_TEARDOWN = """
import os, sys
class Aborts:
    def __del__(self, abort=os.abort):
        abort()
sys.kept = Aborts()
"""
DUE_AT_THE_END = """
import atexit, sys, tempfile, threading
folder = tempfile.TemporaryDirectory()
atexit.register(print, "registered before")
def end_late():
    threading.main_thread().join()
    print("a thread", file=sys.stderr)
threading.Thread(target=end_late).start()
"""


def test_a_command_ends_without_taking_python_apart_but_does_what_is_due(tmp_path: Path) -> None:
    program = (
        f"{ABORTS_AT_TEARDOWN}{DUE_AT_THE_END}\nsys.argv = ['kpstore', '--version']\n"
        "from kpstore.cli.start import main\nmain()\n"
    )
    command = [sys.executable, "-c", program]
    done = finish(command, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == ["registered before"]
    assert done.stderr == "a thread\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "code"), [("--help", 1), ("info NOTHING", 2)])
def test_a_reader_that_goes_is_no_error_of_its_own(words: str, code: int) -> None:
    command = shlex.join([sys.executable, "-m", "kpstore.cli.start", *words.split()])
    # The pipe has no reader at all when the command begins to write.
    script = f"exec > >(exit); wait $!; {command}"
    done = finish(["bash", "-c", script])
    assert done.returncode == code
    assert not [word for word in ("Traceback", "Exception", "pipe") if word in done.stderr]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("info nothing", 2)])
def test_streams_that_are_closed_end_no_command(closed: str, words: str, code: int) -> None:
    program = f"{shlex.quote(sys.executable)} -m kpstore.cli.start {words} {closed}"
    done = finish(["sh", "-c", program])
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
