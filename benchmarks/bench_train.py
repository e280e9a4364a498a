"""Training from a store: time spent waiting for frames, and whether 64 frames are memorised.

``python -m benchmarks.bench_train [--image-size 64] [--steps 600] [--store phoenix.kps] [--device
cpu]``

Without ``--store``, frames of made-up people: a body, hands and a face that move and grow. The full
models are trained, with the defaults of ``kpstore train`` but for the size of the pictures, unless
it is given.

- *loss_down*: the skeleton loss of the first step over the mean of the last epoch; the goal is 20
  or more.
- *point_error*: of face points, as a share of the face's size, mean of the last epoch; the goal is
  0.01 or less.
- *wait_share*: part of the time of all epochs but the first in which no batch was there; the goal
  is 0.02.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import kpstore
from benchmarks import record
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PART_SLICES, keypoints_spec
from kpstore.trainers.report import Epoch, Step
from kpstore.trainers.skeleton import SkeletonConfig
from kpstore.trainers.train import Frames, train_keypoints, train_skeleton

_N_FRAMES = 64


def people(n_frames: int) -> NDArray[np.float32]:
    """One figure whose parts move and grow, and whose points tremble, (frames, 143, 3)."""
    rng = np.random.default_rng(0)
    keypoints = np.empty((n_frames, N_POINTS, 3))
    for part, x, y, size in (
        ("face", 0.5, 0.25, 0.05),
        ("left_hand", 0.7, 0.6, 0.04),
        ("right_hand", 0.3, 0.6, 0.04),
        ("pose", 0.5, 0.5, 0.15),
    ):
        rows = PART_SLICES[part]
        shape = rng.normal(0, size, (rows.stop - rows.start, 3))
        moved = np.array([x, y, 0]) + rng.normal(0, 0.05, (n_frames, 1, 3))
        trembling = rng.normal(0, size / 20, (n_frames, len(shape), 3))
        keypoints[:, rows] = shape * rng.uniform(0.8, 1.2, (n_frames, 1, 1)) + moved + trembling
    return keypoints.astype(np.float32)


def make_store(path: Path) -> kpstore.Store:
    """Make a store with one video of 64 frames; a hand is missing in every tenth."""
    store = kpstore.create(path)
    spec = keypoints_spec()
    with store.transaction("people") as tx:
        paths = tuple(f"p/{number}.png" for number in range(_N_FRAMES))
        tx.add_videos([VideoRecord("p", "train", paths, 25.0, 256, 256, {})])
        tx.add_feature("keypoints")
        rows = spec.empty_rows(_N_FRAMES)
        rows.values[:] = people(_N_FRAMES)
        rows.companions["detected"][:] = True
        rows.values[::10, PART_SLICES["left_hand"]] = np.nan
        rows.companions["detected"][::10, 1] = False
        tx.write("keypoints", "p", rows)
    return store.at()


class _Watch:
    """Keeps the first loss, and every epoch."""

    def __init__(self) -> None:
        self.first_loss: float | None = None
        self.epochs: list[Epoch] = []

    def on_step(self, step: Step) -> None:
        """Keep the first loss."""
        self.first_loss = step.loss if self.first_loss is None else self.first_loss

    def on_epoch(self, epoch: Epoch) -> None:
        """Keep the epoch."""
        self.epochs.append(epoch)

    def timing(self) -> dict[str, float]:
        """Return speed and waiting of all epochs but the first, which warms up."""
        timed = self.epochs[1:] or self.epochs
        seconds = sum(epoch.seconds for epoch in timed)
        waited = sum(epoch.wait_share * epoch.seconds for epoch in timed)
        frames = sum(epoch.frames_per_s * epoch.seconds for epoch in timed)
        return {
            "wait_share": round(waited / seconds, 4),
            "frames_per_s": round(frames / seconds, 1),
        }


def run(
    store: kpstore.Store | None = None,
    *,
    image_size: int = 64,
    steps: int = 600,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train both models on 64 frames for about this many steps."""
    with tempfile.TemporaryDirectory() as folder:
        opened = store or make_store(Path(folder) / "people.kps")
        frames = Frames(limit=_N_FRAMES, dev_split="", missing_parts="allow")
        watches = {"skeleton": _Watch(), "keypoints": _Watch()}
        common: dict[str, Any] = {"device": device, "log_steps": 1}
        for kind, batch_size in (("skeleton", 16), ("keypoints", 32)):
            watch = watches[kind]
            told = {**common, "on_step": watch.on_step, "on_epoch": watch.on_epoch}
            epochs = max(1, steps * batch_size // _N_FRAMES)
            if kind == "skeleton":
                config = SkeletonConfig(image_size=image_size)
                train_skeleton(
                    opened,
                    None,
                    frames=frames,
                    config=config,
                    batch_size=batch_size,
                    epochs=epochs,
                    **told,
                )
            else:
                train_keypoints(
                    opened, None, frames=frames, batch_size=batch_size, epochs=epochs, **told
                )
    last = {kind: watch.epochs[-1] for kind, watch in watches.items()}
    first_loss = watches["skeleton"].first_loss or float("nan")
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "steps": {kind: epoch.step for kind, epoch in last.items()},
        "skeleton": {
            "image_size": image_size,
            "first_loss": round(first_loss, 4),
            "last_loss": round(last["skeleton"].train["loss"], 5),
            "loss_down": round(first_loss / last["skeleton"].train["loss"], 1),
            "ink": round(last["skeleton"].train["ink"], 4),
            **watches["skeleton"].timing(),
        },
        "keypoints": {
            "point_error": round(last["keypoints"].train["point_error"], 5),
            **watches["keypoints"].timing(),
        },
    }


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of both models."""
    skeleton, keypoints = found["skeleton"], found["keypoints"]
    error = f"{keypoints['point_error']:.4f}"
    rows = [
        ("first loss / mean loss of the last epoch", skeleton["loss_down"], ""),
        ("mean point error, share of the face's size", "", error),
        ("samples/s", skeleton["frames_per_s"], keypoints["frames_per_s"]),
        (
            "share of the time spent waiting for batches",
            skeleton["wait_share"],
            keypoints["wait_share"],
        ),
    ]
    return {"training": [("", "skeleton", "keypoints"), *rows]}


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--store", help="with keypoints in a split train; made-up people otherwise")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    store = kpstore.open(args.store) if args.store else None
    found = run(store, image_size=args.image_size, steps=args.steps, device=args.device)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
