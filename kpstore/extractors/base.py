"""The contract of an extractor: frames in, rows of one feature out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance


@dataclass(frozen=True)
class Extracted:
    """What was made of some images.

    Parameters
    ----------
    rows : by name of each feature of frames, one row per image.
    failed : reason by number of each image that nothing could be made of (one line, without its path); its rows are
        ignored.
    """

    rows: Mapping[str, FeatureRows]
    failed: Mapping[int, str] = field(default_factory=dict)


class Extractor(Protocol):
    """A model that turns frames into one feature.

    Constructing one is cheap and checks its options; ``open`` builds the model. An extractor that was not opened can be
    pickled: the ingest sends it to workers, and each opens it once. Results depend on nothing but the frames since
    the last ``start_video``, so that any number of workers gives the same numbers.
    """

    @property
    def spec(self) -> FeatureSpec:
        """The feature that it makes."""

    @property
    def provenance(self) -> Provenance:
        """Everything that changes the numbers: extractor, version, parameters, model and its SHA-256 (JSON).

        May be asked before ``open``.
        """

    @property
    def batch_size(self) -> int:
        """How many frames ``extract`` takes at once; 1 for models that work frame by frame."""

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one worker; it sizes the tasks (about half a minute each), nothing more."""

    def open(self, device: str = "cpu") -> None:
        """Build the model on ``device`` (``"cpu"``, ``"cuda:0"``, …); called once in each worker."""

    def start_video(self) -> None:
        """Forget all frames seen so far; called before the first frame of every video."""

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image.

        Parameters
        ----------
        images : at most ``batch_size`` consecutive frames, each (height, width, 3) uint8 RGB; sizes may differ.

        Raises
        ------
        Exception
            Any exception means that an image failed: with several images, the ingest tries them one by one and
            records the one at fault. Only :class:`~kpstore.errors.ExtractorError` says that the model itself failed,
            which ends the run.
        """

    def close(self) -> None:
        """Free the model."""


class VideoExtractor(Protocol):
    """A model that turns whole videos into features."""

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features that it makes."""

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """By feature name; may be asked before ``open``."""

    @property
    def batch_frames(self) -> int:
        """About how many frames of all videos of one call."""

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one worker."""

    def open(self, device: str = "cpu") -> None:
        """Build the model on ``device``; called once in each worker."""

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        """Return one answer for each video; all have one length: (T, H, W, 3) RGB or (T, H, W) grey, uint8."""

    def close(self) -> None:
        """Free the model."""


def check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the frame in C order, or raise :class:`InvalidError` unless it is (height, width, 3) uint8."""
    if not isinstance(image, np.ndarray):
        raise InvalidError(f"a frame is a NumPy array (height, width, 3) uint8 RGB, found {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise InvalidError(
            f"a frame has shape (height, width, 3) and dtype uint8 (RGB), found {image.shape} {image.dtype}; convert it"
        )
    return np.ascontiguousarray(image)
