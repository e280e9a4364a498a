"""Collects the garbage of stores, or removes a video, and is killed at the N-th step of it.

Each line of its input is JSON: a store's location, N, and the video if one is to be removed. A fork
does it, so that the modules are loaded once for many kills; the exit code of the fork is printed.
A fork ends by itself, with 0, if there are fewer steps.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks should have one thread

import icechunk

import kpstore
import kpstore.backends.hdf5
import kpstore.backends.icechunk

_CALLS = ("expire_snapshots", "garbage_collect", "create_branch", "delete_branch", "reset_branch")
_CHANGES = {"os.rename", "os.remove", "os.link", "os.truncate", "os.utime"}


def change(location: str, number: int, video: str = "") -> None:
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _CHANGES or writes:
            step()

    def between(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            step()
            found = call(*given, **named)
            step()
            return found

        return wrapper

    store = kpstore.open(location, mode="a")
    for name in _CALLS:
        setattr(icechunk.Repository, name, between(getattr(icechunk.Repository, name)))
    sys.addaudithook(watch)
    if video:
        store.remove_everywhere(videos=[video], apply=True)
    else:
        store.collect_garbage(older_than=timedelta(0), apply=True)
    left = 0
    # Without Python's teardown, in which a thread of Icechunk's once aborted on a busy machine.
    os._exit(0)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            change(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


main()
