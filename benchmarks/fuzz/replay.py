"""Read inputs again: ``python -m benchmarks.fuzz.replay FOLDER``, which holds TARGET/INPUT.

Prints one line of JSON for each input: the clear line that it ended in, if any, what was wrong, its
CPU seconds, and how much more memory the process took meanwhile. Ends with 1 if an input
broke a rule (:mod:`benchmarks.fuzz.rules`).
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path

from benchmarks.fuzz.rules import CPU_S
from benchmarks.fuzz.targets import TARGETS


def main() -> None:
    """Replay the inputs of all targets, in a process that cannot run away."""
    logging.disable()
    inputs = sorted(path for path in Path(sys.argv[1]).glob("*/*") if path.is_file())
    resource.setrlimit(resource.RLIMIT_CPU, (60 + 2 * CPU_S * len(inputs),) * 2)
    any_wrong = False
    for name, target in TARGETS.items():
        paths = [path for path in inputs if path.parent.name == name]
        if paths:
            target.warm()
        for path in paths:
            read = target.check(path.read_bytes())
            any_wrong |= read.error is not None
            wrong = read.error and f"{type(read.error).__name__}: {read.error}"[:500]
            about = {"target": name, "file": path.name, "said": read.said, "wrong": wrong}
            print(json.dumps({**about, "cpu_s": read.cpu_s, "memory": read.memory}), flush=True)
    sys.exit(int(any_wrong))


if __name__ == "__main__":
    main()
