"""Overhead of a full-size PHOENIX ingest over the extraction, and its size on disk.

``python -m benchmarks.bench_ingest_scale [--scale 0.01] [--workers 2] [--lengths LIST.csv …]``
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.cases import (
    PeakMemory,
    SyntheticExtractor,
    SyntheticSource,
    phoenix_lengths,
    summary,
)
from kpstore.backends import icechunk
from kpstore.backends.icechunk_fork import IcechunkFork
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.store.transaction import Transaction

_FIRST_ROW = """
import sys, time, kpstore.api, kpstore.backends.icechunk
began = time.perf_counter()
store = kpstore.api.open(sys.argv[1])
row = store["keypoints"][len(store["keypoints"]) // 2]
print(time.perf_counter() - began)
"""


def run(*, scale: float, workers: int, lists: list[Path], runs: int = 5) -> dict[str, Any]:
    """Ingest once and open several times, each in a process of its own."""
    commits: list[float] = []
    checks: list[float] = []
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        store = Path(folder) / "scale.kps"
        source = SyntheticSource(phoenix_lengths(lists, scale=scale))
        with _timed(Transaction, "commit", commits), _timed(IcechunkFork, "check", checks):
            report = run_ingest(source, store, SyntheticExtractor(), Options(workers=workers))
        files = [path for path in store.rglob("*") if path.is_file()]
        opened = [float(_python(_FIRST_ROW, str(store))) for _ in range(runs)]
        history = len(list(icechunk.IcechunkBackend(str(store)).history(report.snapshot)))
        size = sum(path.stat().st_size for path in files)
    return {
        "videos": report.videos_done,
        "frames": report.frames,
        "workers": workers,
        "wall_s": round(report.seconds, 2),
        "frames_per_s": round(report.frames_per_second),
        "driver_peak_mib": memory.driver >> 20,
        "worker_peak_mib": memory.worker >> 20,
        "objects": len(files),
        "size_mb": round(size / 1e6, 1),
        "versions": history,
        "check_s": round(sum(checks), 3),
        "check_share": round(sum(checks) / report.seconds, 4),
        "commit_s": {key: round(value, 4) for key, value in summary(commits).items()},
        "open_to_first_row_ms": {
            key: round(value * 1e3, 1) for key, value in summary(opened).items() if key != "runs"
        },
    }


@contextmanager
def _timed(kind: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Add how long each call of a method takes."""
    original = getattr(kind, name)

    def timed(self: Any) -> Any:
        began = time.perf_counter()
        result = original(self)
        seconds.append(time.perf_counter() - began)
        return result

    setattr(kind, name, timed)
    try:
        yield
    finally:
        setattr(kind, name, original)


def _python(code: str, *args: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True
    ).stdout


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of all figures."""

    def ms(one: dict[str, float], factor: float) -> str:
        median, low, high = (one[key] * factor for key in ("median", "min", "max"))
        return f"{median:.0f} ms ({low:.0f}–{high:.0f})"

    rows = [
        ("videos, frames", f"{found['videos']:,}, {found['frames']:,}"),
        ("wall time", f"{found['wall_s']} s ({found['frames_per_s']:,} frames/s)"),
        ("driver, peak memory", f"{found['driver_peak_mib']} MiB"),
        ("each worker, peak memory", f"{found['worker_peak_mib']} MiB"),
        ("objects on disk", f"{found['objects']:,} ({found['size_mb'] / 1e3:.2f} GB)"),
        ("checks of chunks by the driver", f"{found['check_s']:.1f} s"),
        ("one commit", ms(found["commit_s"], 1e3)),
        (
            "`kpstore.open` to the first row, after imports, other process",
            ms(found["open_to_first_row_ms"], 1),
        ),
    ]
    return {"ingest": [("", f"{found['workers']} workers"), *rows]}


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 8,257 videos")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--lengths", type=Path, nargs="*", default=[], help="CSV lists with split and num_frames"
    )
    args = parser.parse_args()
    found = run(scale=args.scale, workers=args.workers, lists=args.lengths)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
