"""The first random rows of a store that lies on the disk only, beside other formats.

``python -m benchmarks.bench_cold [--scale 1.0] [--runs 7] [--folder DIR]``

Keypoints as many as a share of PHOENIX-2014-T's, uncompressed, in chunks of 1,024 rows: a raw
store, with its checksums and without, and the files of the same chunks read whole, by nothing else
than ``numpy.fromfile``, as anything must that compares checksums of chunks; TensorStore (zarr3,
with the CRC-32C of each chunk), h5py, and an npy file that is mapped; TensorStore (without CRC-32C,
in shards) and h5py also with chunks of 64 rows, which read faster. Each run is a process of its
own, all of them in turn, on the same rows. Before it, the pages of its files are put out of the
system's memory (Linux); those of its libraries are not. What the disk, or the host of a virtual
machine, has in its memory stays there.

- *open*: imports are not counted, as a small file has been read before.
- *first 256 rows*, and *next* such batches (the mean of three): at random, from the disk.
- *in memory*: later batches, when every page has been read; the median of a run.

Times are medians, and so are the ratios of a run's times to kpstore's; above 1 kpstore is faster.
Needs ``tensorstore``.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import kpstore
from benchmarks import record
from benchmarks.bench_read import FEATURE, make_store
from benchmarks.cases import answer, forget_pages, in_own_process, phoenix_lengths, seconds
from kpstore.bench.measure import BATCH
from kpstore.bench.peers import PEERS, Peer
from kpstore.bench.subjects import BLOCK_ROWS, Rows, filesystem_of
from kpstore.schema.layout import keypoints_spec

NEXT, LATER, LATER_S = 3, 200, 1.0
"""Numbers of batches; the later ones end after so many seconds."""
FIGURES = ("open", "first 256 rows", "next 256 rows", "in memory")
OURS, STORE = "kpstore", "raw.kps"
LARGE, SMALL, SMALL_SCALE = "large", "small", 0.002
"""Folders of what is measured, and of what is read before it, and the scale of that."""
_MODULE = "benchmarks.bench_cold"


def _write_zarr(values: Rows, path: Path) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec

    chunks = (BLOCK_ROWS, *values.shape[1:])
    zarr.create_array(path, data=values, chunks=chunks, compressors=Crc32cCodec())


def _write_h5py(values: Rows, path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, chunks=(BLOCK_ROWS, *values.shape[1:]))


def _read_files(store: Any, rows: Any, out: Any) -> None:
    """Read the file of each row's chunk whole, in two threads, and copy the rows."""
    chunk_rows, shape = store[FEATURE].chunk_rows, store[FEATURE].shape[1:]
    chunks = rows // chunk_rows

    def fill(chunk: int) -> None:
        file = Path(store.location) / store.session.place(FEATURE, chunk)
        values = np.fromfile(file, np.float32, chunk_rows * int(np.prod(shape)))
        here = np.flatnonzero(chunks == chunk)
        out[here] = values.reshape(-1, *shape)[rows[here] - chunk * chunk_rows]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, np.unique(chunks).tolist()))


_STORE = Peer(
    "kpstore",
    "raw store",
    lambda values, path: None,  # it is ingested
    lambda path: kpstore.open(path.with_name(STORE), cache="off"),
    lambda store, rows, out: store.read(FEATURE, rows, out),
)
FORMATS = {
    OURS: _STORE,
    'kpstore, check="never"': replace(
        _STORE,
        open=lambda path: kpstore.open(path.with_name(STORE), cache="off", check="never"),
    ),
    "its chunk files, read whole": replace(_STORE, gather=_read_files),
    "TensorStore": replace(PEERS["tensorstore"], write=_write_zarr),
    "TensorStore, chunks of 64": PEERS["tensorstore"],
    "h5py": replace(PEERS["h5py"], write=_write_h5py),
    "h5py, chunks of 64": PEERS["h5py"],
    "npy, mapped": PEERS["npy"],
}


# -- in processes of their own: pages that another one has mapped stay in memory -------------------


def _write(folder: Path) -> None:
    """Write the rows of a store in all formats, and compare them."""
    store = kpstore.open(folder / STORE, cache="off")
    values = store.reader.read_slice(FEATURE, 0, len(store[FEATURE]))
    rows = np.random.default_rng(0).integers(len(values), size=BATCH)
    for name, one in FORMATS.items():
        one.write(values, folder / name)
        one.gather(one.open(folder / name), rows, out := np.empty_like(values[rows]))
        np.testing.assert_array_equal(out, values[rows])


def _read(folder: Path, name: str, n_rows: int, seed: int) -> dict[str, float]:
    """Return milliseconds by figure."""
    one, rng = FORMATS[name], np.random.default_rng(seed)
    out = np.zeros((BATCH, *keypoints_spec().shape), dtype=np.float32)
    one.gather(one.open(folder / SMALL / name), np.arange(BATCH), out)
    forget_pages(folder / LARGE)
    opened: list[Any] = []

    def batch() -> float:
        rows = rng.integers(n_rows, size=BATCH)
        return 1e3 * seconds(lambda: one.gather(opened[0], rows, out))

    took = [1e3 * seconds(lambda: opened.append(one.open(folder / LARGE / name)))]
    took += [batch(), statistics.fmean(batch() for _ in range(NEXT))]
    for start in range(0, n_rows, BATCH):  # all pages
        some = np.arange(start, min(start + BATCH, n_rows))
        one.gather(opened[0], some, out[: len(some)])
    later, ends = [batch()], time.perf_counter() + LATER_S
    while len(later) < LATER and time.perf_counter() < ends:
        later.append(batch())
    return dict(zip(FIGURES, (*took, statistics.median(later)), strict=True))


# -- measuring -------------------------------------------------------------------------------------


def run(*, scale: float, runs: int, folder: Path | None = None) -> dict[str, Any]:
    """Write everything and measure; return milliseconds, and ratios to kpstore's."""
    n_rows = sum(map(sum, phoenix_lengths(scale=scale).values()))
    with tempfile.TemporaryDirectory(dir=folder, prefix="kpstore-bench-cold-") as made:
        for size, share in ((LARGE, scale), (SMALL, min(scale, SMALL_SCALE))):
            (Path(made) / size).mkdir()
            make_store(Path(made) / size, "raw", scale=share, lists=())
            in_own_process(_MODULE, "--child", "write", f"{made}/{size}")
        took: dict[str, list[dict[str, float]]] = {name: [] for name in FORMATS}
        for seed in range(runs):
            for name, found in took.items():
                args = (made, name, str(n_rows), str(seed))
                found.append(in_own_process(_MODULE, "--child", "read", *args).found)
    pairs = {name: list(zip(found, took[OURS], strict=True)) for name, found in took.items()}
    return {
        "rows": n_rows,
        "formats": {
            name: {
                figure: {
                    "ms": statistics.median(one[figure] for one, _ in both),
                    "of_ours": statistics.median(one[figure] / ours[figure] for one, ours in both),
                }
                for figure in FIGURES
            }
            for name, both in pairs.items()
        },
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of times, and one of ratios."""

    def rows(which: str) -> list[tuple[str, ...]]:
        return [
            (name, *(record.short(one[which]) for one in figures.values()))
            for name, figures in found["formats"].items()
        ]

    return {
        "time": [("", *(f"{figure}, ms" for figure in FIGURES)), *rows("ms")],
        "times as long as kpstore": [("", *FIGURES), *rows("of_ours")],
    }


def main() -> None:
    """Parse, run, print tables."""
    if sys.argv[1:2] == ["--child"]:
        what, folder, *more = sys.argv[2:]
        if what == "write":
            _write(Path(folder))
            answer({})
        else:
            answer(_read(Path(folder), more[0], int(more[1]), int(more[2])))
        return
    parser = record.parser(__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 947,756 frames")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; a temporary folder by default"
    )
    args = parser.parse_args()
    if filesystem_of(str(args.folder or tempfile.gettempdir())) == "tmpfs":
        parser.error("the folder is in memory; name one on a disk with --folder")
    found = run(scale=args.scale, runs=args.runs, folder=args.folder)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
