"""Read inputs again: ``python -m benchmarks.fuzz.replay FOLDER``, which holds TARGET/INPUT.

Prints one line of JSON for each input: the clear line that it ended in, if any, what was wrong, its
CPU seconds, and how much more memory the process took meanwhile. Ends with 1 if an input
broke a rule (:mod:`benchmarks.fuzz.targets`).
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.fuzz.targets import CPU_S, MEMORY_BYTES, TARGETS, Target


@dataclass(frozen=True)
class Outcome:
    """What came of one input.

    Parameters
    ----------
    target, file : names of the target and of the input.
    said : the clear line that it ended in; None if it was read.
    wrong : what should not have happened; None if nothing did.
    cpu_s : CPU time, seconds.
    memory : bytes that the process took beyond what it had before.
    """

    target: str
    file: str
    said: str | None
    wrong: str | None
    cpu_s: float
    memory: int


def replay(target: Target, path: Path) -> Outcome:
    """Read one input within the bounds."""
    data = path.read_bytes()
    before, start = forget_peak(), time.process_time()
    said, wrong = None, None
    try:
        said = target.check(data)
    except Exception as error:  # the very thing that is looked for
        wrong = f"{type(error).__name__}: {error}"[:500]
    cpu_s, memory = time.process_time() - start, peak_bytes() - before
    if cpu_s > CPU_S:
        wrong = wrong or f"took {cpu_s:.0f} CPU seconds"
    if memory > 10 * len(data) + MEMORY_BYTES:
        wrong = wrong or f"took {memory >> 20} MiB for {len(data)} bytes"
    return Outcome(target.name, path.name, said, wrong, round(cpu_s, 3), memory)


def forget_peak() -> int:
    """Let the kernel begin anew to measure the most memory; return what is taken now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that was taken since, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Replay the inputs of all targets, in a process that cannot run away."""
    logging.disable()
    inputs = sorted(path for path in Path(sys.argv[1]).glob("*/*") if path.is_file())
    resource.setrlimit(resource.RLIMIT_CPU, (60 + 2 * CPU_S * len(inputs),) * 2)
    any_wrong = False
    for name, target in TARGETS.items():
        paths = [path for path in inputs if path.parent.name == name]
        for seed in target.seeds() if paths else ():
            target.check(seed)  # what a first reading imports and keeps is not of the input
        for outcome in (replay(target, path) for path in paths):
            any_wrong |= outcome.wrong is not None
            print(json.dumps(asdict(outcome)), flush=True)
    sys.exit(int(any_wrong))


if __name__ == "__main__":
    main()
