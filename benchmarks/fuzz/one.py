"""One target under Atheris, in a process that libFuzzer takes over; see ``benchmarks.fuzz``."""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["kpstore", "pose_format", "yaml", "ijson", "zipfile"]):
    from benchmarks.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target named first; the other arguments are libFuzzer's."""
    logging.disable()
    target = TARGETS[sys.argv.pop(1)]

    def check(data: bytes) -> None:
        target.check(data)

    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
