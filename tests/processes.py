"""Processes that tests start and wait for: they may take any time, but not do any amount of work.

How long something takes says more about what else the machine does than about the code, so no test
limits time. What must not go on for ever is limited in CPU time, which other work does not use up;
a process that waits for ever is left to the one generous limit of the whole suite (``timeout`` in
setup.cfg).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

CPU_LIMIT_S = 300
"""What one process may use: many times what any of them needs."""

T = TypeVar("T")


def start(command: Sequence[object], **how: Any) -> subprocess.Popen[str]:
    """Start a process in a group of its own, with a limit of CPU time and pipes for its text."""
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "start_new_session": True,
    }
    process = subprocess.Popen([str(word) for word in command], **{**pipes, **how})
    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    return process


def finish(command: Sequence[object], **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code.

    What it started itself does not outlive a test that fails.
    """
    with start(command, **how) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(happened: Callable[[], T], process: subprocess.Popen[Any]) -> T:
    """Wait for something that a process does, and return what ``happened`` found.

    The process must not end before.
    """
    while True:
        ended = process.poll() is not None
        if found := happened():
            return found
        assert not ended, f"it ended with {process.returncode} before that"
        time.sleep(0.01)
