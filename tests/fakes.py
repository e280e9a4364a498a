"""Sources and extractors that tests make up: small, exact, and able to fail on purpose."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.extractors.base import OneFeature
from kpstore.schema.array import ArraySpec
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Listing

POISON = 255
"""First pixel of a frame that kills its process."""


def record(video_id: str, n_frames: int, split: str = "train", **annotations: str) -> VideoRecord:
    paths = tuple(f"{video_id}/{number:04d}.png" for number in range(n_frames))
    return VideoRecord(video_id, split, paths, 25.0, 8, 6, annotations)


@dataclass(frozen=True)
class FakeSource:
    """Videos of made-up frames: every pixel of a frame is a hash of (video, frame number)."""

    lengths: Mapping[str, int]
    broken: Mapping[str, Collection[int]] = field(default_factory=dict)
    poisonous: Mapping[str, Collection[int]] = field(default_factory=dict)
    unreadable: Collection[str] = ()
    problems: tuple[str, ...] = ()
    name: str = "fake"
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"kind": "fake"})

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        splits = ("train", "dev", "test")
        videos = [
            record(v, n, splits[i % 3], gloss=f"GLOSS-{v}")
            for i, (v, n) in enumerate(self.lengths.items())
        ]
        return Listing(tuple(videos), self.problems)

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Any]:
        if video.id in self.unreadable:
            raise OSError(f"{video.id}: the disk said no")
        for number in range(video.n_frames):
            if number in skip:
                yield FrameError("skipped")
            elif number in self.broken.get(video.id, ()):
                yield FrameError("truncated")
            else:
                seed = hash_of(video.id, number)
                frame = np.random.default_rng(seed).integers(0, 250, (6, 8, 3), dtype=np.uint8)
                if number in self.poisonous.get(video.id, ()):
                    frame[0, 0, 0] = POISON
                yield frame


def hash_of(video_id: str, number: int) -> int:
    return int.from_bytes(f"{video_id}:{number}".encode()[-7:], "little")


@functools.cache
def fake_spec(chunk_rows: int = 16) -> FeatureSpec:
    return FeatureSpec(
        "points",
        (5, 3),
        ("point", "space"),
        labels={"space": ("x", "y", "z")},
        companions=(ArraySpec("detected", (2,), ("part",), "bool"),),
        chunk_rows=chunk_rows,
    )


def kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_this() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_ever() -> None:
    threading.Event().wait()


def wait_with_the_lock() -> None:
    """Wait for ever in C code that no other thread of Python can interrupt."""
    ctypes.PyDLL(None).pause()


@dataclass
class ForksAndWaits:
    """Holds a lock in a process of its own, as models do that read ahead, and waits for ever."""

    lock: str

    def __call__(self) -> None:
        file = open(self.lock, "w")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fork():
            file.close()
            self.then()
        wait_for_ever()

    def then(self) -> None:
        wait_with_the_lock()


class ForksAndDies(ForksAndWaits):
    """The same, and dies instead of waiting."""

    def then(self) -> None:
        kill_this()


@dataclass
class FakeExtractor(OneFeature):
    """Keeps state from frame to frame, as MediaPipe does, so that order and resets matter.

    After ``stop_at`` frames it makes ``stop_file`` and does no more: whoever waits for the file
    finds a run in the middle of its work, however fast the machine is. ``poison`` is what a
    poisonous frame does.
    """

    chunk_rows: int = 16
    scale: float = 1.0
    batch_size: int = 1
    typical_fps: float = 1000.0
    sleep_s: float = 0.0
    fail_above: int = 256
    stop_at: int = 0
    stop_file: str = ""
    poison: Callable[[], object] = kill_this

    @property
    def spec(self) -> FeatureSpec:
        return fake_spec(self.chunk_rows)

    @property
    def recipe(self) -> Mapping[str, Any]:
        return {"extractor": "fake", "parameters": {"scale": self.scale}}

    def open(self, device: str = "cpu") -> None:
        self._last = 0.0
        self._n_frames = 0

    def start_video(self, reference: Any = None) -> dict[str, FeatureRows]:
        self._last = 0.0
        return {}

    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        if any(image[0, 0, 0] >= self.fail_above for image in images):
            raise ValueError("a frame that the model does not like")
        rows = fake_spec().empty_rows(len(images))
        for i, image in enumerate(images):
            if image[0, 0, 0] == POISON:
                self.poison()
            time.sleep(self.sleep_s)
            self._n_frames += 1
            if self._n_frames == self.stop_at:
                Path(self.stop_file).touch()
                time.sleep(10**6)
            self._last = 0.5 * self._last + self.scale * float(image.mean())
            rows.values[i] = self._last + np.arange(15, dtype=np.float32).reshape(5, 3)
            rows.companions["detected"][i] = image[1, 0, 0] % 2, image[2, 0, 0] % 2
            rows.values[i][:2][~rows.companions["detected"][i]] = np.nan
        return rows

    def close(self) -> None:
        self._last = 0.0
