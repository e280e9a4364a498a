"""Collects the garbage of a store, or removes a video, and is killed at the N-th step of it.

It ends by itself if there are fewer steps.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import icechunk

import kpstore

_CALLS = ("expire_snapshots", "garbage_collect", "create_branch", "delete_branch", "reset_branch")
_CHANGES = {"os.rename", "os.remove", "os.link", "os.truncate", "os.utime"}


def main(location: str, number: int, video: str = "") -> None:
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
    print("done", flush=True)
    # Without Python's teardown, in which a thread of Icechunk's once aborted on a busy machine.
    os._exit(0)


main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
