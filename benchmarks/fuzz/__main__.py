"""Fuzz every reader of files that others wrote: ``make fuzz``, or ``python -m benchmarks.fuzz``.

Each target runs in a process of its own under Atheris (libFuzzer), from the sound files that
kpstore writes itself and from what was found before, until its CPU time is over, or nothing new was
reached for a while; some read a number of inputs first. An input that crashes, hangs, takes too
much memory, or ends in anything else than one clear line ends the run and is kept in the folder;
add it to ``tests/corpus/TARGET/`` when it is mended, where the suite reads it again.

    python -m benchmarks.fuzz pickle pose --minutes 20
    python -m benchmarks.fuzz --folder fuzz-found
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fuzz.rules import CPU_S
from benchmarks.fuzz.targets import TARGETS

_MOST_INPUT = 2**20
"""Bytes of the largest input; the memory bound follows from it."""
_LIBRARIES_BYTES = 4 * 2**30
"""Memory of the interpreter, the libraries and the corpus, and of what Atheris keeps of inputs.

That was up to a quarter of a mebibyte for each. What an input itself takes is bounded in
:mod:`benchmarks.fuzz.rules`.
"""
CORPUS = Path(__file__).parents[2] / "tests" / "corpus"


@dataclass
class Run:
    """How far the fuzzing of a target is, by what its process says.

    Attributes
    ----------
    inputs : that were read.
    cpu_s : CPU time of the process, seconds.
    newest_s : of it, when an input last reached something new.
    ended : why the run ended.
    """

    inputs: int = 0
    cpu_s: float = 0.0
    newest_s: float = 0.0
    ended: str = ""

    def hear(self, line: str) -> None:
        """Take a line of libFuzzer's, or one of :mod:`benchmarks.fuzz.one`."""
        if not (counted := re.match(r"#(\d+)\t(read in ([\d.]+)|NEW)?", line)):
            return
        if counted[3]:
            self.inputs, self.cpu_s = int(counted[1]), float(counted[3])
        elif counted[2]:
            self.newest_s = self.cpu_s

    def is_enough(self, least: int, minutes: float, stale_minutes: float) -> bool:
        """Return whether the run is to end, and note why."""
        if self.inputs < least:
            return False
        if self.cpu_s >= 60 * minutes:
            self.ended = "time"
        elif self.cpu_s - self.newest_s >= 60 * stale_minutes:
            self.ended = "nothing new"
        return bool(self.ended)


def fuzz(
    name: str, folder: Path, minutes: float, stale_minutes: float, inputs: int
) -> tuple[Run, list[Path]]:
    """Fuzz one target; return how it went, and the inputs that should not have passed.

    Parameters
    ----------
    folder : for the corpus, which grows from run to run, and for what is found.
    minutes : CPU time at most, unless fewer than the least number of inputs were read.
    stale_minutes : CPU time without new coverage, after which the target is left.
    inputs : the fewest to read; a target may ask for more.
    """
    corpus, found = folder / name / "corpus", folder / name / "found"
    for place in (corpus, found):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    before = set(found.iterdir())
    least = max(inputs, TARGETS[name].inputs)
    log, run = folder / name / "log", Run()
    with (
        log.open("w", encoding="utf-8", buffering=1) as kept,
        # libFuzzer ends its process without tidying up.
        tempfile.TemporaryDirectory(prefix="kpstore-fuzz-") as temporary,
        subprocess.Popen(
            _command(name, corpus, found),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": temporary, "OMP_NUM_THREADS": "1"},
        ) as child,
    ):
        assert child.stderr is not None
        for line in child.stderr:
            kept.write(line)
            run.hear(line)
            if not run.ended and run.is_enough(least, minutes, stale_minutes):
                child.terminate()
    new = sorted(set(found.iterdir()) - before)
    if new:
        run.ended = "found"
    if not run.ended:
        sys.exit(f"{name} was not fuzzed: it ended with {child.returncode}; see {log}")
    return run, new


def _command(name: str, corpus: Path, found: Path) -> Iterable[str]:
    memory = 10 * _MOST_INPUT + TARGETS[name].memory + _LIBRARIES_BYTES
    return [
        *(sys.executable, "-m", "benchmarks.fuzz.one", name, str(corpus)),
        *([str(CORPUS / name)] if (CORPUS / name).is_dir() else []),
        f"-artifact_prefix={found}/",
        # By the clock, for what never returns; one.py looks at the CPU time of what does.
        f"-timeout={30 * CPU_S}",
        f"-report_slow_units={30 * CPU_S}",
        f"-max_len={_MOST_INPUT}",
        f"-rss_limit_mb={memory // 2**20}",
    ]


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all by default")
    parser.add_argument("--minutes", type=float, default=20, help="CPU minutes for each target")
    parser.add_argument("--stale", type=float, default=5, help="CPU minutes without new coverage")
    parser.add_argument("--inputs", type=int, default=0, help="inputs to read at least")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kpstore-fuzz")
    given = parser.parse_args()
    print("| target | inputs | CPU minutes | ended by | findings | kept in |")
    print("|---|---|---|---|---|---|", flush=True)
    any_found = False
    for name in given.targets or TARGETS:
        run, found = fuzz(name, given.folder, given.minutes, given.stale, given.inputs)
        any_found |= bool(found)
        place = found[0].parent if found else "–"
        row = (name, f"{run.inputs:,}", f"{run.cpu_s / 60:.1f}", run.ended, len(found), place)
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    sys.exit(int(any_found))


if __name__ == "__main__":
    main()
