"""The contract of extractors: frames in, rows of one or more features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance


@dataclass(frozen=True)
class Extracted:
    """Features of some images.

    Parameters
    ----------
    rows : by name of each feature of frames, one row per image.
    failed : reason by number of each image that could not be processed (one line, without its
        path); its rows read as missing, whatever they hold.
    """

    rows: Mapping[str, FeatureRows]
    failed: Mapping[int, str] = field(default_factory=dict)


class Model(Protocol):
    """What all extractors share: their features and a model that is opened and closed.

    Constructing one is cheap and checks its options; ``open`` builds the model. An extractor that
    was not opened can be pickled: the ingest sends it to workers, and each opens it once.
    """

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features that it makes, at least one of them of frames; others may be of videos."""

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """By feature, everything that changes the numbers, as JSON; known before ``open``.

        Extractor, version, parameters, model and the SHA-256 of its weights.
        """

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one worker.

        It sizes the tasks (about half a minute each), nothing more.
        """

    def open(self, device: str = "cpu") -> None:
        """Build the model on ``device`` (``"cpu"``, ``"cuda:0"``, …).

        Called once in each worker.
        """

    def close(self) -> None:
        """Free the model."""


class Settling(Protocol):
    """What an extractor has beside :class:`Model` if its batch size affects the last bits.

    Their number belongs to a feature: it is chosen before anything is committed, stands in the
    provenance and every later run keeps it. :class:`kpstore.extractors.torch_model.TorchModel`
    does all of it for models of torch.
    """

    @property
    def at_once(self) -> int:
        """Frames that the model takes at once."""

    @property
    def settled(self) -> bool:
        """Whether the number stays.

        If not, ``open`` may lower it to what fits into a GPU's memory.
        """

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which features were begun.

        Parameters
        ----------
        made : how those of the extractor's features were made that are there; empty if it makes new
            ones. A number that was asked for by option is taken in any case, and provenances then
            differ where it is another.
        device : where models will run, for the default of new features.

        Returns
        -------
        tuple of str
            Notes for the user about features that were begun without a number on record.
        """

    def keep(self, number: int) -> None:
        """Fix the number; from now on it stays."""


class Extractor(Model, Protocol):
    """Takes frames one after another.

    Results depend on nothing but the frames since the last ``start_video``, and what that was
    given, so that any number of workers gives the same numbers. One that fails without a reference
    picture says so by ``needs_reference = True``: a run in which no video has any is refused.
    """

    @property
    def batch_size(self) -> int:
        """How many frames ``extract`` takes at once; 1 for models that work frame by frame."""

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames seen so far; called before the first frame of every video.

        Parameters
        ----------
        reference : a picture that belongs to the whole video, (height, width, 3) uint8 RGB; None
            where the source has none.

        Returns
        -------
        mapping
            By name of each feature of videos, one row; empty for an extractor without such.

        Raises
        ------
        Exception
            Any exception means that the whole video failed, but for
            :class:`~kpstore.errors.ExtractorError`.
        """

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image.

        Parameters
        ----------
        images : at most ``batch_size`` consecutive frames, each (height, width, 3) uint8 RGB; sizes
            may differ.

        Raises
        ------
        Exception
            Any exception means that an image failed: with several images, the ingest tries them one
            by one and records the one at fault. Only :class:`~kpstore.errors.ExtractorError` says
            that the model itself failed, which ends the run, or this worker's part in it.
        """


class VideoExtractor(Model, Protocol):
    """Takes whole videos, several at once; what it makes of one depends on no other.

    One that takes videos of different lengths in one call says so by ``any_length = True``, and
    then gets many at once.
    """

    @property
    def batch_frames(self) -> int:
        """About how many frames, of all videos together, ``extract_videos`` takes at once."""

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> Sequence[Extracted]:
        """Return what was made of each video, a row per frame.

        Parameters
        ----------
        videos : of one length T and size, (T, height, width, 3) RGB or (T, height, width) grey,
            uint8; with ``any_length`` of any lengths.

        Raises
        ------
        Exception
            As for :meth:`Extractor.extract`, for videos instead of images.
        """


AnyExtractor = Extractor | VideoExtractor


def takes_videos(extractor: AnyExtractor) -> TypeGuard[VideoExtractor]:
    """Whether an extractor takes whole videos, not frames."""
    return hasattr(extractor, "extract_videos")


def settle(extractor: AnyExtractor, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
    """Let an extractor take what its features were begun with; see :meth:`Settling.settle`."""
    own = {spec.name: made[spec.name] for spec in extractor.specs if spec.name in made}
    return extractor.settle(own, device) if is_settling(extractor) else ()


def is_settling(extractor: object) -> TypeGuard[Settling]:
    """Whether an extractor has a number of frames at once that belongs to its features."""
    return hasattr(extractor, "settle")


def frame_specs(extractor: AnyExtractor) -> tuple[FeatureSpec, ...]:
    """Return an extractor's features of frames."""
    return tuple(spec for spec in extractor.specs if spec.axis == "frame")


class OneFeature(ABC):
    """Base of an extractor that makes one feature of frames; it says how in terms of that one."""

    @property
    @abstractmethod
    def spec(self) -> FeatureSpec:
        """The feature."""

    @property
    @abstractmethod
    def recipe(self) -> Provenance:
        """Its provenance."""

    @abstractmethod
    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image."""

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The one feature; see :class:`Model`."""
        return (self.spec,)

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """Its provenance, by its name; see :class:`Model`."""
        return {self.spec.name: self.recipe}

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Do nothing: for a model to which frames stand alone."""
        return {}

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`Extractor.extract`."""
        return Extracted({self.spec.name: self.rows(images)})


def check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame in C order; :class:`InvalidError` unless it is (height, width, 3) uint8."""
    if not isinstance(image, np.ndarray):
        raise InvalidError(
            f"a frame is a NumPy array (height, width, 3) uint8 RGB, found {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise InvalidError(
            f"a frame has shape (height, width, 3) and dtype uint8 (RGB), found {image.shape} "
            f"{image.dtype}; convert it"
        )
    return np.ascontiguousarray(image)
