"""How far MediaPipe's recipes in torch are from MediaPipe, and how fast they are beside it.

``python -m benchmarks.bench_holistic [--recipe parts] [--data FOLDER] [--frames 40] [--match NAME]
[--sheet X.png]``

Clips are the videos and pictures of a folder, or, without one, pictures of the demo in which
nobody shows hands. Each is processed in its own size and, if larger, in at most 210 x 260 with its
aspect kept. MediaPipe is also compared with itself, on the same frames with 0.1 % of their values
changed by one level of 255: what it moves by then is noise of the model, and the measure for
everything else.

``presence`` is the share of frames in which both find a part, or neither does. Distances are in
pixels of the frame. Everything runs on one core, in turn, frame by frame. The sheet shows the
frames in which each part is farthest apart, MediaPipe's points on the left and ours on the right.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks import record
from benchmarks.record import Table, short
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.mediapipe import landmark_array
from kpstore.extractors.mediapipe_extractor import MediapipeExtractor
from kpstore.extractors.mediapipe_torch import FoundRows
from kpstore.extractors.parts import PartsExtractor
from kpstore.extractors.solutions_engine import SolutionsEngine
from kpstore.extractors.torch_engine import TorchEngine
from kpstore.render.skeleton import contact_sheet
from kpstore.sources.demo import write_demo_dataset

Frames = list[NDArray[np.uint8]]
Found = dict[str, NDArray[np.float32] | None]

RECIPES: dict[str, type[MediapipeExtractor]] = {
    "holistic": HolisticExtractor,
    "parts": PartsExtractor,
}
PARTS = ("pose", "face", "left_hand", "right_hand")
SMALL = (210, 260)
VIDEOS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
PICTURES = (".bmp", ".jpeg", ".jpg", ".png")
CHANGED = 1e-3
_HARDEST, _SIDE = 3, 240
"""Frames of a part on a sheet, and their pixels there."""


@dataclass
class _Compared:
    """One part of all frames, by two programs."""

    frames: int = 0
    agree: int = 0
    distances: list[NDArray[np.float64]] = field(default_factory=list)

    def add(
        self, one: NDArray[np.float32] | None, other: NDArray[np.float32] | None, size: Any
    ) -> None:
        self.frames += 1
        self.agree += (one is None) == (other is None)
        if one is not None and other is not None:
            self.distances.append(np.linalg.norm((one - other)[:, :2] * size, axis=1))

    def figures(self) -> dict[str, float]:
        """Return what the table shows, as numbers."""
        if not self.distances:
            return {"presence": self.agree / max(1, self.frames), "both": 0}
        worst = np.array([one.max() for one in self.distances])
        every = np.concatenate(self.distances)
        median, most, nearly = np.quantile(every, [0.5, 0.99, 0.999])
        return {
            "presence": self.agree / self.frames,
            "both": len(worst),
            "median_px": float(median),
            "p99_px": float(most),
            "p999_px": float(nearly),
            "max_px": float(every.max()),
            "frames_over_half_px": int((worst > 0.5).sum()),
            "frames_over_2_px": int((worst > 2).sum()),
        }


class _Mediapipe:
    """MediaPipe's own, and the time it takes."""

    def __init__(self, recipe: str) -> None:
        extractor = RECIPES[recipe](engine="mediapipe")
        extractor.open()
        self._engine = cast("SolutionsEngine", extractor._engine)
        self.seconds = 0.0

    def start(self) -> None:
        self._engine.start_video()

    def frame(self, image: NDArray[np.uint8]) -> Found:
        began = time.perf_counter()
        found = self._engine._find(image)
        self.seconds += time.perf_counter() - began
        parts = {part: getattr(found, part) for part in PARTS}
        return {part: points and landmark_array(points) for part, points in parts.items()}


class _Torch:
    """Ours, one video at a time."""

    def __init__(self, recipe: str) -> None:
        extractor = RECIPES[recipe](engine="torch")
        extractor.open()
        self._engine = cast("TorchEngine", extractor._engine)
        self.seconds = 0.0

    def start(self) -> None:
        self._engine.start_video()

    def frame(self, image: NDArray[np.uint8]) -> Found:
        began = time.perf_counter()
        rows = self._engine._found([image])
        self.seconds += time.perf_counter() - began
        return {part: _points(rows, part) for part in PARTS}


def _points(rows: FoundRows, part: str) -> NDArray[np.float32] | None:
    points: NDArray[np.float32] = getattr(rows, part)[0]
    return None if np.isnan(points).any() else points


def clips_in(folder: Path, *, frames: int, match: str) -> Iterator[tuple[str, Frames]]:
    """Yield the first frames of each video, and each picture."""
    for path in sorted(folder.rglob("*")):
        kind = path.suffix.lower()
        if match not in path.name or kind not in VIDEOS + PICTURES:
            continue
        if kind in PICTURES:
            with Image.open(path) as picture:
                yield path.stem, [np.asarray(picture.convert("RGB"))]
        else:
            yield path.stem, _first_frames(path, frames)


def _first_frames(path: Path, count: int) -> Frames:
    import av

    made: Frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            made.append(frame.to_ndarray(format="rgb24"))
            if len(made) == count:
                break
    return made


def made_up(folder: Path, frames: int) -> Iterator[tuple[str, Frames]]:
    write_demo_dataset(folder, videos=1, frames=frames)
    for video in sorted(folder.glob("features/*/train/*")):
        paths = sorted(video.glob("*.png"))[:frames]
        yield video.name, [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def smaller(images: Frames) -> Frames | None:
    """Return images that fit into 210 x 260, their aspect kept; None if these do already."""
    height, width = images[0].shape[:2]
    scale = min(SMALL[0] / width, SMALL[1] / height)
    if scale >= 1:
        return None
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = (Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in images)
    return [np.asarray(image) for image in resized]


def _changed(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image of which one value in a thousand is another by one level."""
    chosen = rng.random(image.shape) < CHANGED
    other = np.where(image < 255, image + 1, 254).astype(np.uint8)
    return np.where(chosen, other, image)


@dataclass
class _Hardest:
    """The frames of each part in which two programs are farthest apart."""

    found: dict[str, list[tuple[float, str, tuple[Any, Any, Any]]]] = field(
        default_factory=lambda: {part: [] for part in PARTS}
    )

    def add(self, part: str, name: str, image: NDArray[np.uint8], points: tuple[Any, Any]) -> None:
        if points[0] is None or points[1] is None:
            return
        size = image.shape[1::-1]
        apart = float(np.linalg.norm((points[0] - points[1])[:, :2] * size, axis=1).max())
        some = [*self.found[part], (apart, name, (image, *points))]
        self.found[part] = sorted(some, key=lambda one: -one[0])[:_HARDEST]

    def sheet(self) -> NDArray[np.uint8]:
        """Return a sheet, (height, width, 3) uint8 RGB."""
        pictures, captions = [], []
        for part, some in self.found.items():
            for apart, name, (image, *both) in some:
                for who, points in zip(("MediaPipe", "torch"), both, strict=True):
                    pictures.append(_dotted(image, points, both))
                    captions.append(f"{who} {part}, {apart:.1f} px, {name}")
        return contact_sheet(pictures, 2 * _HARDEST, captions)


def _dotted(image: NDArray[np.uint8], points: Any, both: list[Any]) -> NDArray[np.uint8]:
    """Return the part of an image around some points, with dots."""
    size = np.array(image.shape[1::-1])
    every = np.concatenate(both)[:, :2] * size
    centre, side = (every.min(0) + every.max(0)) / 2, max(32.0, 1.3 * float(np.ptp(every, 0).max()))
    box = [*(centre - side / 2).tolist(), *(centre + side / 2).tolist()]
    picture = Image.fromarray(image).transform((_SIDE, _SIDE), Image.Transform.EXTENT, box)
    draw = ImageDraw.Draw(picture)
    for x, y in (points[:, :2] * size - box[:2]) * _SIDE / side:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(0, 255, 0), outline=(0, 0, 0))
    return np.asarray(picture)


@dataclass
class _Comparison:
    """Ours and a disturbed MediaPipe beside MediaPipe, for frames of one kind of size."""

    ours: dict[str, _Compared] = field(default_factory=lambda: {p: _Compared() for p in PARTS})
    itself: dict[str, _Compared] = field(default_factory=lambda: {p: _Compared() for p in PARTS})
    hardest: _Hardest = field(default_factory=_Hardest)

    def add(self, name: str, images: Frames, runs: tuple[_Mediapipe, _Mediapipe, _Torch]) -> None:
        rng = np.random.default_rng(0)
        reference, disturbed, ours = runs
        for run in runs:
            run.start()
        size = images[0].shape[1::-1]
        for number, image in enumerate(images):
            wanted = reference.frame(image)
            mine, noisy = ours.frame(image), disturbed.frame(_changed(image, rng))
            for part in PARTS:
                self.ours[part].add(mine[part], wanted[part], size)
                both = wanted[part], mine[part]
                self.hardest.add(part, f"{name} #{number}", image, both)
                self.itself[part].add(noisy[part], wanted[part], size)

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        return {
            name: {part: one.figures() for part, one in compared.items()}
            for name, compared in (("torch", self.ours), ("mediapipe itself", self.itself))
        }


def _table(figures: dict[str, dict[str, dict[str, float]]]) -> Table:
    heads = "part", "beside MediaPipe", "presence", "both", "median px", "99 %", "99.9 %", "max"
    rows: list[list[object]] = [[*heads, "frames > 0.5 px", "> 2 px"]]
    for part in PARTS:
        for name, parts in figures.items():
            one = parts[part]
            keys = ("median_px", "p99_px", "p999_px", "max_px")
            row: list[object] = [part, name, f"{one['presence']:.2%}", one["both"]]
            row += [short(one.get(key, np.nan)) for key in keys]
            row += [one.get(key, 0) for key in ("frames_over_half_px", "frames_over_2_px")]
            rows.append(row)
    return rows


def run(
    data: Path | None, *, recipe: str, frames: int, match: str, sheet: Path | None = None
) -> tuple[dict[str, Any], dict[str, Table]]:
    """Compare all clips; return figures and tables, and draw the hardest frames."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runs = (_Mediapipe(recipe), _Mediapipe(recipe), _Torch(recipe))
    for one in runs:  # the first frame takes longer
        one.frame(np.zeros((64, 64, 3), dtype=np.uint8))
        one.seconds = 0.0
    native, small = _Comparison(), _Comparison()
    with tempfile.TemporaryDirectory() as folder:
        clips = (
            made_up(Path(folder) / "demo", frames)
            if data is None
            else clips_in(data, frames=frames, match=match)
        )
        count = 0
        for name, images in clips:
            native.add(name, images, runs)
            count += len(images)
            if (shrunk := smaller(images)) is not None:
                small.add(name, shrunk, runs)
                count += len(shrunk)
            print(f"{name}: {len(images)} frames of {images[0].shape[1]} x {images[0].shape[0]}")
    if sheet is not None:
        Image.fromarray(native.hardest.sheet()).save(sheet)
    times = {
        name: one.seconds / max(1, count) * 1e3
        for name, one in (("mediapipe", runs[0]), ("torch", runs[2]))
    }
    tables = {"native size": _table(native.figures())}
    if small.ours["pose"].frames:
        tables["at most 210 x 260"] = _table(small.figures())
    tables["milliseconds per frame on one core"] = [
        ["mediapipe", "torch", "torch / mediapipe"],
        [*map(short, times.values()), short(times["torch"] / times["mediapipe"])],
    ]
    found = {"native": native.figures(), "small": small.figures(), "milliseconds": times}
    return {**found, "frames": count}, tables


def main() -> None:
    """Run from the command line."""
    parser = record.parser(__doc__)
    parser.add_argument("--recipe", choices=list(RECIPES), default="holistic")
    parser.add_argument("--data", type=Path, help="a folder of videos and pictures")
    parser.add_argument("--frames", type=int, default=40, help="most frames of a video")
    parser.add_argument("--match", default="", help="a part of the names of files to compare")
    parser.add_argument("--sheet", type=Path, help="draw the hardest frames into a PNG file")
    args: argparse.Namespace = parser.parse_args()
    found, tables = run(
        args.data, recipe=args.recipe, frames=args.frames, match=args.match, sheet=args.sheet
    )
    record.finish(args, found, tables)


if __name__ == "__main__":
    main()
