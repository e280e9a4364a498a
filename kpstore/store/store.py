"""One version of a store, to read; and the door to its history and to transactions."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore.backends import places
from kpstore.backends.asides import aside_of, left_overs
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Backend, Commit, ReadSession
from kpstore.errors import (
    CorruptError,
    ExistsError,
    InvalidError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from kpstore.schema.failures import Failures
from kpstore.schema.feature import FeatureSpec, Provenance, State
from kpstore.schema.index import VideoIndex, nearest
from kpstore.store import format as fmt
from kpstore.store import html
from kpstore.store.cache import DecodedCache
from kpstore.store.checked import Check, check_policy
from kpstore.store.history import At, check_name, composed, resolve, rollback
from kpstore.store.keys import read_key
from kpstore.store.reader import RowReader
from kpstore.store.transaction import Transaction

if TYPE_CHECKING:
    import pandas as pd

Mode = Literal["r", "a"]


def backend_for(location: str) -> Backend:
    """Return the first backend that claims a location.

    Those of others are asked before kpstore's own.
    """
    for kind in (*plugins.of_others("kpstore.backends"), *places.OWN):
        try:
            is_its_own = kind.claims(location)
        except Exception as error:  # one broken plug-in must not stop everything else
            warnings.warn(
                f"backend {kind!r} cannot say whether {location} is its own: {error}", stacklevel=2
            )
            continue
        if is_its_own:
            backend: Backend = kind(location)
            return backend
    raise UnsupportedError(
        f"{location}: this kpstore reads local stores; object storage is not supported yet"
    )


@contextmanager
def moved_into_place(place: Backend) -> Iterator[Backend]:
    """Give the backend of another place, beside ``place``.

    What is made there moves to ``place`` if no error comes.

    Raises
    ------
    ExistsError
        If the place is taken.
    """
    location = place.location
    if place.exists():
        raise ExistsError(f"{location} already exists; choose another place for the store")
    path = Path(location).resolve()
    aside = backend_for(str(aside_of(path, "building")))
    if "://" in location or type(aside) is not type(
        place
    ):  # the location is no path, or one of another backend
        aside = backend_for(f"{location}.building-{uuid.uuid4().hex[:8]}")
    else:
        for left_over in left_overs(path, "building"):
            backend_for(str(left_over)).remove()
    try:
        yield aside
        aside.move(location)
    finally:
        aside.remove()


@contextmanager
def building(place: Backend, *, name: str, kpstore_version: str) -> Iterator[BaseStore]:
    """Give a new store to fill, which gets its place when the block ends without an error."""
    with moved_into_place(place) as aside:
        yield BaseStore.create(aside, name=name, kpstore_version=kpstore_version)


class FeatureArray:
    """One array of a store, read when indexed.

    ``array[3]``, ``array[10:20]``, ``array[[5, 2]]``, ``array[mask]``, ``array[10:20, :, :2]``
    return what numpy would. It pickles as (store, name); the arrays that reach a process in this
    way share one open store.
    """

    def __init__(self, store: BaseStore, name: str) -> None:
        self._store, self.name = store, name
        self._meta: ArrayMeta = store.reader.meta(name)

    def __reduce__(self) -> tuple[Any, tuple[BaseStore, str]]:
        return _array_of, (self._store, self.name)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        # A version never changes, so nothing of the values need be looked at.
        return "kpstore", self._store.location, self._store.snapshot, self.name

    def __repr__(self) -> str:
        axes = ", ".join(
            f"{dim}: {length}" for dim, length in zip(self.dims, self.shape, strict=True)
        )
        return f"<{self.name} ({axes}) {self._meta.dtype}>"

    def _repr_html_(self) -> str:
        facts = {
            "long_name": "",
            "units": "",
            **self.attrs,
            "dtype": self._meta.dtype,
            "rows per chunk": self.chunk_rows,
        }
        axes = list(zip(self.dims, self.shape, strict=True))
        shown = [
            (key, facts[key])
            for key in ("dtype", "rows per chunk", "units", "long_name")
            if facts[key] != ""
        ]
        return html.block(html.heading(self.name), html.table([*axes, *shown]))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self._meta.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of what reading returns; object (of str) for text."""
        return np.dtype(object if self._meta.dtype == TEXT else self._meta.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dims(self) -> tuple[str, ...]:
        """A name per axis."""
        return self._meta.dims

    @property
    def chunk_rows(self) -> int:
        """Rows per stored chunk."""
        return self._meta.chunk_rows

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes: units, long_name and the like."""
        return self._meta.attrs

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return read_key(self._store.reader, self.name, key)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = self._store.reader.read_slice(self.name, 0, self.shape[0])
        return values if dtype is None else values.astype(dtype)


_KEPT_OPEN = 8
_kept_open: dict[tuple[Any, ...], BaseStore] = {}
"""Stores that came to this process inside arrays, by version, the newest last."""


def _array_of(store: BaseStore, name: str) -> FeatureArray:
    """Return an array of a store that was unpickled, or of the one already open for the same version.

    A Dask worker gets an array with every task; to open the store for each would cost more than to
    read a chunk.
    """
    # Only single steps on the dict, which need no lock: a lock that another thread holds would
    # never open after a fork.
    kept = _kept_open.setdefault((*store.identity, os.getpid()), store)
    for key in list(_kept_open)[:-_KEPT_OPEN]:
        _kept_open.pop(key, None)
    return kept[name]


@dataclass(frozen=True)
class Failure:
    """What failed and why: a frame, or with ``frame`` None a whole video."""

    video_id: str
    frame: int | None
    image_path: str
    reason: str


def listed(video_id: str, failures: Failures, path_of: Callable[[int], str]) -> Iterator[Failure]:
    """Yield what failed of a video, one by one.

    Parameters
    ----------
    path_of : returns the path of a frame, by its number.
    """
    if failures.video is not None:
        yield Failure(video_id, None, "", failures.video)
    for frame, reason in failures.frames.items():
        yield Failure(video_id, frame, path_of(frame), reason)


class Video:
    """One video of a store; ``video["keypoints"]`` reads its rows of a feature, (T, …).

    Parameters
    ----------
    missing : what becomes of rows that failed or are not extracted yet: ``"nan"`` keeps, ``"skip"``
        leaves them out, ``"error"`` refuses to read.
    """

    def __init__(self, store: BaseStore, position: int, missing: str = "nan") -> None:
        if missing not in ("nan", "skip", "error"):
            raise InvalidError(f"missing={missing!r}: use 'nan' or 'skip' or 'error' or 'compute'")
        self._store, self.position, self._missing = store, position, missing
        self.id: str = store.index.ids[position]
        self.split: str = store.index.splits[position]
        self.rows = store.index.rows(position)
        """This video's rows on the frame axis."""

    def __repr__(self) -> str:
        return f"<Video {self.id!r}, split {self.split!r}, {self.n_frames} frames>"

    def _repr_html_(self) -> str:
        facts: dict[str, str | int] = {
            "split": self.split,
            "frames": self.n_frames,
            "frames per second": f"{self.fps:g}",
        }
        picture = {"width × height": f"{self.width} × {self.height}"} if self.width else {}
        states = {f"{name} is": self.state(name).name.lower() for name in self._store.features}
        rows: dict[str, str | int] = {**facts, **picture, **self.annotations, **states}
        return html.block(html.heading(self.id), html.table(list(rows.items())))

    def __len__(self) -> int:
        return self.n_frames

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        n_frames: int = self.rows.stop - self.rows.start
        return n_frames

    def _scalar(self, name: str) -> Any:
        return self._store[name][self.position]

    @property
    def fps(self) -> float:
        """Frames per second; NaN if unknown."""
        return float(self._scalar("fps"))

    @property
    def width(self) -> int:
        """Frame width in pixels; 0 if unknown."""
        return int(self._scalar("width"))

    @property
    def height(self) -> int:
        """Frame height in pixels; 0 if unknown."""
        return int(self._scalar("height"))

    @property
    def annotations(self) -> dict[str, str]:
        """Text about this video, such as speaker and gloss."""
        return {name: self._scalar(name) for name in self._store.annotation_names}

    @property
    def image_paths(self) -> list[str]:
        """One path per frame, relative to the data set."""
        return list(self._store[fmt.IMAGE_PATH][self.rows])

    def image_path(self, frame: int) -> str:
        """Return the path of a frame, relative to the data set.

        ``""`` for a frame that there is not.
        """
        return (
            str(self._store[fmt.IMAGE_PATH][self.rows.start + frame])
            if 0 <= frame < self.n_frames
            else ""
        )

    def state(self, feature: str) -> State:
        """Return how far this video has come for a feature."""
        fmt.check_feature(self._store.features, feature)
        return State(int(self._scalar(fmt.state_name(feature))))

    def __getitem__(self, name: str) -> NDArray[Any]:
        array = self._store[name]
        axis = array.dims[0]
        if axis not in ("frame", "video"):
            mine = [
                known for known in self._store if self._store[known].dims[0] in ("frame", "video")
            ]
            hint = nearest(name, mine) or "those have to be read from the store"
            raise NotFoundError(
                f"{name!r} has a row for each {axis}, not for frames or videos; {hint}"
            )
        framewise = axis == "frame"
        values: NDArray[Any] = array[self.rows] if framewise else array[self.position]
        if self._missing == "nan":
            return values
        usable = self._usable(name, framewise)
        if self._missing == "error" and not usable.all():
            raise NotFoundError(
                f"{int((~usable).sum())} of {usable.size} rows of {name!r} of video {self.id!r} "
                "failed or are not extracted yet; use missing='skip' to leave them out or "
                "missing='nan' to keep them"
            )
        return values[usable] if framewise else values

    def _usable(self, name: str, framewise: bool) -> NDArray[np.bool_]:
        """Return which rows of an array are done, (T,) or (1,) bool.

        All, for an array of no feature.
        """
        owners = (
            feature
            for feature, stored in self._store.features.items()
            if name in stored.spec.arrays
        )
        feature = next(owners, None)
        if feature is None:
            return np.ones(self.n_frames if framewise else 1, dtype=bool)
        status = (
            self._store[fmt.status_name(feature)][self.rows] if framewise else [self.state(feature)]
        )
        usable: NDArray[np.bool_] = np.asarray(status) == State.DONE
        return usable


class BaseStore:
    """One immutable version of a store; :class:`kpstore.Store` adds the views on it.

    It pickles as its place and how it is read.

    Parameters
    ----------
    backend : where the store is.
    snapshot : id of the version.
    mode : ``"r"``, or ``"a"`` to allow transactions and tags.
    cache : where decoded arrays are kept: ``"auto"``, ``"off"`` or a folder; see
        :func:`kpstore.open`.
    check : when chunks are checked: ``"first"``, ``"always"`` or ``"never"``; see
        :func:`kpstore.open`.
    """

    def __init__(
        self,
        backend: Backend,
        snapshot: str,
        mode: Mode = "r",
        cache: str = "auto",
        check: Check = "first",
    ) -> None:
        self._backend, self.snapshot, self.mode, self._cache, self.check = (
            backend,
            snapshot,
            mode,
            cache,
            check,
        )
        self._closed = False

    @classmethod
    def open(
        cls,
        location: str | Backend,
        at: At = None,
        mode: Mode = "r",
        cache: str = "auto",
        check: Check = "first",
    ) -> Self:
        """Open a store; see :func:`kpstore.open`."""
        if mode not in ("r", "a"):
            raise InvalidError(
                f"mode {mode!r}: use 'r' to read or 'a' to add; kpstore.create() makes a new store"
            )
        check_policy(check)
        backend = backend_for(location) if isinstance(location, str) else location
        store = cls(backend, resolve(backend, at), mode, cache, check)
        store._about  # noqa: B018 - says now, not at the first read, that this is no store of ours
        return store

    @classmethod
    def create(cls, location: str | Backend, *, name: str, kpstore_version: str) -> Self:
        """Make an empty store; see :func:`kpstore.create`."""
        backend = backend_for(location) if isinstance(location, str) else location
        attrs = fmt.root_attrs(
            name, datetime.now(UTC).isoformat(timespec="seconds"), kpstore_version
        )
        return cls(backend, backend.create(attrs, f"created {name}"), "a")

    def __reduce__(self) -> tuple[type[BaseStore], tuple[Backend, str, Mode, str, Check]]:
        return type(self), (self._backend, self.snapshot, self.mode, self._cache, self.check)

    def checked(self) -> Self:
        """Return this version read with checks: what is copied, kept or taught to a model has to be sound."""
        if self.check != "never":
            return self
        return type(self)(self._backend, self.snapshot, self.mode, self._cache, "first")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for objects that read the same version in the same way."""
        return type(self), self.location, self.snapshot, self.mode, self._cache, self.check

    def __repr__(self) -> str:
        if self._closed:
            return f"<closed {type(self).__name__} {self.location}>"
        frames, videos = self.index.total_frames, len(self.index)
        held = f"{videos} videos, {frames} frames, {sorted(self.features)}"
        return f"<{type(self).__name__} {self.location} at {self.snapshot}: {held}>"

    @property
    def location(self) -> str:
        """Path or address."""
        return self._backend.location

    @property
    def backend(self) -> Backend:
        """Where the store is; what kpstore itself builds upon."""
        return self._backend

    @cached_property
    def session(self) -> ReadSession:
        """The arrays of this version."""
        if self._closed:
            raise InvalidError(f"{self.location} was closed; open it again")
        return self._backend.session(self.snapshot)

    @property
    def decoded_cache(self) -> DecodedCache | None:
        """Where decoded arrays and statistics are kept; None if that was turned off."""
        folders: dict[str, Path | None] = {"auto": None}
        return (
            None
            if self._cache == "off"
            else DecodedCache(folders.get(self._cache, Path(self._cache)))
        )

    @cached_property
    def reader(self) -> RowReader:
        """What reads rows of this version, and keeps what it has decoded."""
        return RowReader(
            self.session, cache=self.decoded_cache, check=self.check, location=self.location
        )

    @cached_property
    def _about(self) -> dict[str, Any]:
        return fmt.read_root(self.session, self.location)

    # -- what is in it -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the data set."""
        return str(self._about["name"])

    @property
    def lacks(self) -> str:
        """What a store of an older format does without, in one line; empty if that is nothing."""
        return fmt.lacks(self._about)

    @property
    def annotation_names(self) -> list[str]:
        """Names of the text columns about videos."""
        return list(self._about["annotations"])

    @property
    def own_splits(self) -> bool:
        """Whether splits were set by hand (``tx.set_splits``), so that they need not be those of the data set."""
        return bool(self._about.get(fmt.OWN_SPLITS, False))

    @cached_property
    def features(self) -> Mapping[str, fmt.StoredFeature]:
        """Features by name: ``.spec`` says what one is, ``.provenance`` how it was made."""
        return fmt.read_features(self._about)

    @cached_property
    def index(self) -> VideoIndex:
        """Ids, splits and lengths of all videos, and where their frames lie."""
        names = self.session.names()
        if "video_id" not in names:
            empty = np.empty(0, dtype=object)
            return VideoIndex(empty, empty, np.empty(0, dtype=np.int64))
        return VideoIndex(
            *(np.asarray(FeatureArray(self, name)) for name in ("video_id", "split", "n_frames"))
        )

    @property
    def splits(self) -> list[str]:
        """Names of the splits in storage order."""
        return self.index.split_names()

    @property
    def videos(self) -> pd.DataFrame:
        """A table of the videos: one row each, indexed by id, with a ``<feature>_state`` column per feature."""
        import pandas as pd

        columns: dict[str, Any] = {"split": self.index.splits, "n_frames": self.index.n_frames}
        for name in ("fps", "width", "height", *self.annotation_names) if len(self.index) else ():
            columns[name] = self[name][:]
        for name in self.features:
            meanings = [state.name.lower() for state in State]
            columns[fmt.state_name(name)] = pd.Categorical.from_codes(
                self.states(name).astype(np.int8), meanings
            )
        return pd.DataFrame(columns, index=pd.Index(self.index.ids, name="video_id"))

    def states(self, feature: str) -> NDArray[np.uint8]:
        """Return how far each video has come for a feature, (videos,) uint8 of :class:`State`."""
        fmt.check_feature(self.features, feature)
        return np.asarray(self[fmt.state_name(feature)])

    def failures(self, feature: str) -> list[Failure]:
        """Return every frame and video that failed for a feature, in storage order."""
        fmt.check_feature(self.features, feature)
        return list(self._iter_failures(feature))

    def _iter_failures(self, feature: str) -> Iterator[Failure]:
        texts = np.asarray(self[fmt.failure_name(feature)])
        for position in np.flatnonzero(texts != "").tolist():
            video = Video(self, position)
            failures = self._read_failures(feature, position, texts[position])
            yield from listed(video.id, failures, video.image_path)

    def failures_of(self, feature: str, position: int) -> Failures:
        """Return what failed for a feature of the video at a position."""
        return self._read_failures(
            feature, position, str(self[fmt.failure_name(feature)][position])
        )

    def _read_failures(self, feature: str, position: int, text: str) -> Failures:
        try:
            return Failures.from_text(text)
        except InvalidError as error:
            name = fmt.failure_name(feature)
            raise CorruptError(
                f"{name}[{position}] in {self.location} is damaged: {error}"
            ) from None

    def __getitem__(self, name: str) -> FeatureArray:
        """Return an array by name: a feature, a companion such as ``"keypoints_detected"``, a column of the index."""
        try:
            return FeatureArray(self, name)
        except NotFoundError:
            fmt.check_feature(self.features, name)
            raise

    def __contains__(self, name: object) -> bool:
        return name in self.session.names()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all arrays: features, their companions and states, columns of the index, labels."""
        return iter(self.session.names())

    def __len__(self) -> int:
        return len(self.session.names())

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def keys(self) -> list[str]:
        """Return the names of all arrays."""
        return list(self)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Let go of files and memory.

        Reading arrays of this object is an error then. Other objects are unaffected.
        """
        self._closed = True
        for opened in ("reader", "session"):
            self.__dict__.pop(opened, None)
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def video(self, video_id: str) -> Video:
        """Return one video; :class:`NotFoundError` with the nearest ids if there is none."""
        return Video(self, self.index.position(video_id))

    def feature(self, name: str) -> FeatureSpec:
        """Return what a feature is; :class:`NotFoundError` lists what there is."""
        return fmt.check_feature(self.features, name).spec

    def provenance(self, name: str) -> Provenance:
        """Return how a feature was made."""
        return fmt.check_feature(self.features, name).provenance

    def read(
        self, name: str, rows: NDArray[np.int64] | Sequence[int], out: Any = None
    ) -> NDArray[Any]:
        """Return rows of an array in the order asked for.

        See :meth:`kpstore.store.reader.RowReader.read`.
        """
        given = np.asarray(rows)
        if given.size and given.dtype.kind not in "iu":
            raise InvalidError(
                f"rows of {name!r} are asked for by whole numbers, found {given.dtype}; masks: "
                "store[…]"
            )
        return self.reader.read(name, given.astype(np.int64, copy=False), out)

    # -- versions ----------------------------------------------------------------------------------

    def history(self) -> list[Commit]:
        """Return this version and all that it builds upon, newest first."""
        return list(self._backend.history(self.snapshot))

    @property
    def tags(self) -> dict[str, str]:
        """Tags and the snapshot ids that they name."""
        return self._backend.tags()

    @property
    def branches(self) -> dict[str, str]:
        """Branches and the ids of their newest versions."""
        return self._backend.branches()

    def at(self, version: At = None) -> Self:
        """Return another version of this store; the newest by default."""
        return type(self)(
            self._backend, resolve(self._backend, version), self.mode, self._cache, self.check
        )

    def transaction(
        self, message: str, *, metadata: Mapping[str, Any] | None = None, branch: str = MAIN
    ) -> Transaction:
        """Start changes that become the branch's next version.

        This object stays at its own, ``store.at()`` is new.
        """
        self._require_write()
        return Transaction(self._backend, message, metadata=metadata, branch=composed(branch))

    def tag(self, name: str) -> None:
        """Name this version for good; :class:`ExistsError` if the name is taken."""
        self._require_write()
        name = check_name("tag", name)
        if name in self.branches:
            raise ExistsError(
                f"{name!r} is a branch of {self.location}; a tag of that name would hide it"
            )
        self._backend.create_tag(name, self.snapshot)

    def delete_tag(self, name: str) -> None:
        """Remove a tag; the version itself stays in the history. Its name is not given out again."""
        self._require_write()
        self._backend.delete_tag(composed(name))

    def branch(self, name: str) -> None:
        """Start a branch at this version."""
        self._require_write()
        name = check_name("branch", name)
        if name in self.tags:
            raise ExistsError(
                f"{name!r} is a tag of {self.location}, which would hide a branch of that name"
            )
        self._backend.create_branch(name, self.snapshot)

    def rollback(self, to: At) -> str:
        """Make an earlier version the newest.

        Return the branch (HDF5: tag) that keeps what was newest until now.
        """
        self._require_write()
        return rollback(self._backend, to)[1]

    def _require_write(self) -> None:
        if self.mode != "a":
            raise ReadOnlyError(
                f"{self.location} was opened for reading; use kpstore.open({self.location!r}, "
                'mode="a")'
            )
