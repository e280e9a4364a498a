"""The same training from users' pickle and from a store: losses, time, memory, speed.

``python -m benchmarks.bench_old_training [--frames 20000] [--image-size 256] [--steps 20] [--runs
1] [--store DIR]``

The old way: the whole pickle in memory, each frame flattened with zeros for None, one range over
all points of the data set, for skeletons every picture drawn before the first step; a
``DataLoader`` over single samples. It is rewritten here from a description of those scripts;
pictures are drawn by kpstore's own renderer, in their style. The new way:
``store.face_keypoints(missing="zeros")`` and ``store.skeletons(style="phoenix",
normalize="minmax")``, which give the same numbers, through ``kpstore.loader``. Both get the frames
in the order of that loader. Without ``--store``, frames are of made-up people.

Each figure comes from a process of its own.

- *first batch*: from the open call to the first batch in hand, without imports.
- *samples/s*: an epoch of batches without a model, the time to the first one not counted.
- *memory*: of the process alone while it does that, above one that has imported the same; pages of
  mapped files, which are the system's, are not in it.
- *train*: samples/s of ``--steps`` steps with the default model, on one thread, plain mean squared
  errors.
- *apart*: how far the losses of any step are apart, relatively.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

import kpstore
from benchmarks import record
from benchmarks.bench_train import people
from benchmarks.cases import Measured, answer, in_own_process, summary
from kpstore.interop.transfer import export_file
from kpstore.render.raster import draw_skeletons
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PART_SLICES, keypoints_spec
from kpstore.trainers.keypoints import HierarchicalKeypointTransformer, KeypointTraining
from kpstore.trainers.skeleton import (
    HierarchicalSkeletonTransformer,
    SkeletonConfig,
    SkeletonTraining,
)
from kpstore.views.base import View
from kpstore.views.batch_sampler import BatchSampler

BATCHES = {"keypoints": 32, "skeleton": 16}
STORE, PICKLE = "people.kps", "people.pkl"
_VIDEO_FRAMES = 128
Batch = Mapping[str, torch.Tensor]


# -- the old way -----------------------------------------------------------------------------------


class OldFaces(Dataset[dict[str, torch.Tensor]]):
    """Face points of a pickle's split, all in memory."""

    def __init__(self, path: Path) -> None:
        points = np.stack([flattened(frame)[:68] for frame in frames_of(path)])
        self.points = to_unit(points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"keypoints": torch.from_numpy(self.points[index])}


class OldSkeletons(Dataset[dict[str, torch.Tensor]]):
    """Keypoints of a pickle's split and the pictures that they draw, all in memory."""

    def __init__(self, path: Path, size: int) -> None:
        frames = frames_of(path)
        self.images = np.empty((len(frames), size, size), dtype=np.uint8)
        for number, frame in enumerate(frames):
            self.images[number] = draw_skeletons(
                flattened(frame, np.nan)[None], size, style="phoenix"
            )[0]
        self.points = to_unit(np.stack([flattened(frame) for frame in frames]))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index][None].astype(np.float32) / 127.5 - 1
        return {"keypoints": torch.from_numpy(self.points[index]), "image": torch.from_numpy(image)}


def frames_of(path: Path) -> list[dict[str, Any]]:
    """Load a raw pickle and return the frames of its training split."""
    with path.open("rb") as file:
        frames: list[dict[str, Any]] = pickle.load(file)["train"]["keypoints"]
    return frames


def flattened(frame: Mapping[str, Any], fill: float = 0.0) -> NDArray[np.float32]:
    """Return a frame's parts below each other, (143, 3), filled where one was not detected."""
    points = np.full((N_POINTS, 3), fill, dtype=np.float32)
    for part, rows in PART_SLICES.items():
        if frame[part] is not None:
            points[rows] = frame[part]
    return points


def to_unit(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map each coordinate to [0, 1] by its range over all values, missing parts as zeros."""
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    unit: NDArray[np.float32] = (points - low) / np.where(
        high - low < 1e-8, np.float32(1), high - low
    )
    return unit


# -- both ways in turn -----------------------------------------------------------------------------


def view_of(kind: str, folder: Path, image_size: int) -> View:
    """Return the view that equals the old data set."""
    store = kpstore.open(folder / STORE)
    if kind == "keypoints":
        return store.face_keypoints(split="train", missing="zeros")
    return store.skeletons(split="train", size=image_size, style="phoenix", normalize="minmax")


def batches_of(way: str, kind: str, folder: Path, image_size: int) -> Iterator[Batch]:
    """Yield an epoch's batches, in the order that the parent wrote down."""
    if way == "store":
        yield from kpstore.loader(view_of(kind, folder, image_size), batch_size=BATCHES[kind])
        return
    path, order = folder / PICKLE, np.load(folder / f"{kind}.npy")
    dataset = OldFaces(path) if kind == "keypoints" else OldSkeletons(path, image_size)
    parts = np.split(order, range(BATCHES[kind], len(order), BATCHES[kind]))
    yield from DataLoader(dataset, batch_sampler=[part.tolist() for part in parts])


def load(way: str, kind: str, folder: Path, image_size: int) -> dict[str, float]:
    """Read an epoch."""
    began = time.perf_counter()
    batches = batches_of(way, kind, folder, image_size)
    next(batches)
    first, n_samples = time.perf_counter() - began, 0
    for batch in batches:
        n_samples += len(batch["keypoints"])
    return {
        "first_batch_s": first,
        "samples_per_s": n_samples / (time.perf_counter() - began - first),
    }


def train(way: str, kind: str, folder: Path, image_size: int, steps: int) -> dict[str, Any]:
    """Train the default model for some steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module
    if kind == "keypoints":
        model, task = HierarchicalKeypointTransformer(), KeypointTraining()
    else:
        model, task = (
            HierarchicalSkeletonTransformer(SkeletonConfig(image_size=image_size)),
            SkeletonTraining(1.0, 1.0, 1.0),
        )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    losses: list[float] = []
    batches = batches_of(way, kind, folder, image_size)
    batch = next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        loss = task.measure(model, batch).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        batch = next(batches)
    return {
        "losses": losses,
        "train_samples_per_s": steps * BATCHES[kind] / (time.perf_counter() - began),
    }


def run(
    store: Path | None = None,
    *,
    frames: int = 20_000,
    image_size: int = 256,
    steps: int = 20,
    runs: int = 1,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure both kinds of training in both ways."""
    with tempfile.TemporaryDirectory(dir=folder) as made:
        where = Path(made)
        n_frames = _prepare(where, store, frames, image_size)
        steps = min(steps, n_frames // max(BATCHES.values()) - 1)
        kinds = {kind: _compare(kind, where, image_size, steps, runs) for kind in BATCHES}
    return {"frames": n_frames, "image_size": image_size, "steps": steps, **kinds}


def _prepare(folder: Path, given: Path | None, frames: int, image_size: int) -> int:
    """Make the store (or a link to one), the pickle of it, and files with the order of samples.

    Return its frames.
    """
    if given is None:
        _make_store(folder / STORE, frames)
    else:
        (folder / STORE).symlink_to(given.resolve())
    export_file(kpstore.open(folder / STORE), folder / PICKLE, "pickle")
    n_frames = len(frames_of(folder / PICKLE))
    for kind, batch_size in BATCHES.items():
        view = view_of(kind, folder, image_size)
        if len(view) != n_frames:
            raise SystemExit(
                f"the pickle has {n_frames} frames, the view {len(view)}: it left out empty or "
                "failed ones"
            )
        np.save(folder / f"{kind}.npy", np.concatenate(list(BatchSampler(view, batch_size))))
    return n_frames


def _make_store(path: Path, n_frames: int) -> None:
    store, spec = kpstore.create(path), keypoints_spec()
    points = people(n_frames)
    with store.transaction("people") as tx:
        starts = range(0, n_frames, _VIDEO_FRAMES)
        lengths = [min(_VIDEO_FRAMES, n_frames - start) for start in starts]
        tx.add_videos(
            [
                VideoRecord(
                    f"v{i}",
                    "train",
                    tuple(f"v{i}/{n}.png" for n in range(length)),
                    25.0,
                    256,
                    256,
                    {},
                )
                for i, length in enumerate(lengths)
            ]
        )
        tx.add_feature("keypoints")
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            rows = spec.empty_rows(length)
            rows.values[:] = points[start : start + length]
            rows.companions["detected"][:] = True
            for part, every in (("left_hand", 3), ("face", 10)):
                missing = np.arange(start, start + length) % every == 0
                rows.values[missing, PART_SLICES[part]] = np.nan
                rows.companions["detected"][missing, list(PART_SLICES).index(part)] = False
            tx.write("keypoints", f"v{i}", rows)


def _compare(kind: str, folder: Path, image_size: int, steps: int, runs: int) -> dict[str, Any]:
    common = (
        "--kind",
        kind,
        "--folder",
        str(folder),
        "--image-size",
        str(image_size),
        "--steps",
        str(steps),
    )
    found: dict[str, Any] = {}
    idle = in_own_process("benchmarks.bench_old_training", "--child", "nothing").own_mib
    for way in ("old", "store"):
        loads = [_child("load", way, common) for _ in range(runs)]
        trained = _child("train", way, common).found
        found[way] = {
            "first_batch_s": summary([one.found["first_batch_s"] for one in loads]),
            "samples_per_s": summary([one.found["samples_per_s"] for one in loads]),
            "memory_mib": max(one.own_mib for one in loads) - idle,
            **trained,
        }
    losses = np.array([found[way]["losses"] for way in ("old", "store")])
    return {**found, "apart": float((np.abs(losses[0] - losses[1]) / losses[0]).max())}


def _child(what: str, way: str, common: tuple[str, ...]) -> Measured:
    return in_own_process("benchmarks.bench_old_training", "--child", what, "--way", way, *common)


def tables(found: Mapping[str, Any]) -> dict[str, record.Table]:
    """Return a table with a row for each kind and way."""
    rows: list[tuple[object, ...]] = [
        ("", "first batch, s", "samples/s", "memory, MiB", "train, samples/s", "apart")
    ]
    for kind in BATCHES:
        for way in ("old", "store"):
            one = found[kind][way]
            first, speed = one["first_batch_s"]["median"], one["samples_per_s"]["median"]
            apart = f"{found[kind]['apart']:.1e}" if way == "store" else ""
            memory, trained = one["memory_mib"], f"{one['train_samples_per_s']:.1f}"
            rows.append(
                (f"{kind}, {way}", f"{first:.2f}", f"{speed:,.0f}", f"{memory:,}", trained, apart)
            )
    return {"training": rows}


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument(
        "--store", type=Path, help="with keypoints in a split train; made-up people otherwise"
    )
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="where to put the files; a temporary folder by default"
    )
    parser.add_argument("--child", choices=("nothing", "load", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("old", "store"), help=argparse.SUPPRESS)
    parser.add_argument("--kind", choices=tuple(BATCHES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child == "nothing":
        answer({})
    elif args.child == "load":
        answer(load(args.way, args.kind, args.folder, args.image_size))
    elif args.child == "train":
        answer(train(args.way, args.kind, args.folder, args.image_size, args.steps))
    else:
        options = {
            "frames": args.frames,
            "image_size": args.image_size,
            "steps": args.steps,
            "runs": args.runs,
        }
        found = run(args.store, **options, folder=args.folder)
        record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
