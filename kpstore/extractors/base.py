"""The contract of extractors: frames in, rows of one or more features out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard, get_args

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
    failed : the reason, by number of each image that could not be processed (one line, without the
        image's path); its rows are stored as missing, whatever they hold.
    """

    rows: Mapping[str, FeatureRows]
    failed: Mapping[int, str] = field(default_factory=dict)


class Model(Protocol):
    """What all extractors share: their features, and a model that is opened and closed.

    The constructor is cheap and checks the options; ``open`` builds the model. An extractor that is
    not open can be pickled: the ingest sends it to workers, and each worker opens it once.
    """

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features that it makes: at least one of frames; others may be of videos."""

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """By feature, everything that changes the values, as JSON; known before ``open``.

        This is the extractor, versions, parameters, the model and the SHA-256 of its weights.
        """

    @property
    def typical_fps(self) -> float:
        """Rough frames per second of one worker.

        Used only for the size of tasks, which take about half a minute each.
        """

    def open(self, device: str = "cpu") -> None:
        """Build the model on ``device`` (``"cpu"``, ``"cuda:0"``, …).

        Called once in each worker.
        """

    def close(self) -> None:
        """Free the model."""


class Settling(Protocol):
    """What an extractor has beside :class:`Model` if its batch size affects the last bits.

    The number of frames at once then belongs to a feature: it is chosen before anything is
    committed and kept in the provenance, and every later run uses it.
    :class:`kpstore.extractors.torch_model.TorchModel` does this for models of torch.
    """

    @property
    def at_once(self) -> int:
        """Number of frames that the model takes at once."""

    @property
    def settled(self) -> bool:
        """Whether the number is fixed.

        If not, ``open`` may lower it to what fits into the memory of a GPU.
        """

    def settle(self, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
        """Take the number with which features were begun.

        Parameters
        ----------
        made : provenance of those of the extractor's features that exist; empty if all are new. A
            number given as an option takes precedence; the provenances then differ if the numbers
            do.
        device : on which models will run, for the default of new features.

        Returns
        -------
        tuple of str
            Notes for the user about features that were begun without a number on record.
        """

    def keep(self, number: int) -> None:
        """Fix the number."""


class Extractor(Model, Protocol):
    """Takes frames one after another.

    Results depend only on the frames since the last ``start_video`` and on its argument, so that
    they are the same for any number of workers. An extractor that needs a reference picture has
    ``needs_reference = True``: a run in which no video has one is refused.
    """

    @property
    def batch_size(self) -> int:
        """Number of frames that ``extract`` takes at once; 1 for models that take single frames."""

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget all frames seen so far; called before the first frame of each video.

        Parameters
        ----------
        reference : a picture that belongs to the whole video, (height, width, 3) uint8 RGB; None
            where the source has none.

        Returns
        -------
        mapping
            By name of each feature of videos, one row; empty if the extractor makes none.

        Raises
        ------
        Exception
            Whatever is raised means that the whole video failed, except for
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
            Whatever is raised means that an image failed: of several images, the ingest tries each
            by itself and records those that fail. Only :class:`~kpstore.errors.ExtractorError`
            means that the model itself failed, which ends the run, or this worker's part in it.
        """


class LockstepExtractor(Extractor, Protocol):
    """Takes a frame of each of many videos at once, and remembers each video's frames.

    Results are those of :meth:`Extractor.extract`, and do not depend on the other videos. All its
    features are of frames. If ``videos_at_once`` is 1, frames are given to ``extract``. A ``step``
    that raises must leave what is remembered as it was: each image is then tried by itself.
    """

    @property
    def videos_at_once(self) -> int:
        """Number of rows of a batch: of videos that are computed together."""

    def start_row(self, row: int) -> None:
        """Forget the frames of a row, whose next frame is the first of another video.

        Whatever it raises ends the run.
        """

    def step(self, images: Sequence[NDArray[np.uint8] | None]) -> Extracted:
        """Return one row per image.

        Parameters
        ----------
        images : for each row of the batch the next frame of its video, (height, width, 3) uint8
            RGB; None for a row without one. Rows of the result are ignored there.

        Raises
        ------
        ExtractorError
            If the model itself fails, which ends the run, or this worker's part in it.
        """


class VideoExtractor(Model, Protocol):
    """Takes whole videos, several at once; the result for a video does not depend on the others.

    An extractor that takes videos of different lengths in one call has ``any_length = True``, and
    then gets many at once.
    """

    @property
    def batch_frames(self) -> int:
        """Rough number of frames, of all videos together, that ``extract_videos`` takes at once."""

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> Sequence[Extracted]:
        """Return for each video what was extracted, one row per frame.

        Parameters
        ----------
        videos : uint8, all of one length T and one size, (T, height, width, 3) RGB or (T, height,
            width) grey; of any lengths with ``any_length``.

        Raises
        ------
        Exception
            As for :meth:`Extractor.extract`, for videos instead of images.
        """


AnyExtractor = Extractor | VideoExtractor


def takes_videos(extractor: AnyExtractor) -> TypeGuard[VideoExtractor]:
    """Whether an extractor takes whole videos instead of frames."""
    return hasattr(extractor, "extract_videos")


def goes_in_lockstep(extractor: AnyExtractor) -> TypeGuard[LockstepExtractor]:
    """Whether an extractor takes frames of several videos at once."""
    return getattr(extractor, "videos_at_once", 1) > 1


def settle(extractor: AnyExtractor, made: Mapping[str, Provenance], device: str) -> tuple[str, ...]:
    """Let an extractor take the number that its features were begun with, if it has one."""
    own = {spec.name: made[spec.name] for spec in extractor.specs if spec.name in made}
    return extractor.settle(own, device) if is_settling(extractor) else ()


def is_settling(extractor: object) -> TypeGuard[Settling]:
    """Whether the number of frames at once belongs to an extractor's features."""
    return hasattr(extractor, "settle")


def frame_specs(extractor: AnyExtractor) -> tuple[FeatureSpec, ...]:
    """Return an extractor's features of frames."""
    return tuple(spec for spec in extractor.specs if spec.axis == "frame")


class OneFeature(ABC):
    """Base of an extractor that makes one feature of frames."""

    @property
    @abstractmethod
    def spec(self) -> FeatureSpec:
        """The feature."""

    @property
    @abstractmethod
    def recipe(self) -> Provenance:
        """The provenance of the feature."""

    @abstractmethod
    def rows(self, images: Sequence[NDArray[np.uint8]]) -> FeatureRows:
        """Return one row per image."""

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The feature as a tuple; see :class:`Model`."""
        return (self.spec,)

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """The provenance by the name of the feature; see :class:`Model`."""
        return {self.spec.name: self.recipe}

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Do nothing: frames do not depend on each other."""
        return {}

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return one row per image; see :meth:`Extractor.extract`."""
        return Extracted({self.spec.name: self.rows(images)})


def not_one_of(options: object, **kinds: object) -> list[str]:
    """Return a message for each option that is none of the words of its ``Literal`` type."""
    return [
        f"{name}={getattr(options, name)!r} is not one of {', '.join(get_args(kind))}"
        for name, kind in kinds.items()
        if getattr(options, name) not in get_args(kind)
    ]


def is_whole(value: object) -> TypeGuard[int]:
    """Whether an option is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether an option is a number; True and False are none."""
    return is_whole(value) or isinstance(value, float)


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
