"""Read speed of full-size PHOENIX stores, compressed and not, compared with other formats.

``python -m benchmarks.bench_read [--scale 0.05] [--against h5py tensorstore …] [--runs 5]
[--lengths LIST.csv …]``

What is measured and how is ``kpstore bench``; here are the stores, a few figures of parts, and the
marks to reach.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np

import kpstore
from benchmarks import record
from benchmarks.cases import SyntheticExtractor, SyntheticSource, phoenix_lengths, summary
from kpstore.bench.comparison import BenchReport, bench
from kpstore.bench.measure import SCAN_ROWS, BenchSettings
from kpstore.bench.peers import installed_peers
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest

FEATURE = "keypoints"
TORCH = "DataLoader(TensorDataset)"
LOADED_WHOLE = ("npz", "pickle")
"""Peers that are arrays in memory once they are open, and then read as such.

Several of them fill the memory.
"""
MAPPED_WHOLE = ("npy",)
"""Formats that the system reads: neither extensible, compressed nor versioned, so no benchmark."""


def make_store(folder: Path, compression: Any, *, scale: float, lists: Sequence[Path]) -> str:
    """Ingest made-up keypoints; return the store's location."""
    path = folder / f"{compression}.kps"
    source = SyntheticSource(phoenix_lengths(lists, scale=scale))
    run_ingest(source, path, SyntheticExtractor(), Options(compression=compression))
    return str(path)


def decoder_gb_per_s(store: kpstore.Store, runs: int) -> list[float]:
    """Return how fast the codec decodes chunks in memory into one buffer, one after the other."""
    values = store[FEATURE][: 64 * SCAN_ROWS]
    pieces = [
        np.ascontiguousarray(values[i : i + SCAN_ROWS]) for i in range(0, len(values), SCAN_ROWS)
    ]
    codec = numcodecs.blosc.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.blosc.SHUFFLE)
    encoded = [codec.encode(piece) for piece in pieces]
    out = np.empty_like(pieces[0])
    found = []
    for _ in range(runs):
        began = time.perf_counter()
        for piece in encoded:
            numcodecs.blosc.decompress(piece, out)
        found.append(sum(piece.nbytes for piece in pieces) / 1e9 / (time.perf_counter() - began))
    return found


def rate(batches: Callable[[], Any], name: str, runs: int, most: int = 20_000) -> list[float]:
    """Return samples per second of loaders."""
    found = []
    for _ in range(runs):
        seen, began = 0, time.perf_counter()
        for batch in batches():
            seen += len(batch[name])
            if seen >= most:
                break
        found.append(seen / (time.perf_counter() - began))
    return found


def marks(
    raw: BenchReport, packed: BenchReport, parts: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Return each mark with what was reached."""

    def ratio(report: BenchReport, subject: str, workload: str, to: str = "memory") -> float:
        figure = report.of(subject, workload)
        found = None if figure is None else report.ratio(figure, to)
        return float("nan") if found is None else found

    def median(report: BenchReport, subject: str, workload: str) -> float:
        figure = report.of(subject, workload)
        return float("nan") if figure is None else figure.median

    cached, plain = "kpstore, cache", "kpstore"
    others = [
        name
        for name in packed.how
        if name not in ("memory", cached, plain, TORCH, *LOADED_WHOLE, *MAPPED_WHOLE)
    ]
    peers = {
        True: [name for name in others if "-l" in name],
        False: [name for name in others if "-l" not in name],
    }

    def over_best(value: float, compressed: bool) -> float:
        """Return how a rate compares with the best peer's that stores values likewise."""
        rates = [median(packed, name, "shuffled epoch") for name in peers[compressed]]
        return value / max(rates) if rates else float("nan")

    streamed = {
        codec: median(report, plain, "shuffled epoch")
        for codec, report in (("raw", raw), ("lz4", packed))
    }
    peak = packed.peak.own if packed.peak else float("nan")
    rows: list[tuple[str, float, float, bool]] = [
        (
            "random frames with the cache, of memory",
            ratio(packed, cached, "random frames"),
            0.8,
            True,
        ),
        (
            "epoch streamed from lz4, of a simple loader",
            ratio(packed, plain, "shuffled epoch"),
            0.65,
            True,
        ),
        (
            "epoch streamed from lz4, of the best peer that compresses",
            over_best(streamed["lz4"], True),
            1.0,
            True,
        ),
        (
            "epoch streamed uncompressed, of a simple loader",
            ratio(raw, plain, "shuffled epoch"),
            0.8,
            True,
        ),
        (
            "epoch streamed uncompressed, of the best peer",
            over_best(streamed["raw"], False),
            1.0,
            True,
        ),
        (
            "epoch with the cache, of a simple loader",
            ratio(packed, cached, "shuffled epoch"),
            0.9,
            True,
        ),
        (
            "epoch with the cache, of DataLoader(TensorDataset)",
            ratio(packed, cached, "shuffled epoch", to=TORCH),
            10,
            True,
        ),
        (
            "one video with the cache, median ms",
            median(packed, cached, "one video, median"),
            0.06,
            False,
        ),
        (
            "one video with the cache, 99 % ms",
            median(packed, cached, "one video, 99 %"),
            0.3,
            False,
        ),
        ("one video from lz4, median ms", median(packed, plain, "one video, median"), 0.35, False),
        ("one video from lz4, 99 % ms", median(packed, plain, "one video, 99 %"), 2.0, False),
        (
            "open to the first row, lz4, ms",
            median(packed, plain, "open to the first row"),
            50,
            False,
        ),
        ("clips with the cache, of memory", ratio(packed, cached, "clips"), 0.5, True),
        (
            "scan of lz4, of the decoder's speed in memory",
            median(packed, plain, "scan") / statistics.median(parts["decoder_gb_per_s"]),
            0.5,
            True,
        ),
        (
            "skeletons of 256 pixels, images/s",
            statistics.median(parts["skeletons_per_s"]),
            5000,
            True,
        ),
        ("peak memory of an epoch from lz4, MiB", peak, 512, False),
    ]
    return [
        {
            "mark": name,
            "reached": round(value, 4),
            "wanted": wanted,
            "holds": (value >= wanted) == more,
        }
        for name, value, wanted, more in rows
    ]


def default_peers() -> list[str]:
    """Return the installed peers but those that fill the memory."""
    return [name for name in installed_peers() if name not in LOADED_WHOLE]


def _lasting(report: BenchReport) -> dict[str, object]:
    """Return a report without the place of a store that is gone."""
    return {name: value for name, value in report.to_json().items() if name != "location"}


def run(
    *,
    scale: float,
    runs: int,
    against: list[str] | None = None,
    seconds: float = 1.0,
    lists: Sequence[Path] = (),
) -> dict[str, Any]:
    """Make both stores, measure, and compare with the marks."""
    against = default_peers() if against is None else against
    settings = BenchSettings(runs=runs, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-read-") as name:
        folder = Path(name)
        locations = {
            codec: make_store(folder, codec, scale=scale, lists=lists) for codec in ("raw", "lz4")
        }
        stores = {codec: kpstore.open(location) for codec, location in locations.items()}
        reports = {
            codec: bench(
                store,
                FEATURE,
                against=against if codec == "lz4" else (),
                cache=str(folder / "cache"),
                settings=settings,
                scratch=folder,
            )
            for codec, store in stores.items()
        }
        parts = {
            "decoder_gb_per_s": decoder_gb_per_s(stores["lz4"], runs),
            "skeletons_per_s": rate(
                lambda: kpstore.loader(stores["raw"].skeletons(), 16), "image", runs
            ),
        }
        sizes = {
            codec: sum(path.stat().st_size for path in Path(at).rglob("*"))
            for codec, at in locations.items()
        }
    return {
        "marks": marks(reports["raw"], reports["lz4"], parts),
        "parts": {part: summary(values) for part, values in parts.items()},
        "size_mb": {codec: round(size / 1e6) for codec, size in sizes.items()},
        "reports": {codec: _lasting(report) for codec, report in reports.items()},
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of the marks, and one of speeds by subject."""
    marks = [
        (
            row["mark"],
            record.short(row["reached"]),
            f"{row['wanted']:g}",
            "yes" if row["holds"] else "no",
        )
        for row in found["marks"]
    ]
    units = {"frames/s": ("1,000 frames/s", 1e-3)}
    by_subject: dict[str, dict[str, float]] = {"memory": {}}
    for codec, report in found["reports"].items():
        for one in report["figures"]:
            subject = f"kpstore, {codec}" if one["subject"] == "kpstore" else one["subject"]
            # The run over the lz4 store has all others; of that over the raw one, only kpstore.
            if codec == "lz4" or subject != one["subject"]:
                unit, factor = units.get(one["unit"], (one["unit"], 1))
                head = f"{one['workload']}, {unit}"
                by_subject.setdefault(subject, {})[head] = factor * one["median"]
    heads = list(by_subject["memory"])
    speeds = [
        (subject, *(record.short(each[head]) if head in each else "" for head in heads))
        for subject, each in by_subject.items()
    ]
    return {
        "marks": [("", "measured", "target", "reached"), *marks],
        "speed": [("", *heads), *speeds],
        "size": [("store", "MB"), *found["size_mb"].items()],
    }


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 8,257 videos")
    parser.add_argument(
        "--against",
        nargs="*",
        default=default_peers(),
        help="peers; all that are installed, but npz and pickle",
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument(
        "--lengths", type=Path, nargs="*", default=[], help="CSV lists with split and num_frames"
    )
    args = parser.parse_args()
    found = run(
        scale=args.scale,
        against=args.against,
        runs=args.runs,
        seconds=args.seconds,
        lists=args.lengths,
    )
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
