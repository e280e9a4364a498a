"""Fuzz every reader of files that others wrote: ``make fuzz``, or ``python -m benchmarks.fuzz``.

Each target runs in a process of its own under Atheris (libFuzzer), from the sound files that
kpstore writes itself and from what was found before, until its time is over, or nothing new was
reached for a while. An input that crashes, hangs, takes too much memory, or ends in anything else
than one clear line is kept in the folder; add it to ``tests/corpus/TARGET/`` when it is mended,
where the suite reads it again.

    python -m benchmarks.fuzz pickle pose --minutes 20
    python -m benchmarks.fuzz --folder fuzz-found
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fuzz.targets import CPU_S, MEMORY_BYTES, TARGETS

_MOST_INPUT = 2**20
"""Bytes of the largest input; the memory bound follows from it."""
CORPUS = Path(__file__).parents[2] / "tests" / "corpus"


def fuzz(name: str, folder: Path, minutes: float, stale_minutes: float) -> tuple[int, list[Path]]:
    """Fuzz one target; return how many inputs were tried, and those that should not have passed.

    Parameters
    ----------
    folder : for the corpus, which grows from run to run, and for what is found.
    minutes : time at most.
    stale_minutes : without new coverage, after which the target is left.
    """
    corpus, found = folder / name / "corpus", folder / name / "found"
    for place in (corpus, found):
        place.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    command = [
        *(sys.executable, "-m", "benchmarks.fuzz.one", name, str(corpus)),
        *([str(CORPUS / name)] if (CORPUS / name).is_dir() else []),
        f"-artifact_prefix={found}/",
        f"-max_total_time={round(60 * minutes)}",
        f"-timeout={CPU_S}",
        f"-max_len={_MOST_INPUT}",
        # The interpreter and the libraries themselves take some 600 MiB.
        f"-rss_limit_mb={(10 * _MOST_INPUT + MEMORY_BYTES) // 2**20 + 700}",
        "-print_final_stats=1",
    ]
    before = set(found.iterdir())
    tried, newest, is_stale = 0, time.monotonic(), False
    log = folder / name / "log"
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as child,
    ):
        assert child.stderr is not None
        for line in child.stderr:
            kept.write(line)
            if counted := re.match(r"#(\d+)\t", line):
                tried = int(counted[1])
                newest = time.monotonic() if "\tNEW" in line else newest
                if time.monotonic() - newest > 60 * stale_minutes:
                    is_stale = True
                    child.terminate()
    new = sorted(set(found.iterdir()) - before)
    if not new and not is_stale and (child.returncode or not tried):
        sys.exit(f"{name} was not fuzzed: it ended with {child.returncode}; see {log}")
    return tried, new


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="all by default")
    parser.add_argument("--minutes", type=float, default=20, help="minutes for each target")
    parser.add_argument("--stale", type=float, default=5, help="minutes without new coverage")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kpstore-fuzz")
    given = parser.parse_args()
    print("| target | inputs | crashes, hangs, unclear | kept in |\n|---|---|---|---|")
    any_found = False
    for name in given.targets or TARGETS:
        tried, found = fuzz(name, given.folder, given.minutes, given.stale)
        any_found |= bool(found)
        place = found[0].parent if found else "–"
        print(f"| {name} | {tried:,} | {len(found)} | {place} |", flush=True)
    sys.exit(int(any_found))


if __name__ == "__main__":
    main()
