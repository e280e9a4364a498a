"""Sources and extractors of single tests, which worker processes import.

They are no part of the tests' own modules, with which each worker would import pytest.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, UnsupportedError, one_line
from kpstore.extractors.base import Extracted
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError
from tests.fakes import FakeExtractor, FakeSource, kill_this, wait_for_ever


def get_worker() -> Any:
    """Return this process's worker; Dask is imported where a worker has done so."""
    import distributed

    return distributed.get_worker()


def wait_for(happened: Callable[[], Any]) -> None:
    """Come back when something has happened; the test's own time limit is the only one."""
    while not happened():
        time.sleep(0.01)


@dataclass(frozen=True)
class Portraits(FakeSource):
    """Videos that each have a reference picture, but for some."""

    torn: Collection[str] = ()

    def read_reference(self, video: VideoRecord) -> NDArray[np.uint8] | FrameError:
        if video.id in self.torn:
            return FrameError("truncated")
        return np.full((4, 4, 3), len(video.id), dtype=np.uint8)


@dataclass
class Faces:
    """Two features of frames, in chunks of different sizes, and one of videos."""

    scale: float = 1.0
    dark: int = 0
    batch_size: int = 4
    typical_fps: float = 1000.0

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        return (
            FeatureSpec("mean", (3,), ("colour",), chunk_rows=4),
            FeatureSpec("from_reference", (), (), "float64", chunk_rows=64),
            FeatureSpec("reference", (3,), ("colour",), axis="video"),
        )

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        return {spec.name: {"extractor": "faces", "scale": self.scale} for spec in self.specs}

    def open(self, device: str = "cpu") -> None:
        pass

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> dict[str, FeatureRows]:
        assert reference is not None
        self._reference = reference.mean(axis=(0, 1), dtype=np.float32)
        return {"reference": FeatureRows(self._reference[None])}

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        means = np.stack([image.mean(axis=(0, 1), dtype=np.float32) for image in images])
        rows = {
            "mean": FeatureRows(means),
            "from_reference": FeatureRows((means - self._reference).mean(axis=1) * 1.0),
        }
        rows["from_reference"] = FeatureRows(rows["from_reference"].values.astype(np.float64))
        return Extracted(
            rows, {n: "too dark" for n, image in enumerate(images) if image[0, 0, 0] < self.dark}
        )

    def close(self) -> None:
        pass


@dataclass
class Clips:
    """A row depends on its whole video; videos come by length, never padded."""

    batch_frames: int = 20
    fail: Collection[str] = ()
    typical_fps: float = 1000.0
    calls: list[tuple[int, int]] = field(default_factory=list)

    specs = (FeatureSpec("clip", (2,), ("x",), chunk_rows=4),)
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"clip": {"extractor": "clips"}})

    def open(self, device: str = "cpu") -> None:
        pass

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        assert len({video.shape for video in videos}) == 1
        self.calls.append((len(videos), len(videos[0])))
        if any(video[0, 0, 0, 0] in self.fail for video in videos):
            raise ValueError("not this one")
        made = []
        for video in videos:
            means = video.mean(axis=(1, 2, 3), dtype=np.float64)
            rows = np.stack([means, np.full(len(means), means.mean())], axis=1).astype(np.float32)
            made.append(Extracted({"clip": FeatureRows(rows)}))
        return made

    def close(self) -> None:
        pass


class Deadly(Clips):
    """Dies of videos of five frames."""

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        if len(videos[0]) == 5:
            kill_this()
        return super().extract_videos(videos)


@dataclass
class Fragile(Faces):
    """Dies of pictures of one brightness."""

    poison: int = -1

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        if any(image[0, 0, 0] == self.poison for image in images):
            kill_this()
        return super().extract(images)


@dataclass
class OneGpuGone(FakeExtractor):
    """Works on the second worker alone.

    On the first its device is lost, at once or after a few videos.
    """

    folder: str = ""
    after: int = 0

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        self._lost = str(get_worker().name) == "0"
        self._videos = 0
        if self._lost and not self.after:
            self.lose(UnsupportedError("device 'cuda:0' was asked for, but there is none"))

    def start_video(self, reference: Any = None) -> dict[str, Any]:
        self._videos += 1
        if self._lost and self._videos > self.after:
            self.lose(ExtractorError("the model fails on cuda:0: device lost"))
        if not self._lost and self._videos > 2:
            wait_for((Path(self.folder) / "lost").exists)
        return super().start_video()

    def lose(self, error: Exception) -> None:
        (Path(self.folder) / "lost").touch()
        raise error


class NoneLeft(FakeExtractor):
    """Works nowhere."""

    def open(self, device: str = "cpu") -> None:
        raise UnsupportedError("no weights here")


@dataclass
class SeesGpu(FakeExtractor):
    """Writes down which device it was given, and which GPUs it can see."""

    folder: str = ""

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        seen = Path(self.folder) / f"{os.getpid()}"
        seen.write_text(f"{device} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
        wait_for(
            lambda: len(list(Path(self.folder).iterdir())) == 2
        )  # until the other worker has one as well


@dataclass
class OneGone(FakeExtractor):
    """Does not start on the first worker."""

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        try:
            name = str(get_worker().name)
        except ValueError:  # in an isolated process, which has no worker
            return
        if name == "0":
            raise ExtractorError("device lost")


class NoNumbers(FakeExtractor):
    """Gives no finite numbers for any frame, on the first worker, and says so."""

    def extract(self, images: Any) -> Extracted:
        if str(get_worker().name) == "0":
            rows = self.spec.empty_rows(len(images))
            return Extracted(
                {"points": rows}, dict.fromkeys(range(len(images)), "no finite numbers")
            )
        return super().extract(images)


@dataclass
class HangsAtExit(FakeExtractor):
    def open(self, device: str = "cpu") -> None:
        super().open(device)
        atexit.register(wait_for_ever)


@dataclass
class WholeVideos(Clips):
    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        wait_for_ever()
        return []


@dataclass
class NeverOpens(FakeExtractor):
    def open(self, device: str = "cpu") -> None:
        wait_for_ever()


@dataclass
class Unstartable(FakeExtractor):
    """Its model file is not there."""

    def open(self, device: str = "cpu") -> None:
        raise FileNotFoundError("no weights.onnx")


@dataclass
class Lockstep(FakeExtractor):
    """The same model for several videos at once, each with a state of its own."""

    videos_at_once: int = 4

    def open(self, device: str = "cpu") -> None:
        super().open(device)
        self._rows = [FakeExtractor(fail_above=self.fail_above) for _ in range(self.videos_at_once)]
        for one in self._rows:
            one.open()
        self.n_together: list[int] = []
        """Number of images in each step."""

    def start_row(self, row: int) -> None:
        self._rows[row].start_video()

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        rows, failed = self.spec.empty_rows(len(images)), dict[int, str]()
        self.n_together.append(sum(image is not None for image in images))
        for number, (one, image) in enumerate(zip(self._rows, images, strict=True)):
            if image is None:
                continue
            try:
                made = one.rows([image])
            except ValueError as error:
                failed[number] = one_line(error)
                continue
            rows.values[number] = made.values[0]
            rows.companions["detected"][number] = made.companions["detected"][0]
        return Extracted({self.spec.name: rows}, failed)
