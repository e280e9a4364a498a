"""One target under Atheris, in a process that libFuzzer takes over; see ``benchmarks.fuzz``.

Every other mutation of JSON is one of its shape (:mod:`benchmarks.fuzz.shapes`).

About once a CPU second it says on stderr how many inputs it has read in how much CPU time.
"""

from __future__ import annotations

import logging
import sys
import time
from random import Random

import atheris

from benchmarks.fuzz.shapes import reshaped

_TOLD = ["kpstore", "pose_format", "yaml", "ijson", "zipfile", "PIL"]
"""Packages in which Atheris sees what an input reaches."""


def main() -> None:
    """Fuzz the target named first; the other arguments are libFuzzer's."""
    logging.disable()
    # Formats, sources and models are imported when they are first used: by the seeds.
    with atheris.instrument_imports(include=_TOLD):
        from benchmarks.fuzz.targets import TARGETS

        target = TARGETS[sys.argv.pop(1)]
        target.warm()
    n_read, told = 0, 0.0

    def check(data: bytes) -> None:
        nonlocal n_read, told
        reading = target.check(data)
        n_read += 1
        if time.process_time() > told + 1:
            told = time.process_time()
            print(f"#{n_read}\tread in {told:.1f} CPU seconds", file=sys.stderr, flush=True)
        if reading.error is not None:
            raise reading.error

    def mutate(data: bytes, most_bytes: int, seed: int) -> bytes:
        changed = reshaped(data, Random(seed)) if seed % 2 else None
        if changed is None or len(changed) > most_bytes:
            return bytes(atheris.Mutate(data, most_bytes))
        return changed

    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
