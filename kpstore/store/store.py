"""One version of a store to read, its history, and the start of transactions."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kpstore import plugins
from kpstore.backends import places
from kpstore.backends.asides import aside_of, left_overs
from kpstore.backends.base import MAIN, Backend, Commit
from kpstore.backends.garbage import WORKING, Garbage
from kpstore.backends.object_address import without_scheme
from kpstore.backends.optional import HasAside
from kpstore.errors import (
    CorruptError,
    ExistsError,
    InvalidError,
    ReadOnlyError,
    UnsupportedError,
)
from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.fields import text
from kpstore.store import format as fmt
from kpstore.store.arrays import Mode, Version
from kpstore.store.checked import Check, check_policy
from kpstore.store.history import (
    At,
    check_name,
    collect_garbage,
    composed,
    resolve,
    rollback,
)
from kpstore.store.video import Failure, Video, listed
from kpstore.user_files import path_text
from kpstore.visible import visible

if TYPE_CHECKING:
    import pandas as pd

    from kpstore.store.removal import Removal
    from kpstore.store.transaction import Transaction

# What reading does not need is imported where it is used: opening a store waits for the rest.


def backend_for(location: str) -> Backend:
    """Return the first backend that claims a location, plug-ins before kpstore's own.

    Raises
    ------
    InvalidError
        If no file can have that name.
    UnsupportedError
        If no backend claims it.
    """
    location = without_scheme(path_text(location))
    for kind in (*plugins.of_others("kpstore.backends"), *places.OWN):
        try:
            is_its_own = kind.claims(location)
        except Exception as error:  # one broken plug-in must not stop everything else
            warnings.warn(
                visible(f"backend {kind!r} cannot say whether {location} is its own: {error}"),
                stacklevel=2,
            )
            continue
        if is_its_own:
            backend: Backend = kind(location)
            return backend
    raise UnsupportedError(f"{location}: stores are on local disks or at s3://, gs:// or az://")


def is_store(path: Path) -> bool:
    """Return whether there is a kpstore store at a path."""
    return path.exists() and backend_for(str(path)).exists()


def keep_out_of_stores(path: Path, what: str) -> None:
    """Raise :class:`ExistsError` if a path is a store, or lies in one.

    Parameters
    ----------
    what : what was to be written there, for the message.
    """
    target = Path(os.path.realpath(path))  # which takes links that lead in a circle
    if any(is_store(place) for place in (target, *target.parents)):
        raise ExistsError(f"{path} is a store, or lies in one; choose another place for {what}")


def _keep_apart(location: str) -> None:
    """Raise :class:`ExistsError` if a new store would lie in another one."""
    if "://" not in location:
        keep_out_of_stores(Path(location).absolute().parent, "the store")


@contextmanager
def moved_into_place(place: Backend) -> Iterator[Backend]:
    """Yield the backend of a temporary place, which moves to ``place`` unless an error occurs.

    Raises
    ------
    ExistsError
        If something is at ``place``.
    """
    location = place.location
    if place.exists():
        raise ExistsError(f"{location} already exists; choose another place for the store")
    _keep_apart(location)
    aside = _aside(place)
    try:
        yield aside
        aside.move(location)
    finally:
        aside.remove()


def _aside(place: Backend) -> Backend:
    """Return a temporary place from which a store moves to ``place`` in one step."""
    if isinstance(place, HasAside):
        return place.aside()
    location = place.location
    if "://" not in location:
        path = Path(location).resolve()
        aside = backend_for(str(aside_of(path, "building")))
        if type(aside) is type(place):  # else another backend than a path beside it
            for left_over in left_overs(path, "building"):
                backend_for(str(left_over)).remove()
            return aside
    return backend_for(f"{location}.building-{uuid.uuid4().hex[:8]}")


@contextmanager
def building(place: Backend, *, name: str, kpstore_version: str) -> Iterator[BaseStore]:
    """Yield a new store, which moves to ``place`` when the block ends without an error."""
    with moved_into_place(place) as aside:
        yield BaseStore.create(aside, name=name, kpstore_version=kpstore_version)


class BaseStore(Version):
    """One immutable version of a store; :class:`kpstore.Store` adds the views on it.

    See :class:`kpstore.store.arrays.Version`, which reads it, for the parameters.
    """

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
        store._about  # noqa: B018 - fails now, not at the first read, if this is not a kpstore store
        return store

    @classmethod
    def create(cls, location: str | Backend, *, name: str, kpstore_version: str) -> Self:
        """Make an empty store; see :func:`kpstore.create`."""
        backend = backend_for(location) if isinstance(location, str) else location
        try:
            name = text(name)
        except InvalidError as error:
            raise InvalidError(f"name of a store: {error}") from None
        _keep_apart(backend.location)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        attrs = fmt.root_attrs(name, created, kpstore_version)
        return cls(backend, backend.create(attrs, f"created {name}"), "a")

    # -- videos ------------------------------------------------------------------------------------

    def video(self, video_id: str) -> Video:
        """Return one video; :class:`NotFoundError` names the nearest ids if it is not found."""
        return Video(self, self.index.position(video_id))

    @property
    def videos(self) -> pd.DataFrame:
        """A table with a row per video, indexed by id, and a ``<feature>_state`` per feature."""
        import pandas as pd

        features = self.features  # which looks at annotations, too
        columns: dict[str, Any] = {"split": self.index.splits, "n_frames": self.index.n_frames}
        for name in ("fps", "width", "height", *self.annotation_names) if len(self.index) else ():
            columns[name] = self[name][:]
        meanings = [state.name.lower() for state in State]
        for name in features:
            codes = self.states(name).astype(np.int8)
            columns[fmt.state_name(name)] = pd.Categorical.from_codes(codes, meanings)
        return pd.DataFrame(columns, index=pd.Index(self.index.ids, name="video_id"))

    def states(self, feature: str) -> NDArray[np.uint8]:
        """Return how far each video has come for a feature, (videos,) uint8 of :class:`State`."""
        self.feature(feature)
        return np.asarray(self[fmt.state_name(feature)])

    def failures(self, feature: str) -> list[Failure]:
        """Return every frame and video that failed for a feature, in storage order."""
        self.feature(feature)
        texts = np.asarray(self[fmt.failure_name(feature)])
        found: list[Failure] = []
        for position in np.flatnonzero(texts != "").tolist():
            video = Video(self, position)
            failures = self._parsed_failures(feature, position, texts[position])
            found += listed(video.id, failures, video.image_path)
        return found

    def failures_of(self, feature: str, position: int) -> Failures:
        """Return what failed for a feature of the video at a position."""
        text = str(self[fmt.failure_name(feature)][position])
        return self._parsed_failures(feature, position, text)

    def _parsed_failures(self, feature: str, position: int, text: str) -> Failures:
        try:
            return Failures.from_text(text)
        except InvalidError as error:
            place = f"{fmt.failure_name(feature)}[{position}]"
            raise CorruptError(f"{place} in {self.location} is damaged: {error}") from None

    # -- versions ----------------------------------------------------------------------------------

    def history(self) -> list[Commit]:
        """Return this version and all that it builds upon, newest first."""
        return list(self._backend.history(self.snapshot))

    @property
    def tags(self) -> dict[str, str]:
        """Tags and the snapshot ids that they name."""
        return dict(self._backend.tags())

    @property
    def branches(self) -> dict[str, str]:
        """Branches and the ids of their newest versions."""
        return dict(self._backend.branches())

    def at(self, version: At = None) -> Self:
        """Return another version of this store; the newest by default."""
        return type(self)(
            self._backend, resolve(self._backend, version), self.mode, self._cache, self.check
        )

    def transaction(
        self, message: str, *, metadata: Mapping[str, Any] | None = None, branch: str = MAIN
    ) -> Transaction:
        """Start changes that become the branch's next version.

        This object stays at its version; ``store.at()`` returns the new one.
        """
        from kpstore.store.transaction import Transaction

        self._require_write()
        return Transaction(self._backend, message, metadata=metadata, branch=composed(branch))

    def tag(self, name: str) -> None:
        """Name this version permanently; :class:`ExistsError` if the name is taken."""
        self._require_write()
        name = check_name("tag", name)
        if name in self.branches:
            raise ExistsError(
                f"{name!r} is a branch of {self.location}; a tag of that name would hide it"
            )
        self._backend.create_tag(name, self.snapshot)

    def delete_tag(self, name: str) -> None:
        """Remove a tag; its version stays in the history, and its name cannot be used again."""
        self._require_write()
        self._backend.delete_tag(composed(name))

    def branch(self, name: str) -> None:
        """Start a branch at this version."""
        self._require_write()
        name = check_name("branch", name)
        if name == WORKING:
            raise InvalidError(
                f"branch {name!r}: 'kpstore remove' makes one of that name, and deletes it; choose "
                "another name"
            )
        if name in self.tags:
            raise ExistsError(
                f"{name!r} is a tag of {self.location}, which would hide a branch of that name"
            )
        self._backend.create_branch(name, self.snapshot)

    def delete_branch(self, name: str) -> None:
        """Remove a branch other than ``main``; its versions stay until garbage is collected."""
        self._require_write()
        self._backend.delete_branch(composed(name))

    def collect_garbage(
        self, *, older_than: timedelta = timedelta(days=7), keep: int = 1, apply: bool = False
    ) -> Garbage:
        """Remove old versions; see :func:`kpstore.store.history.collect_garbage`."""
        self._require_write()
        return collect_garbage(self._backend, older_than=older_than, keep=keep, apply=apply)

    def remove(self, *, videos: Iterable[str] = (), features: Iterable[str] = ()) -> Removal:
        """Remove videos or features in one commit; see :func:`kpstore.store.removal.remove`."""
        from kpstore.store.removal import remove

        self._require_write()
        return remove(self._backend, videos=videos, features=features)

    def remove_everywhere(
        self, *, videos: Iterable[str] = (), features: Iterable[str] = (), apply: bool = False
    ) -> Removal:
        """Remove videos or features from all versions, with their bytes.

        See :func:`kpstore.store.removal.remove_everywhere`.
        """
        from kpstore.store.removal import remove_everywhere

        self._require_write()
        return remove_everywhere(
            self._backend,
            videos=videos,
            features=features,
            apply=apply,
            cache=self.decoded_cache,
        )

    def take_back(self, videos: Iterable[str]) -> str:
        """Let removed videos in again; see :func:`kpstore.store.removal.take_back`."""
        from kpstore.store.removal import take_back

        self._require_write()
        return take_back(self._backend, videos)

    def rollback(self, to: At) -> str:
        """Make an earlier version the newest.

        Return the branch (HDF5: tag) that keeps the version that was the newest.
        """
        self._require_write()
        return rollback(self._backend, to)[1]

    def _require_write(self) -> None:
        if self.mode != "a":
            raise ReadOnlyError(
                f"{self.location} was opened for reading; use kpstore.open({self.location!r}, "
                'mode="a")'
            )
