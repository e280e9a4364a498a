"""What users call: open a store, make one, look at it through views."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from numpy.typing import ArrayLike

from kpstore._version import __version__
from kpstore.errors import InvalidError
from kpstore.inspect import compare, display
from kpstore.inspect.leakage import SplitCheck, check_splits
from kpstore.inspect.statistics import Statistics, statistics
from kpstore.render.raster import SkeletonStyle, StyleName
from kpstore.schema.lips import LIP_FEATURE
from kpstore.store import chunked, history
from kpstore.store.arrays import Mode
from kpstore.store.checked import Check
from kpstore.store.repair import Repair
from kpstore.store.repair import repair as repair_store
from kpstore.store.store import BaseStore
from kpstore.store.video import Video
from kpstore.views.base import Missing, Selection, Transform, View
from kpstore.views.batch_sampler import POOL_MIB, BatchSampler
from kpstore.views.clips import ClipView, Short
from kpstore.views.face_keypoints import FaceKeypointView, MissingFace, Normalize
from kpstore.views.frames import FrameView
from kpstore.views.lips import LipView
from kpstore.views.loader import BatchDataset, Collate, Loader
from kpstore.views.people import FaceView
from kpstore.views.sampling import Shuffle
from kpstore.views.skeletons import Pixels, SkeletonView
from kpstore.views.whole_videos import VideoView

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

    from kpstore.extractors.base import AnyExtractor


Policy = Missing | Literal["compute"]
"""What becomes of rows that are missing.

``"compute"`` makes those that are not extracted yet as they are read.
"""
Compute = Mapping[str, Any]
"""Keyword arguments of :meth:`Store.computed`, such as ``root=`` and ``weights=``."""
FACES = "faces"
"""Recipe for a store of persons that holds no more than paths."""


class Store(BaseStore):
    """One immutable version of a store, and the views on it. :func:`open` makes one."""

    def __repr__(self) -> str:
        return super().__repr__() if self.is_closed else display.to_text(self)

    def _repr_html_(self) -> str | None:
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
        """Return the same version, in which what is missing is computed when it is read.

        Nothing is stored.

        For a look: each read runs the model. ``kpstore ingest features`` does it once and for all.

        Parameters
        ----------
        extractor : a recipe, or an extractor that is not open; by default that with which
            ``features`` were made, in the way that the store has on record.
        features : names, for the default.
        root : what the store's paths are relative to; by default the folder in which it lies.
        device : where the model runs, ``"cpu"`` or ``"cuda:0"``.
        options : of the recipe, such as ``weights=``.

        Returns
        -------
        Store
            Read-only. A video that cannot be computed (no such file, no face) reads as failed, with
            the reason in the log.

        Raises
        ------
        InvalidError
            If the store has no record of how to make ``features``.
        MismatchError
            If the extractor makes other numbers than those that the store holds of the same
            features.
        NotFoundError
            If the frames are not there.
        """
        from kpstore.extractors.registry import make_extractor, recorded
        from kpstore.ingest.live import live_backend

        if extractor is None or isinstance(extractor, str):
            names = [features] if isinstance(features, str) else list(features or self.features)
            known = {name: self.features[name] for name in names if name in self.features}
            recipe, made_with = recorded(
                {name: stored.spec for name, stored in known.items()},
                {name: stored.provenance for name, stored in known.items()},
                extractor,
            )
            extractor = make_extractor(recipe, **{**made_with, **options})
        elif options:
            raise InvalidError(
                f"options {sorted(options)} are for a recipe; this extractor is made already"
            )
        place = Path(self.location).absolute().parent if root is None else Path(root)
        backend = live_backend(self._backend, self, extractor, place, device)
        return type(self)(backend, self.snapshot, cache="off", check=self.check)

    def _complete(
        self,
        missing: Any,
        compute: Compute | None,
        features: str | Sequence[str],
        recipe: str | None = None,
    ) -> tuple[Self, Any]:
        """Return the store that a view reads, and its policy: with ``"compute"`` nothing is missing but what fails."""
        if missing != "compute":
            if compute is not None:
                raise InvalidError(f"compute= is for missing='compute', found missing={missing!r}")
            return self, missing
        given = dict(compute or {})
        if recipe is not None and features not in self.features:
            given.setdefault("extractor", recipe)
        return self.computed(features=features, **given), "nan"

    def video(
        self, video_id: str, *, missing: Policy = "nan", compute: Compute | None = None
    ) -> Video:
        """Return one video; ``video["keypoints"]`` reads its rows of a feature.

        Parameters
        ----------
        missing : what becomes of rows that failed or are not extracted yet: ``"nan"`` keeps them as
            missing values, ``"skip"`` leaves them out, ``"error"`` refuses to read the array,
            ``"compute"`` makes what is not extracted yet when it is read (see :meth:`computed`).
        compute : for ``"compute"``, keyword arguments of :meth:`computed`.

        Raises
        ------
        NotFoundError
            If there is no such video; the message has the nearest ids.
        """
        store, policy = self._complete(missing, compute, tuple(self.features))
        return Video(store, store.index.position(video_id), policy)

    def frames(
        self,
        features: str | Sequence[str],
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        where: str | Mapping[str, Any] | None = None,
        missing: Policy = "nan",
        compute: Compute | None = None,
        transform: Transform | None = None,
    ) -> FrameView:
        """Return single frames as a data set for PyTorch.

        See :class:`kpstore.views.frames.FrameView`.
        """
        store, policy = self._complete(missing, compute, features)
        return FrameView(
            store,
            features,
            split=split,
            videos=videos,
            where=where,
            missing=policy,
            transform=transform,
        )

    def clips(
        self,
        features: str | Sequence[str],
        length: int,
        stride: int | None = None,
        *,
        short: Short = "skip",
        missing: Policy = "nan",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> ClipView:
        """Return windows of ``length`` consecutive frames.

        See :class:`kpstore.views.clips.ClipView`.
        """
        store, policy = self._complete(missing, compute, features)
        return ClipView(
            store,
            features,
            length,
            stride,
            short=short,
            missing=policy,
            transform=transform,
            **selection,
        )

    def whole_videos(
        self,
        features: str | Sequence[str],
        *,
        missing: Policy = "nan",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> VideoView:
        """Return whole videos, padded in batches.

        See :class:`kpstore.views.whole_videos.VideoView`.
        """
        store, policy = self._complete(missing, compute, features)
        return VideoView(store, features, missing=policy, transform=transform, **selection)

    def face_keypoints(
        self,
        *,
        feature: str = "keypoints",
        normalize: Normalize = "minmax",
        missing: MissingFace | Literal["compute"] = "skip",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> FaceKeypointView:
        """Return the 68 face points, normalised.

        See :class:`kpstore.views.face_keypoints.FaceKeypointView`.
        """
        store, policy = self._complete(missing, compute, feature)
        return FaceKeypointView(
            store,
            feature=feature,
            normalize=normalize,
            missing=policy,
            transform=transform,
            **selection,
        )

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
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> SkeletonView:
        """Return keypoints and the pictures that they draw.

        See :class:`kpstore.views.skeletons.SkeletonView`.
        """
        store, policy = self._complete(missing, compute, feature)
        return SkeletonView(
            store,
            feature=feature,
            size=size,
            style=style,
            pixels=pixels,
            fill=fill,
            normalize=normalize,
            missing=policy,
            transform=transform,
            **selection,
        )

    def faces(
        self,
        *,
        expect_model: str | None = None,
        target: str | None = None,
        min_angle: float | None = None,
        max_angle: float | None = None,
        missing: Policy = "skip",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> FaceView:
        """Return frames of persons beside their frontal faces.

        See :class:`kpstore.views.people.FaceView`.
        """
        store, policy = self._complete(missing, compute, "landmarks_2d", FACES)
        return FaceView(
            store,
            expect_model=expect_model,
            target=target,
            min_angle=min_angle,
            max_angle=max_angle,
            missing=policy,
            transform=transform,
            **selection,
        )

    def lips(
        self,
        *,
        feature: str = "lip_resnet18",
        missing: Policy = "error",
        compute: Compute | None = None,
        transform: Transform | None = None,
        **selection: Unpack[Selection],
    ) -> LipView:
        """Return lip embeddings of whole utterances; see :class:`kpstore.views.lips.LipView`."""
        store, policy = self._complete(missing, compute, feature, LIP_FEATURE)
        return LipView(store, feature=feature, missing=policy, transform=transform, **selection)

    def to_dask(
        self, name: str, chunks: chunked.Rows | Mapping[str, chunked.Rows] | None = None
    ) -> da.Array:
        """Return an array as a Dask array, in stored chunks by default.

        See :func:`kpstore.store.chunked.to_dask`.
        """
        array: da.Array = chunked.to_dask(self, name, chunks)
        return array

    def statistics(
        self,
        feature: str = "keypoints",
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        workers: int | None = None,
    ) -> Statistics:
        """Return count, extremes, mean, deviation and quantiles by part and coordinate.

        Read once, then kept for this version; see :func:`kpstore.inspect.statistics.statistics`.
        """
        return statistics(self, feature, split=split, videos=videos, workers=workers)

    def check_splits(
        self, *, feature: str | None = None, signer: str | None = None, signers: bool = True
    ) -> SplitCheck:
        """Return what two splits have in common.

        See :func:`kpstore.inspect.leakage.check_splits`.
        """
        return check_splits(self, feature=feature, signer=signer, signers=signers)

    def to_xarray(
        self,
        *,
        split: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Return a lazy, labelled data set of splits and features.

        See :func:`kpstore.store.labelled.to_xarray`.
        """
        from kpstore.store.labelled import (
            to_xarray,
        )  # xarray takes as long to import as all the rest

        return to_xarray(self, split=split, features=features)


def open(
    path: str | os.PathLike[str],
    at: history.At = None,
    mode: Mode = "r",
    cache: str | os.PathLike[str] = "auto",
    check: Check = "first",
) -> Store:
    """Open a version of a store; it never changes, whatever others write meanwhile.

    Parameters
    ----------
    path : directory of the store.
    at : a tag, a branch, a snapshot id or a time (``datetime`` or ISO text); the newest version by
        default.
    mode : ``"r"`` to read, ``"a"`` to allow transactions and tags as well.
    cache : folder for decoded copies of arrays that are read in random order and are not in
        memory's reach already (uncompressed local stores are: their chunks are mapped as they lie).
        ``"auto"`` is ``$KPSTORE_CACHE`` or ``~/.cache/kpstore``, held to ``$KPSTORE_CACHE_GB``
        (100); ``"off"`` is none.
    check : when chunks are compared with what was committed at their place, so that damage on the
        disk is an error instead of a wrong number. ``"first"`` checks each chunk when this process
        first maps or decodes it. ``"always"`` checks whenever a chunk is decoded, and mapped chunks
        before every read. ``"never"`` does not check; what is copied, kept or trained on (merge,
        export, statistics, …) is checked all the same. Stores of format 1 hold checksums inside of
        their chunks alone: two chunks that changed places are not noticed there.

    Raises
    ------
    NotFoundError
        If there is no store, or no such version.
    InvalidError
        If something else is there.
    CorruptError
        If what the store says of its versions is damaged; and at any later read of a chunk that is.
    """
    if not os.fspath(cache):
        raise InvalidError("cache='': use 'auto', 'off' or a folder")
    return Store.open(os.fspath(path), at, mode, os.fspath(cache), check)


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
    return Store.create(
        location, name=name or os.path.basename(location.rstrip("/")), kpstore_version=__version__
    )


def diff(old: Store, new: Store) -> compare.VersionDiff:
    """Return what changed between two versions: videos, features and rows.

    See :mod:`kpstore.inspect.compare`.
    """
    return compare.diff(old, new)


def repair(path: str | os.PathLike[str], *, dry_run: bool = False) -> Repair:
    """Make pending again what is damaged in the newest version of a store.

    See :mod:`kpstore.store.repair`.

    The ordinary ingest then makes just that anew, with the same bits as an undisturbed run. Older
    versions keep their damage.

    Parameters
    ----------
    dry_run : only say what would be done.

    Returns
    -------
    Repair
        What is damaged, which videos of which features are pending now, and what cannot be mended.

    Raises
    ------
    NotFoundError
        If there is no store.
    CorruptError
        If the newest version cannot be opened at all; the message names one that can.
    BusyError
        If another process is writing the store.
    """
    return repair_store(os.fspath(path), dry_run=dry_run)


def loader(
    view: View,
    batch_size: int | None = None,
    *,
    shuffle: Shuffle = "block",
    seed: int = 0,
    epoch: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = False,
    pad: bool = True,
    batch_frames: int | None = None,
    workers: int = 0,
    threads: int = 2,
    prefetch: int = 64,
    pin_memory: bool = False,
    tensors: bool = True,
    collate: Collate | None = None,
    pool_mib: float = POOL_MIB,
) -> Loader:
    """Return what a training loop iterates over: batches of a view, read ahead, an epoch each time.

    The order follows from ``seed``, the epoch, ``shuffle``, ``pool_mib`` and the view alone: it is
    the same with any number of threads and workers, with and without a cache. Every ``iter()``
    starts the next epoch.

    Parameters
    ----------
    batch_size : samples per batch; with ``batch_frames`` a limit, and not needed.
    shuffle : ``"block"`` reads storage block by block and mixes as many blocks as ``pool_mib``
        holds, which hardly differs from a full shuffle; see
        :class:`kpstore.views.sampling.BlockShuffle`. ``"full"`` draws from all samples: slow from a
        compressed store without a cache. None keeps the view's order.
    seed, epoch : of the order; ``epoch`` is the first.
    rank, world_size : this process among those that train together; by default as
        ``torch.distributed`` or else ``torchrun`` (``RANK``, ``WORLD_SIZE``) have it when an epoch
        begins. A loader may so be made before a trainer starts its processes.
    drop_last : leaves out the last samples, so that all batches, on all ranks, are full.
    pad : whether ranks get equally many samples, by giving the first few twice;
        :attr:`Loader.padding` says how many. Without it each sample comes exactly once, and some
        ranks have one more than others.
    batch_frames : for samples of different lengths: puts similar ones together, as many as fill so
        many frames when padded to the longest. One that is longer is a batch of its own.
        :attr:`Loader.padding_share` says how much of all batches is padding.
    workers : processes that read, transform and collate; worth while for slow transforms. They are
        started with ``forkserver``, so a script needs ``if __name__ == "__main__":``. The arrays
        are then decoded to the local disk first, unless the store was opened with ``cache="off"``.
    threads : that do so, without ``workers``. 0 reads when a batch is asked for.
    prefetch : batches made ahead, at most.
    pin_memory : whether batches are put where a GPU fetches them faster; nothing without a GPU.
    tensors : whether batches hold tensors; otherwise numpy arrays. Text is a list of str in
        tensors' place.
    collate : makes a batch of a list of samples. Without it, samples of a view with a transform are
        stacked by PyTorch's ``default_collate``, and those of a view without one are never taken
        apart.
    pool_mib : memory for decoded chunks, in MiB, in each process.

    Raises
    ------
    InvalidError
        If a number makes no sense; the message names it.

    Examples
    --------
    >>> loader = kpstore.loader(store.frames("keypoints", split="train"), 256)  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     batch["keypoints"]  # (256, 143, 3) float32

    In PyTorch's own: ``DataLoader(loader.dataset, sampler=loader.sampler, batch_size=None,
    num_workers=2, multiprocessing_context="forkserver")``.
    """
    sampler = BatchSampler(
        view,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        drop_last=drop_last,
        pad=pad,
        batch_frames=batch_frames,
        pool_mib=pool_mib,
    )
    dataset = BatchDataset(view, tensors=tensors, collate=collate, pool_bytes=int(pool_mib * 2**20))
    return Loader(
        sampler, dataset, workers=workers, threads=threads, prefetch=prefetch, pin_memory=pin_memory
    )


__all__ = ["Loader", "Store", "create", "diff", "loader", "open", "repair"]
