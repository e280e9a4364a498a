"""Ctrl-C and SIGTERM: they end a run, but not in the middle of a commit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which batch systems send before they kill, end a run as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handled_by(interrupt, signal.SIGTERM):
        yield


@contextmanager
def interrupts_held_back(*, for_good: bool = False) -> Iterator[None]:
    """Finish a block before Ctrl-C or SIGTERM takes effect; with ``for_good``, ignore them."""
    came: list[int] = []
    with _handled_by(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    if came and not for_good:
        raise KeyboardInterrupt


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle some signals in a block.

    Does nothing outside the main thread, which alone receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
