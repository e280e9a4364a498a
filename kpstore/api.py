"""What users call: open a store, make one, look at it through views."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

from kpstore._version import __version__
from kpstore.store import compare, history
from kpstore.store.store import Mode
from kpstore.store.store import Store as _Store
from kpstore.views.base import Missing, Selection, Transform
from kpstore.views.clips import ClipView, Short
from kpstore.views.face_keypoints import FaceKeypointView, Normalize
from kpstore.views.frames import FrameView
from kpstore.views.lips import Compute, LipView
from kpstore.views.people import FaceView
from kpstore.views.whole_videos import VideoView

if TYPE_CHECKING:
    import xarray as xr


class Store(_Store):
    """One immutable version of a store, and the views on it. :func:`open` makes one."""

    def frames(
        self,
        features: str | Sequence[str],
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        where: str | Mapping[str, Any] | None = None,
        missing: Missing = "nan",
        transform: Transform | None = None,
    ) -> FrameView:
        """Return single frames as a data set for PyTorch; see :class:`kpstore.views.frames.FrameView`."""
        return FrameView(self, features, split=split, videos=videos, where=where, missing=missing, transform=transform)

    def clips(
        self,
        features: str | Sequence[str],
        length: int,
        stride: int | None = None,
        *,
        short: Short = "skip",
        missing: Missing = "nan",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> ClipView:
        """Return windows of ``length`` consecutive frames; see :class:`kpstore.views.clips.ClipView`."""
        return ClipView(self, features, length, stride, short=short, missing=missing, transform=transform, **selection)

    def whole_videos(
        self,
        features: str | Sequence[str],
        *,
        missing: Missing = "nan",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> VideoView:
        """Return whole videos, padded in batches; see :class:`kpstore.views.whole_videos.VideoView`."""
        return VideoView(self, features, missing=missing, transform=transform, **selection)

    def face_keypoints(
        self,
        *,
        feature: str = "keypoints",
        normalize: Normalize = "minmax",
        missing: Missing = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> FaceKeypointView:
        """Return the 68 face points, normalised; see :class:`kpstore.views.face_keypoints.FaceKeypointView`."""
        return FaceKeypointView(
            self, feature=feature, normalize=normalize, missing=missing, transform=transform, **selection
        )

    def faces(
        self,
        *,
        expect_model: str | None = None,
        target: str | None = None,
        min_angle: float | None = None,
        max_angle: float | None = None,
        missing: Missing = "skip",
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> FaceView:
        """Return frames of persons beside their frontal faces; see :class:`kpstore.views.people.FaceView`."""
        return FaceView(
            self,
            expect_model=expect_model,
            target=target,
            min_angle=min_angle,
            max_angle=max_angle,
            missing=missing,
            transform=transform,
            **selection,
        )

    def lips(
        self,
        *,
        feature: str = "lip_resnet18",
        missing: Missing | Literal["compute"] = "error",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> LipView:
        """Return lip embeddings of whole utterances; see :class:`kpstore.views.lips.LipView`."""
        return LipView(self, feature=feature, missing=missing, compute=compute, transform=transform, **selection)

    def to_xarray(
        self, *, split: str | Sequence[str] | None = None, features: Sequence[str] | None = None
    ) -> xr.Dataset:
        """Return a lazy, labelled data set of splits and features; see :func:`kpstore.store.labelled.to_xarray`."""
        from kpstore.store.labelled import to_xarray  # xarray takes as long to import as all the rest

        return to_xarray(self, split=split, features=features)


def open(
    path: str | os.PathLike[str], at: history.At = None, mode: Mode = "r", cache: str | os.PathLike[str] = "auto"
) -> Store:
    """Open a version of a store; it never changes, whatever others write meanwhile.

    Parameters
    ----------
    path : directory of the store.
    at : a tag, a branch, a snapshot id or a time (``datetime`` or ISO text); the newest version by default.
    mode : ``"r"`` to read, ``"a"`` to allow transactions and tags as well.
    cache : folder for decoded copies of arrays that are read in random order and are not in memory's reach already
        (uncompressed local stores are: their chunks are mapped as they lie). ``"auto"`` is ``$KPSTORE_CACHE`` or
        ``~/.cache/kpstore``, held to ``$KPSTORE_CACHE_GB`` (100); ``"off"`` is none.

    Raises
    ------
    NotFoundError
        If there is no store, or no such version.
    InvalidError
        If something else is there.
    """
    return Store.open(os.fspath(path), at, mode, os.fspath(cache))


def create(path: str | os.PathLike[str], *, name: str = "") -> Store:
    """Make an empty store and open it for writing.

    Parameters
    ----------
    name : name of the data set; the last part of the path by default.

    Raises
    ------
    ExistsError
        If the path is taken.
    """
    location = os.fspath(path)
    return Store.create(location, name=name or os.path.basename(location.rstrip("/")), kpstore_version=__version__)


def diff(old: Store, new: Store) -> compare.VersionDiff:
    """Return what changed between two versions: videos, features and rows; see :mod:`kpstore.store.compare`."""
    return compare.diff(old, new)


__all__ = ["Store", "create", "diff", "open"]
