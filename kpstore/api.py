"""What users call: open or create a store, and make views of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

from numpy.typing import ArrayLike

from kpstore._version import __version__
from kpstore.backends.object_address import without_scheme
from kpstore.backends.places import folder_of
from kpstore.errors import InvalidError
from kpstore.schema.fields import shown
from kpstore.schema.lips import LIP_FEATURE
from kpstore.store import chunked, history
from kpstore.store.arrays import Mode
from kpstore.store.checked import Check
from kpstore.store.store import BaseStore
from kpstore.store.video import Video
from kpstore.user_files import path_text
from kpstore.visible import visible

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    from kpstore.extractors.base import AnyExtractor
    from kpstore.inspect.compare import VersionDiff
    from kpstore.inspect.leakage import SplitCheck
    from kpstore.inspect.statistics import Statistics
    from kpstore.render.raster import SkeletonStyle, StyleName
    from kpstore.store.repair import Repair
    from kpstore.views.base import Compute, ViewOptions
    from kpstore.views.clips import ClipView, Short
    from kpstore.views.face_keypoints import FaceKeypointView, MissingFace, Normalize
    from kpstore.views.frames import FrameView
    from kpstore.views.lips import LipView
    from kpstore.views.missing import Policy
    from kpstore.views.people import FaceView
    from kpstore.views.skeletons import Pixels, SkeletonView
    from kpstore.views.whole_videos import VideoView

# What reading does not need is imported where it is used: opening a store waits for the rest.

FACES = "faces"
"""Recipe for a store of persons that holds paths only."""
V = TypeVar("V")


class Store(BaseStore):
    """One immutable version of a store, and views of it for training; :func:`open` makes one."""

    def __repr__(self) -> str:
        from kpstore.inspect import display

        return super().__repr__() if self.is_closed else display.to_text(self)

    def _repr_html_(self) -> str | None:
        from kpstore.inspect import display

        return None if self.is_closed else display.to_html(self)

    def computed(
        self,
        extractor: str | AnyExtractor | None = None,
        *,
        features: str | Sequence[str] = (),
        root: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> Self:
        """Return the same version with missing rows computed when they are read.

        Every read runs the model and nothing is stored; ``kpstore ingest features`` computes and
        stores them once.

        Parameters
        ----------
        extractor : a recipe, or an extractor that is not open; by default the recorded one that
            made ``features``.
        features : names of features, for the default extractor.
        root : folder that the store's paths are relative to; by default the folder of the store.
        device : where the model runs, ``"cpu"`` or ``"cuda:0"``.
        options : options for the recipe, such as ``weights=``.

        Returns
        -------
        Store
            Read-only. A video that cannot be computed (no such file, no face) reads as failed; the
            reason is logged.

        Raises
        ------
        InvalidError
            If the store does not record how ``features`` were made.
        MismatchError
            If the extractor would make other values than the store holds of the same features.
        NotFoundError
            If the frames do not exist.
        """
        from kpstore.ingest.live import asked_extractor, live_backend

        made = asked_extractor(self, extractor, features, options)
        place = folder_of(self.location, "root=") if root is None else Path(root)
        backend = live_backend(self._backend, self, made, place, device)
        return type(self)(backend, self.snapshot, cache="off", check=self.check)

    def _complete(
        self,
        missing: str,
        compute: Compute | None,
        features: str | Sequence[str],
        recipe: str | None = None,
    ) -> tuple[Self, Any]:
        """Return the store to read from, and its policy for missing rows without ``"compute"``.

        Parameters
        ----------
        recipe : makes ``features`` that the store does not have.
        """
        if missing != "compute":
            if compute is not None:
                raise InvalidError(f"compute= is for missing='compute', found missing={missing!r}")
            return self, missing
        given = dict(compute or {})
        if recipe is not None and features not in self.features:
            given.setdefault("extractor", recipe)
        return self.computed(features=features, **given), "nan"

    def _view(
        self,
        kind: Callable[..., V],
        features: str | Sequence[str],
        missing: str,
        options: ViewOptions,
        recipe: str | None = None,
        /,
        **own: Any,
    ) -> V:
        """Return a view of features; ``own`` are the parameters that only this kind has."""
        store, policy = self._complete(missing, options.pop("compute", None), features, recipe)
        return kind(store, missing=policy, **own, **options)

    def video(
        self, video_id: str, *, missing: Policy = "nan", compute: Compute | None = None
    ) -> Video:
        """Return one video; ``video["keypoints"]`` reads its rows of a feature.

        Parameters
        ----------
        missing : what to do with rows that failed or are not extracted yet: ``"nan"`` keeps them as
            missing values, ``"skip"`` leaves them out, ``"error"`` refuses to read the array,
            ``"compute"`` computes those not extracted yet when they are read (:meth:`computed`).
        compute : for ``"compute"``, keyword arguments of :meth:`computed`.

        Raises
        ------
        NotFoundError
            If the store has no such video; the message names similar ids.
        """
        store, policy = self._complete(missing, compute, tuple(self.described))
        return Video(store, store.index.position(video_id), policy)

    def frames(
        self,
        features: str | Sequence[str],
        *,
        missing: Policy = "nan",
        **options: Unpack[ViewOptions],
    ) -> FrameView:
        """Return single frames as a data set for PyTorch.

        See :class:`kpstore.views.frames.FrameView`; ``options`` are those of :class:`ViewOptions`.
        """
        from kpstore.views.frames import FrameView

        return self._view(FrameView, features, missing, options, features=features)

    def clips(
        self,
        features: str | Sequence[str],
        length: int,
        stride: int | None = None,
        *,
        short: Short = "skip",
        missing: Policy = "nan",
        **options: Unpack[ViewOptions],
    ) -> ClipView:
        """Return windows of ``length`` consecutive frames.

        See :class:`kpstore.views.clips.ClipView`; ``options`` are those of :class:`ViewOptions`.
        """
        from kpstore.views.clips import ClipView

        own = {"length": length, "stride": stride, "short": short}
        return self._view(ClipView, features, missing, options, features=features, **own)

    def whole_videos(
        self,
        features: str | Sequence[str],
        *,
        missing: Policy = "nan",
        **options: Unpack[ViewOptions],
    ) -> VideoView:
        """Return whole videos, padded in batches.

        See :class:`kpstore.views.whole_videos.VideoView`; ``options`` are those of
        :class:`ViewOptions`.
        """
        from kpstore.views.whole_videos import VideoView

        return self._view(VideoView, features, missing, options, features=features)

    def face_keypoints(
        self,
        *,
        feature: str = "keypoints",
        normalize: Normalize = "minmax",
        missing: MissingFace | Literal["compute"] = "skip",
        **options: Unpack[ViewOptions],
    ) -> FaceKeypointView:
        """Return the normalised 68 face points.

        See :class:`kpstore.views.face_keypoints.FaceKeypointView`; ``options`` are those of
        :class:`ViewOptions`.
        """
        from kpstore.views.face_keypoints import FaceKeypointView

        own = {"feature": feature, "normalize": normalize}
        return self._view(FaceKeypointView, feature, missing, options, **own)

    def skeletons(
        self,
        *,
        feature: str = "keypoints",
        size: int = 256,
        style: StyleName | SkeletonStyle = "kpstore",
        pixels: Pixels = "float32",
        fill: float = 0.0,
        normalize: Literal["minmax"] | tuple[ArrayLike, ArrayLike] | None = None,
        missing: Policy = "skip",
        **options: Unpack[ViewOptions],
    ) -> SkeletonView:
        """Return keypoints and pictures of their skeletons.

        See :class:`kpstore.views.skeletons.SkeletonView`; ``options`` are those of
        :class:`ViewOptions`.
        """
        from kpstore.views.skeletons import SkeletonView

        drawn = {"size": size, "style": style, "pixels": pixels}
        own = {"feature": feature, "fill": fill, "normalize": normalize, **drawn}
        return self._view(SkeletonView, feature, missing, options, **own)

    def faces(
        self,
        *,
        expect_model: str | None = None,
        target: str | None = None,
        min_angle: float | None = None,
        max_angle: float | None = None,
        missing: Policy = "skip",
        **options: Unpack[ViewOptions],
    ) -> FaceView:
        """Return frames of persons paired with their frontal faces.

        See :class:`kpstore.views.people.FaceView`; ``options`` are those of :class:`ViewOptions`.
        """
        from kpstore.views.people import FaceView

        own = {"expect_model": expect_model, "target": target}
        angles = {"min_angle": min_angle, "max_angle": max_angle}
        return self._view(FaceView, "landmarks_2d", missing, options, FACES, **own, **angles)

    def lips(
        self,
        *,
        feature: str = LIP_FEATURE,
        missing: Policy = "error",
        **options: Unpack[ViewOptions],
    ) -> LipView:
        """Return lip embeddings of whole utterances.

        See :class:`kpstore.views.lips.LipView`; ``options`` are those of :class:`ViewOptions`.
        """
        from kpstore.views.lips import LipView

        return self._view(LipView, feature, missing, options, LIP_FEATURE, feature=feature)

    def to_dask(
        self, name: str, chunks: chunked.Rows | Mapping[str, chunked.Rows] | None = None
    ) -> da.Array:
        """Return an array as a Dask array, in stored chunks by default.

        See :func:`kpstore.store.chunked.to_dask`.
        """
        return chunked.to_dask(self, name, chunks)

    def statistics(
        self,
        feature: str = "keypoints",
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        workers: int | None = None,
    ) -> Statistics:
        """Return count, extremes, mean, deviation and quantiles by part and coordinate.

        They are measured once and kept; see :func:`kpstore.inspect.statistics.statistics`.
        """
        from kpstore.inspect.statistics import statistics

        return statistics(self, feature, split=split, videos=videos, workers=workers)

    def check_splits(
        self, *, feature: str | None = None, signer: str | None = None, signers: bool = True
    ) -> SplitCheck:
        """Return what splits have in common.

        See :func:`kpstore.inspect.leakage.check_splits`.
        """
        from kpstore.inspect.leakage import check_splits

        return check_splits(self, feature=feature, signer=signer, signers=signers)

    def to_xarray(
        self,
        *,
        split: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Return splits and features as a lazy xarray data set.

        See :func:`kpstore.store.labelled.to_xarray`.
        """
        # Imported here, as xarray takes as long to import as everything else.
        from kpstore.store.labelled import to_xarray

        return to_xarray(self, split=split, features=features)


def open(
    path: str | os.PathLike[str],
    at: history.At = None,
    mode: Mode = "r",
    cache: str | os.PathLike[str] = "auto",
    check: Check = "first",
) -> Store:
    """Open a version of a store; it never changes, whatever other processes write.

    Parameters
    ----------
    path : directory of the store.
    at : a tag, a branch, a snapshot id or a time (``datetime`` or ISO text); the newest version by
        default.
    mode : ``"r"`` to read, ``"a"`` to allow transactions and tags as well.
    cache : folder for decoded copies of compressed arrays that are read in random order. Chunks of
        uncompressed local stores are mapped and need none. ``"auto"`` is ``$KPSTORE_CACHE`` or
        ``~/.cache/kpstore``, of at most ``$KPSTORE_CACHE_GB`` (100); ``"off"`` disables it.
    check : when chunks are compared with their checksums, so that damage on the disk is an error
        and not a wrong number. ``"first"`` checks each chunk when this process first maps or
        decodes it; ``"always"`` maps none, and checks each one whenever it is read from its file;
        ``"never"`` does not check, except what is copied, kept or trained on (merge, export,
        statistics, …), which is always read as with ``"always"``. Stores of format 1 have checksums
        only inside their chunks: two chunks that changed places go unnoticed there.

    Raises
    ------
    NotFoundError
        If the path or the version does not exist.
    InvalidError
        If the path is not a store.
    CorruptError
        If the store's versions are damaged; later, when a damaged chunk is read.
    """
    if not os.fspath(cache):
        raise InvalidError("cache='': use 'auto', 'off' or a folder")
    return Store.open(path_text(path), at, mode, path_text(cache), check)


def create(path: str | os.PathLike[str], *, name: str = "") -> Store:
    """Create an empty store and open it for writing.

    Parameters
    ----------
    name : name of the data set; the last part of the path by default.

    Raises
    ------
    ExistsError
        If the path exists.
    """
    location = without_scheme(path_text(path))
    own = visible(os.path.basename(location.partition("?")[0].rstrip("/")))
    named = own if isinstance(name, str) and not name else name
    return Store.create(location, name=named, kpstore_version=__version__)


def diff(old: Store, new: Store) -> VersionDiff:
    """Return what changed between two versions: videos, features and rows.

    See :mod:`kpstore.inspect.compare`.
    """
    for store in (old, new):
        if not isinstance(store, BaseStore):
            raise InvalidError(f"diff compares open stores, found {shown(store)}; see kpstore.open")
    from kpstore.inspect.compare import diff as compared

    return compared(old, new)


def repair(path: str | os.PathLike[str], *, dry_run: bool = False) -> Repair:
    """Make damaged videos of the newest version pending, so that an ingest extracts them again.

    The extracted rows equal those of an undisturbed run, bit by bit. Older versions keep their
    damage. See :mod:`kpstore.store.repair`.

    Parameters
    ----------
    dry_run : report what would be done, and write nothing.

    Returns
    -------
    Repair
        What is damaged, which videos of which features are now pending, and what cannot be
        repaired.

    Raises
    ------
    NotFoundError
        If the path is not a store.
    CorruptError
        If the newest version cannot be opened; the message names one that can.
    BusyError
        If another process is writing the store.
    """
    from kpstore.store.repair import repair as repaired

    return repaired(path_text(path), dry_run=dry_run)


__all__ = ["Store", "create", "diff", "open", "repair"]
