"""One version of a store as named arrays, which are read when they are indexed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kpstore.backends.base import TEXT, ArrayMeta, Backend, ReadSession
from kpstore.backends.optional import CopiesPlace, KeepsCopies
from kpstore.errors import InvalidError, NotFoundError
from kpstore.main_guard import require_main_guard
from kpstore.schema import fields
from kpstore.schema.feature import MASK, FeatureSpec, Provenance
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt
from kpstore.store import shown
from kpstore.store.cache import DecodedCache
from kpstore.store.checked import Check
from kpstore.store.keys import read_key
from kpstore.store.reader import RowReader
from kpstore.store.removed import Removals
from kpstore.visible import visible

Mode = Literal["r", "a"]


class FeatureArray:
    """One array of a store, read when indexed.

    ``array[3]``, ``array[10:20]``, ``array[[5, 2]]``, ``array[mask]`` and ``array[10:20, :, :2]``
    return what numpy would. It pickles as (store, name). Arrays that are unpickled in one process
    share one open store.
    """

    def __init__(self, store: Version, name: str) -> None:
        self._store, self.name = store, _array_name(store, name)
        self._meta: ArrayMeta = store.reader.meta(name)

    def __reduce__(self) -> tuple[Callable[[Version, str], FeatureArray], tuple[Version, str]]:
        return _array_of, (self._store, self.name)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        # A version never changes, so its values need not be hashed.
        return "kpstore", self._store.location, self._store.snapshot, self.name

    def __repr__(self) -> str:
        axes = ", ".join(f"{dim}: {length}" for dim, length in self._axes())
        return visible(f"<{self.name} ({axes}) {self._meta.dtype}>")

    def _repr_html_(self) -> str:
        facts: list[tuple[str, shown.Cell]] = [*self._axes(), ("dtype", self._meta.dtype)]
        facts.append(("rows per chunk", self.chunk_rows))
        facts += [
            (key, str(self.attrs[key])) for key in ("units", "long_name") if self.attrs.get(key)
        ]
        return shown.block(shown.heading(self.name), shown.table(facts))

    def _axes(self) -> list[tuple[str, int]]:
        return list(zip(self.dims, self.shape, strict=True))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self._meta.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the values that reading returns; object (of str) for text."""
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
        """Attributes, such as units and long_name."""
        return self._meta.attrs

    def __getitem__(self, key: object) -> NDArray[Any]:
        return read_key(self._store.reader, self.name, key)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        values = self._store.reader.read_slice(self.name, 0, self.shape[0])
        return values if dtype is None else values.astype(dtype)


def _array_name(store: Version, name: object) -> str:
    """Return a name that an array may have; anything else would be looked for in the backend."""
    if not isinstance(name, str) or not name.isidentifier():
        raise NotFoundError(f"array {fields.shown(name)} not found; there are {sorted(store)}")
    return name


_KEPT_OPEN = 8
_kept_open: dict[tuple[object, ...], Version] = {}
"""Stores of unpickled arrays by version, the newest last."""


def _array_of(store: Version, name: str) -> FeatureArray:
    """Return an array of an unpickled store, or of one of the same version that is open already.

    A Dask worker gets an array with every task, and opening the store takes longer than reading a
    chunk.
    """
    # Single steps on the dict need no lock: a lock that another thread holds would never open
    # after a fork.
    kept = _kept_open.setdefault((*store.identity, os.getpid()), store)
    for key in list(_kept_open)[:-_KEPT_OPEN]:
        _kept_open.pop(key, None)
    return kept[name]


class Version:
    """One immutable version of a store: its features, its list of videos, and its arrays by name.

    It pickles as its location and how it is read.

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
        self._backend, self.snapshot, self.mode = backend, snapshot, mode
        self._cache, self.check = cache, check
        self._closed = False
        self._compared: set[str] = set()

    def __reduce__(self) -> tuple[type[Self], tuple[Backend, str, Mode, str, Check]]:
        if get_spawning_popen() is not None:  # PyTorch's DataLoader starts a worker, say
            require_main_guard("reading a store in processes", "do without them (num_workers=0)")
        return type(self), (self._backend, self.snapshot, self.mode, self._cache, self.check)

    def checked(self) -> Self:
        """Return this version read with checks, for what is copied, kept or used in training."""
        if self.check != "never":
            return self
        return type(self)(self._backend, self.snapshot, self.mode, self._cache, "first")

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for objects that read the same version in the same way."""
        return type(self), self.location, self.snapshot, self.mode, self._cache, self.check

    def __repr__(self) -> str:
        if self._closed:
            return visible(f"<closed {type(self).__name__} {self.location}>")
        frames, videos = self.index.total_frames, len(self.index)
        held = f"{videos} videos, {frames} frames, {sorted(self.features)}"
        return visible(f"<{type(self).__name__} {self.location} at {self.snapshot}: {held}>")

    @property
    def location(self) -> str:
        """Path or address."""
        return self._backend.location

    @property
    def backend(self) -> Backend:
        """Where the store is; for kpstore itself."""
        return self._backend

    @cached_property
    def session(self) -> ReadSession:
        """The arrays of this version, as the backend reads them."""
        if self._closed:
            raise InvalidError(f"{self.location} was closed; open it again")
        if isinstance(self._backend, KeepsCopies):
            cache = self.decoded_cache
            self._backend.keep_copies(
                None if cache is None else CopiesPlace(cache.folder, cache.limit_bytes)
            )
        return self._backend.session(self.snapshot)

    @property
    def decoded_cache(self) -> DecodedCache | None:
        """Where decoded arrays and statistics are kept; None with ``cache="off"``."""
        if self._cache == "off":
            return None
        return DecodedCache(None if self._cache == "auto" else Path(self._cache))

    @cached_property
    def reader(self) -> RowReader:
        """Reads rows of this version, and keeps decoded chunks."""
        return RowReader(
            self.session, cache=self.decoded_cache, check=self.check, location=self.location
        )

    @cached_property
    def _about(self) -> fmt.About:
        return fmt.read_root(self.session, self.location)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def close(self) -> None:
        """Release files and memory.

        Reading arrays of this object is an error afterwards. Other objects are unaffected.
        """
        self._closed = True
        for opened in ("reader", "session"):
            self.__dict__.pop(opened, None)
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- contents ----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the data set."""
        return str(self._about["name"])

    @property
    def lacks(self) -> str:
        """What a store of an older format lacks, in one line; empty for the newest format."""
        return fmt.lacks(self._about)

    @property
    def annotation_names(self) -> list[str]:
        """Names of the text columns about videos."""
        return list(self._about["annotations"])

    @property
    def own_splits(self) -> bool:
        """Whether ``tx.set_splits`` was used, so that splits may differ from the data set's."""
        return self._about.get(fmt.OWN_SPLITS, False)

    @property
    def removed(self) -> Removals:
        """Videos and features that were removed; the videos stay out until they are taken back."""
        return fmt.read_removals(self._about)

    @cached_property
    def described(self) -> Mapping[str, fmt.StoredFeature]:
        """Features as the store describes them, whatever its arrays are; for kpstore itself."""
        return fmt.read_features(self._about)

    @cached_property
    def features(self) -> Mapping[str, fmt.StoredFeature]:
        """Features by name: ``.spec`` says what one is, ``.provenance`` how it was made."""
        self._compare(self.described)
        return self.described

    def feature(self, name: str) -> FeatureSpec:
        """Return the specification of a feature; :class:`NotFoundError` lists the known ones."""
        return self._feature(name).spec

    def provenance(self, name: str) -> Provenance:
        """Return how a feature was made."""
        return self._feature(name).provenance

    def _feature(self, name: str) -> fmt.StoredFeature:
        stored = fmt.check_feature(self.described, name)
        if name not in self._compared:  # those of all features take a while to open
            self._compare({name: stored})
        return stored

    def _compare(self, features: Mapping[str, fmt.StoredFeature]) -> None:
        """Compare features, and what all of them need, with the arrays of this version."""
        wanted = fmt.wanted_metas(features, self.annotation_names)
        fmt.check_arrays(wanted, self.session, self.location)
        self._compared.update(features)

    @cached_property
    def index(self) -> VideoIndex:
        """Ids, splits and lengths of all videos, and where their frames lie."""
        return fmt.read_index(
            self.session, self.location, lambda name: np.asarray(FeatureArray(self, name))
        )

    @property
    def splits(self) -> list[str]:
        """Names of the splits in storage order."""
        return self.index.split_names()

    def __getitem__(self, name: str) -> FeatureArray:
        """Return an array: a feature, a companion (``"keypoints_detected"``) or a column."""
        try:
            return FeatureArray(self, name)
        except NotFoundError:
            fmt.check_feature(self.features, name)
            raise

    def detected(self, feature: str) -> FeatureArray | None:
        """Return the presence mask of a feature, (rows, …) bool; None if it has none."""
        mask = self.feature(feature).companion(MASK)
        return FeatureArray(self, mask) if mask in self else None

    def __contains__(self, name: object) -> bool:
        return name in self.session.names()

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all arrays: features, companions, states, columns and labels."""
        return iter(self.session.names())

    def __len__(self) -> int:
        return len(self.session.names())

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def keys(self) -> list[str]:
        """Return the names of all arrays."""
        return list(self)

    def read(
        self,
        name: str,
        rows: NDArray[np.int64] | Sequence[int],
        out: NDArray[np.generic] | None = None,
    ) -> NDArray[Any]:
        """Return rows of an array in the order asked for.

        See :meth:`kpstore.store.reader.RowReader.read`.
        """
        name, given = _array_name(self, name), np.asarray(rows)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InvalidError(
                f"rows of {name!r} are asked for by whole numbers, found {given.dtype} of shape "
                f"{given.shape}; store[{name!r}][mask] takes masks"
            )
        return self.reader.read(name, given.astype(np.int64, copy=False), out)
