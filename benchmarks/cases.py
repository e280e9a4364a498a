"""Data sets that benchmarks make up, and how they measure."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.motion import Motion
from kpstore.extractors.base import OneFeature
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import keypoints_spec
from kpstore.sources.base import Listing

T = TypeVar("T")

PHOENIX = {"train": (7096, 827_354), "dev": (519, 55_775), "test": (642, 64_627)}
"""Published videos and frames of PHOENIX-2014-T."""
VIDEO_FRAMES = (20, 210)
"""Fewest and most frames of a video: 115 on average, as in PHOENIX-2014-T."""
_LOOK_S = 0.01
"""Seconds between two looks at a process's memory."""


def phoenix_lengths(lists: Sequence[Path] = (), *, scale: float = 1.0) -> dict[str, list[int]]:
    """Return frames per video by split: from lists, or drawn to match the totals."""
    lengths: dict[str, list[int]] = {split: [] for split in PHOENIX}
    for path in lists:
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                lengths[row["split"]].append(int(row["num_frames"]))
    rng = np.random.default_rng(0)
    for split, (videos, frames) in PHOENIX.items():
        if not lengths[split]:
            drawn = rng.gamma(4.5, size=videos)
            counts = np.maximum(16, np.floor(drawn / drawn.sum() * frames)).astype(int)
            counts[np.argsort(counts)[-1]] += frames - counts.sum()
            lengths[split] = counts.tolist()
        lengths[split] = lengths[split][: max(1, round(len(lengths[split]) * scale))]
    return lengths


def made_up_videos(n_frames: int, rng: np.random.Generator) -> list[VideoRecord]:
    """Return videos with so many frames in all."""
    found: list[VideoRecord] = []
    while n_frames > 0:
        length = min(n_frames, int(rng.integers(*VIDEO_FRAMES)))
        paths = tuple(f"v{len(found)}/{k}.png" for k in range(length))
        found.append(VideoRecord(f"v{len(found)}", "train", paths))
        n_frames -= length
    return found


@dataclass(frozen=True)
class SyntheticSource:
    """Videos whose frames are all the same small array, so that only the store is measured."""

    lengths: Mapping[str, Sequence[int]]
    name: str = "synthetic PHOENIX-2014-T"

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What this is."""
        return {"kind": "synthetic"}

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos, with ids and paths as long as the real ones."""
        videos = []
        for split, lengths in self.lengths.items():
            for number, n_frames in enumerate(lengths):
                video_id = f"01April_2010_Thursday_heute-{split}-{number:05d}"
                folder = f"features/fullFrame-210x260px/{split}/{video_id}"
                paths = tuple(f"{folder}/images{frame:04d}.png" for frame in range(1, n_frames + 1))
                text = {
                    "speaker": "Signer01",
                    "gloss": "MORGEN REGEN NORD",
                    "text": "morgen regnet es im norden",
                }
                videos.append(VideoRecord(video_id, split, paths, 25.0, 210, 260, text))
        return Listing(tuple(videos))

    def read_frames(
        self, video: VideoRecord, *, skip: Collection[int] = ()
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield one tiny frame again and again."""
        frame = np.zeros((1, 1, 3), dtype=np.uint8)
        for _ in range(video.n_frames):
            yield frame


class SyntheticExtractor(OneFeature):
    """Keypoints that move as a :class:`~benchmarks.motion.Motion` does, whatever it is shown."""

    batch_size = 64
    typical_fps = 20_000.0
    recipe: Mapping[str, Any] = {"extractor": "synthetic"}

    @property
    def spec(self) -> FeatureSpec:
        """Keypoints, laid out as MediaPipe's."""
        return keypoints_spec()

    def open(self, device: str = "cpu") -> None:
        """Make what videos are drawn from."""
        self._motion = Motion()

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Draw another video."""
        self._motion.start_video()
        return {}

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return its next rows."""
        return self._motion.rows(len(images))

    def close(self) -> None:
        """Keep nothing."""
        del self._motion


class PeakMemory:
    """Samples the resident memory of this process and its children; a context manager."""

    def __enter__(self) -> PeakMemory:
        self.driver = self.worker = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            self.driver = max(self.driver, me.memory_info().rss)
            for child in me.children(recursive=True):
                try:
                    self.worker = max(self.worker, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def seconds(work: Callable[[], Any]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of a call by the clock, and of CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def forget_pages(path: Path) -> None:
    """Put the pages of a file, or of all files in a folder, out of the system's memory (Linux).

    What the disk itself, or the host of a virtual machine, has in its memory stays there.
    """
    for each in path.rglob("*") if path.is_dir() else (path,):
        if each.is_file():
            with each.open("rb") as file:
                os.fsync(file.fileno())  # a page that is not on the disk yet stays
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the spread of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


@dataclass(frozen=True)
class Measured:
    """What a process of its own has found and taken.

    Parameters
    ----------
    found : JSON that it printed in its last line.
    own_mib : highest memory of the process alone.
    peak_mib : with the pages of mapped files, which are the system's and shared; the two peaks may
        not coincide.
    """

    found: dict[str, Any]
    own_mib: int
    peak_mib: int


def in_own_process(module: str, *args: str, env: Mapping[str, str] | None = None) -> Measured:
    """Run ``python -m module args`` and look at its memory from outside every 10 ms.

    Needs Linux.
    """
    command = [sys.executable, "-m", module, *args]
    whole = {**os.environ, **(env or {})}
    peaks = [0, 0]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=whole
    ) as child:
        while True:
            peaks = [max(both) for both in zip(peaks, _resident_kib(child.pid), strict=True)]
            try:
                out, errors = child.communicate(timeout=_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                continue
    if child.returncode:
        raise RuntimeError(
            f"{module} {' '.join(args)}: {(errors.strip().splitlines() or ['killed'])[-1]}"
        )
    own, peak = (round(kib / 1024) for kib in peaks)
    return Measured(json.loads(out.splitlines()[-1]), own, peak)


def answer(found: Mapping[str, Any]) -> None:
    """Print what :func:`in_own_process` returns, and wait for it to read this process's memory."""
    print(json.dumps(found), flush=True)
    time.sleep(5 * _LOOK_S)


def _resident_kib(pid: int) -> tuple[int, int]:
    """Return KiB of a process alone, and with mapped files; zeros once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return (int(sizes["RssAnon"][0]), int(sizes["VmRSS"][0])) if "RssAnon" in sizes else (0, 0)


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """Return all items, another one first in each turn: who begins waits for large memory pages."""
    first = turn % len(items)
    return [*items[first:], *items[:first]]
