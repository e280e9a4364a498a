"""What people's scripts call, beside the plain way.

``python -m benchmarks.bench_scripts [--frames 100000] [--videos 300] [--runs 5]``

- ``DataLoader(store.frames(…), 256, shuffle=True)`` beside ``DataLoader(TensorDataset)`` of the
  same rows in memory, and its batches beside ``numpy.take`` of such rows into new memory.
- The same with two workers, and ``kpstore.loader(…, workers=2)``, whose workers are threads, or
  with a transform processes. Workers of ``DataLoader`` start in each epoch, as they do by default.
- ``tx.write`` of video after video (768 wide, as DINOv2 features) beside one assignment to a bare
  Zarr array on Icechunk, both with their commit, and beside one assignment to a Zarr array of
  TensorStore, if that is installed.

Keypoints move (:mod:`benchmarks.motion`) and other values are random, so that nothing repeats. All
are measured in turn in one process; figures are medians.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, TensorDataset

import kpstore
from benchmarks import record
from benchmarks.cases import VIDEO_FRAMES, made_up_videos, seconds, summary
from benchmarks.motion import Motion
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec

BATCH, WIDE = 256, 768


def make_store(path: Path, videos: list[VideoRecord], spec: FeatureSpec) -> kpstore.Store:
    """Make a store in which no video has rows yet."""
    store = kpstore.create(path)
    with store.transaction("videos") as tx:
        tx.add_videos(videos)
        tx.add_feature(spec, {"extractor": "noise"})
    return store


def write_videos(store: kpstore.Store, feature: str, values: NDArray[np.float32]) -> None:
    """Write the rows of video after video."""
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


class Ready(Dataset[object]):
    """Reads nothing: every batch is made already. What PyTorch's own hand-over takes is left."""

    def __init__(self, values: torch.Tensor) -> None:
        self.n_samples = len(values)
        self.made = {"keypoints": values[:BATCH].clone(), "row": torch.arange(BATCH)}

    def __len__(self) -> int:
        return self.n_samples

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        return self.made


def _itself(batch: object) -> object:
    return batch


class Dicts(Dataset[dict[str, object]]):
    """Rows in memory with a transform, as a user writes such a data set."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, object]:
        return doubled({"keypoints": self.values[index], "row": index})


def doubled(sample: dict[str, object]) -> dict[str, object]:
    """Return a sample with other values: a transform that takes little time itself."""
    return {**sample, "keypoints": sample["keypoints"] * 2}


def _consume(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _shuffled(dataset: Dataset[object], **how: object) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    return lambda: _consume(DataLoader(dataset, BATCH, shuffle=True, generator=generator, **how))


_Row = dict[str, Any]
"""A call, what it is measured beside, and how many times as fast it is."""


def reading(
    folder: Path, n_frames: int, runs: int, rng: np.random.Generator
) -> tuple[list[_Row], dict[str, list[float]]]:
    """Return the speed of epochs and of batches; seconds to first batches, first and later."""
    values = Motion().rows(n_frames).values
    store = make_store(folder / "keypoints.kps", made_up_videos(n_frames, rng), keypoints_spec())
    write_videos(store, "keypoints", values)
    view = store.at().frames("keypoints")
    changed = store.at().frames("keypoints", transform=doubled)
    in_memory = torch.from_numpy(values)
    tensors = TensorDataset(in_memory, torch.arange(n_frames))
    parts = np.array_split(rng.permutation(n_frames), -(-n_frames // BATCH))
    threads, processes = (kpstore.loader(each, BATCH, workers=2) for each in (view, changed))
    begun = {
        what: [_first_batch(loader) for _ in range(2)]
        for what, loader in (("threads", threads), ("processes", processes))
    }
    plain, two = _shuffled(tensors), _shuffled(tensors, num_workers=2)
    took = _shuffled(view)
    rows = []
    for what, ours, beside, other in (
        ("DataLoader(store.frames(…)), shuffled", took, "DataLoader(TensorDataset)", plain),
        (
            "the same, a batch",
            took,
            "numpy.take into new memory",
            lambda: [np.take(values, part, axis=0) for part in parts],
        ),
        (
            "DataLoader(store.frames(…), num_workers=2)",
            _shuffled(view, num_workers=2),
            "DataLoader(TensorDataset, num_workers=2)",
            two,
        ),
        (
            "DataLoader of a batch that is ready, num_workers=2",
            _shuffled(Ready(in_memory), num_workers=2, collate_fn=_itself),
            "the same",
            two,
        ),
        (
            "kpstore.loader(store.frames(…), workers=2)",
            lambda: _consume(threads),
            "DataLoader(TensorDataset, num_workers=2)",
            two,
        ),
        (
            "the same with a transform",
            lambda: _consume(processes),
            "DataLoader of samples in memory with it, num_workers=2",
            _shuffled(Dicts(in_memory), num_workers=2),
        ),
    ):
        pairs = [(seconds(other), seconds(ours)) for _ in range(runs + 1)]
        rows.append(_row(what, beside, *(list(each) for each in zip(*pairs, strict=True))))
    processes.close()
    return rows, begun


def _first_batch(loader: kpstore.Loader) -> float:
    """Return the seconds until an epoch's first batch, and end the epoch."""
    batches = iter(loader)
    took = seconds(lambda: next(batches))
    _consume(batches)
    return took


def writing(folder: Path, n_videos: int, runs: int, rng: np.random.Generator) -> list[_Row]:
    """Return the speed of writing videos."""
    spec = FeatureSpec("dinov2", (WIDE,), ("channel",), dtype="float32")
    videos = made_up_videos(n_videos * sum(VIDEO_FRAMES) // 2, rng)
    values = rng.random((sum(video.n_frames for video in videos), WIDE), dtype=np.float32)
    peers = {"one assignment to a bare Zarr array on Icechunk": _write_zarr}
    if importlib.util.find_spec("tensorstore"):
        peers["one assignment to an array of TensorStore"] = _write_tensorstore
    ours: list[float] = []
    others: dict[str, list[float]] = {peer: [] for peer in peers}
    for run in range(runs + 1):
        store = make_store(folder / f"w{run}.kps", videos, spec)
        ours.append(seconds(lambda: write_videos(store, "dinov2", values)))  # noqa: B023
        for number, (peer, write) in enumerate(peers.items()):
            path = folder / f"{number}-{run}"
            others[peer].append(seconds(lambda: write(path, values)))  # noqa: B023
        for made in folder.iterdir():
            shutil.rmtree(made)
    each = 1e3 * statistics.median(ours[1:]) / len(videos)
    what = f"tx.write in a loop over {len(videos)} videos ({each:.2f} ms each)"
    return [_row(what, peer, took, ours) for peer, took in others.items()]


def _row(what: str, beside: str, others: list[float], ours: list[float]) -> _Row:
    """Return how many times as fast we are; the first run warms up."""
    ratios = [other / own for other, own in zip(others[1:], ours[1:], strict=True)]
    return {"call": what, "beside": beside, "times_as_fast": summary(ratios)}


def run(*, frames: int, videos: int, runs: int) -> dict[str, Any]:
    """Measure reading and writing."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        rows, begun = reading(Path(name), frames, runs, rng)
        rows += writing(Path(name), videos, runs, rng)
    return {"calls": rows, "first_batch_s": begun}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of calls, and one of first batches."""
    calls = []
    for row in found["calls"]:
        ratio = row["times_as_fast"]
        shown = [f"{ratio['median']:.2f}", f"{ratio['min']:.2f}–{ratio['max']:.2f}"]
        calls.append((row["call"], row["beside"], *shown))
    begun = [
        (f"kpstore.loader, 2 workers, {what}", f"{first:.2f}", f"{later:.3f}")
        for what, (first, later) in found["first_batch_s"].items()
    ]
    return {
        "calls": [("call", "compared with", "times as fast", "lowest–highest"), *calls],
        "first batch": [("", "first epoch, s", "later epochs, s"), *begun],
    }


def main() -> None:
    """Parse, run, print tables."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    found = run(frames=args.frames, videos=args.videos, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
