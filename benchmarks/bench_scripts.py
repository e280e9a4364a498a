"""What people's scripts call, beside the plain way: ``python -m benchmarks.bench_scripts``.

- ``DataLoader(store.frames(…), 256, shuffle=True)`` beside ``DataLoader(TensorDataset)`` of the
  same rows in memory, and its batches beside ``numpy.take`` of such rows into new memory.
- ``tx.write`` of video after video (768 wide, as DINOv2 features) beside one assignment to a bare
  Zarr array on Icechunk, both with their commit, and beside one assignment to a Zarr array of
  TensorStore, if that is installed.

Keypoints move (:mod:`benchmarks.motion`) and other values are random, so that nothing repeats. All
are measured in turn in one process; figures are medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import icechunk
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

import kpstore
from benchmarks.motion import Motion
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec

BATCH, WIDE = 256, 768
VIDEO_FRAMES = (20, 210)
"""Fewest and most frames of a video: 115 on average, as in PHOENIX-2014-T."""


def _videos(n_frames: int, rng: np.random.Generator) -> list[VideoRecord]:
    found: list[VideoRecord] = []
    while n_frames > 0:
        length = min(n_frames, int(rng.integers(*VIDEO_FRAMES)))
        paths = tuple(f"v{len(found)}/{k}.png" for k in range(length))
        found.append(VideoRecord(f"v{len(found)}", "train", paths))
        n_frames -= length
    return found


def _create(path: Path, videos: list[VideoRecord], spec: FeatureSpec) -> kpstore.Store:
    store = kpstore.create(path)
    with store.transaction("videos") as tx:
        tx.add_videos(videos)
        tx.add_feature(spec, {"extractor": "noise"})
    return store


def _write(store: kpstore.Store, feature: str, values: NDArray[np.float32]) -> None:
    index = store.at().index
    with store.transaction("rows") as tx:
        for video_id, rows in zip(
            index.ids.tolist(), map(index.rows, range(len(index))), strict=True
        ):
            tx.write(feature, video_id, values[rows])


def _write_zarr(path: Path, values: NDArray[np.float32]) -> None:
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    session = repository.writable_session("main")
    group = zarr.create_group(session.store)
    array = group.create_array(
        "rows", shape=values.shape, dtype="f4", chunks=(512, values.shape[1]), compressors=None
    )
    array[:] = values
    session.commit("rows")


def _write_tensorstore(path: Path, values: NDArray[np.float32]) -> None:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    chunks = {"chunk_shape": [512, values.shape[1]]}
    metadata = {"chunk_grid": {"name": "regular", "configuration": chunks}}
    array = tensorstore.open(
        {**spec, "metadata": metadata},
        create=True,
        dtype=tensorstore.float32,
        shape=list(values.shape),
    ).result()
    array.write(values).result()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _epoch(dataset: Dataset[object], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in DataLoader(dataset, BATCH, shuffle=True, generator=generator):
        pass


def reading(folder: Path, n_frames: int, runs: int, rng: np.random.Generator) -> None:
    """Print the speed of epochs and of batches."""
    values = Motion().rows(n_frames).values
    store = _create(folder / "keypoints.kps", _videos(n_frames, rng), keypoints_spec())
    _write(store, "keypoints", values)
    view = store.at().frames("keypoints")
    tensors = TensorDataset(torch.from_numpy(values), torch.arange(n_frames))
    ours, others, takes = [], [], []
    for seed in range(runs + 1):
        ours.append(_seconds(lambda: _epoch(view, seed)))  # noqa: B023
        others.append(_seconds(lambda: _epoch(tensors, seed)))  # noqa: B023
        parts = np.array_split(rng.permutation(n_frames), -(-n_frames // BATCH))
        takes.append(_seconds(lambda: [np.take(values, part, axis=0) for part in parts]))  # noqa: B023
    _row("DataLoader(store.frames(…)), shuffled", "DataLoader(TensorDataset)", others, ours)
    _row("the same, a batch", "numpy.take into new memory", takes, ours)


def writing(folder: Path, n_videos: int, runs: int, rng: np.random.Generator) -> None:
    """Print the time of writing videos."""
    spec = FeatureSpec("dinov2", (WIDE,), ("channel",), dtype="float32")
    videos = _videos(n_videos * sum(VIDEO_FRAMES) // 2, rng)
    values = rng.random((sum(video.n_frames for video in videos), WIDE), dtype=np.float32)
    peers = {"one assignment to a bare Zarr array on Icechunk": _write_zarr}
    if importlib.util.find_spec("tensorstore"):
        peers["one assignment to an array of TensorStore"] = _write_tensorstore
    ours: list[float] = []
    others: dict[str, list[float]] = {peer: [] for peer in peers}
    for run in range(runs + 1):
        store = _create(folder / f"w{run}.kps", videos, spec)
        ours.append(_seconds(lambda: _write(store, "dinov2", values)))  # noqa: B023
        for number, (peer, write) in enumerate(peers.items()):
            path = folder / f"{number}-{run}"
            others[peer].append(_seconds(lambda: write(path, values)))  # noqa: B023
        for made in folder.iterdir():
            shutil.rmtree(made)
    each = 1e3 * statistics.median(ours[1:]) / len(videos)
    for peer, seconds in others.items():
        what = f"tx.write in a loop over {len(videos)} videos ({each:.2f} ms each)"
        _row(what, peer, seconds, ours)


def _row(what: str, beside: str, others: list[float], ours: list[float]) -> None:
    """Print a row: how many times as fast we are; the first run warms up."""
    ratio = statistics.median(other / own for other, own in zip(others[1:], ours[1:], strict=True))
    print(f"| {what} | {beside} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Parse, run, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print("| call | beside | times as fast |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        reading(Path(name), given.frames, given.runs, rng)
        writing(Path(name), given.videos, given.runs, rng)


if __name__ == "__main__":
    main()
