"""Removals that are killed at a step; see ``gc_driver.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

from tests.processes import start


@contextmanager
def killer() -> Iterator[Callable[..., int]]:
    """Yield what calls the driver with a location, a number and perhaps a video.

    It returns the exit code, which is 0 if there are fewer steps.
    """
    driver = [sys.executable, Path(__file__).with_name("gc_driver.py")]
    with start(driver, stdin=PIPE, stderr=None) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(*what: str | int) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        try:
            yield call
        finally:
            process.stdin.close()
