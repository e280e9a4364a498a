"""The objects of one store, by name: read, written on conditions, listed and removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from kpstore.backends.icechunk_errors import guard_fork, unreachable
from kpstore.backends.object_address import ObjectAddress
from kpstore.backends.object_clients import object_client

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_AT_ONCE = 1000
"""Names that are deleted by one request."""


class Stored(NamedTuple):
    """What storage knows about an object.

    Parameters
    ----------
    tag : changes with its content.
    time : when it was written, by the clock of the storage.
    """

    name: str
    size: int
    tag: str
    time: datetime


class ObjectFiles:
    """The objects of a store. It pickles as its address.

    A missing object is a :class:`FileNotFoundError`; an answer that says nothing about objects, or
    no answer, is an :class:`UnreachableError`.
    """

    def __init__(self, address: ObjectAddress) -> None:
        self.address = address

    def __reduce__(self) -> tuple[type[ObjectFiles], tuple[ObjectAddress]]:
        return ObjectFiles, (self.address,)

    @cached_property
    def _client(self) -> ObjectStore:
        return object_client(self.address)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        guard_fork()  # the client has threads, too, which a forked process lacks
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (FileNotFoundError, AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            raise unreachable(str(self.address), error, doing) from None

    def read(self, name: str) -> bytes:
        """Return an object."""
        return bytes(self.fetch(name))

    def fetch(self, name: str, offset: int = 0, length: int | None = None) -> memoryview:
        """Return an object, or ``length`` bytes of it from ``offset`` on, without a copy."""
        import obstore

        with self._told(f"{name} was not read"):
            if length is None:
                return memoryview(obstore.get(self._client, name).bytes())
            return memoryview(obstore.get_range(self._client, name, start=offset, length=length))

    def read_tagged(self, name: str) -> tuple[bytes, Stored]:
        """Return an object and what storage knows about it."""
        import obstore

        with self._told(f"{name} was not read"):
            found = obstore.get(self._client, name)
            return bytes(found.bytes()), _stored(found.meta)

    def about(self, name: str) -> Stored | None:
        """Return what storage knows about an object; None if there is none."""
        import obstore

        try:
            with self._told(f"{name} was not looked up"):
                return _stored(obstore.head(self._client, name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or replace it."""
        import obstore

        try:
            with self._told(f"{name} was not written"):
                obstore.put(self._client, name, content)
        except FileNotFoundError as error:  # a bucket that is not there
            raise unreachable(str(self.address), error, f"{name} was not written") from None

    def write_new(self, name: str, content: bytes) -> str | None:
        """Write an object and return its tag; None, if one of that name is there."""
        return self._written(name, content, "create")

    def replace(self, name: str, content: bytes, tag: str) -> str | None:
        """Replace the object with this tag and return the new tag; None, if it has another."""
        return self._written(name, content, {"e_tag": tag})

    def _written(self, name: str, content: bytes, mode: Any) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with self._told(f"{name} was not written"):
                return str(obstore.put(self._client, name, content, mode=mode)["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            return None
        except FileNotFoundError as error:
            if mode == "create":  # only a bucket that is not there
                raise unreachable(str(self.address), error, f"{name} was not written") from None
            return None

    def names(self, folder: str = "") -> Iterator[Stored]:
        """Yield all objects whose names begin with ``folder`` and a slash; all, without one."""
        import obstore

        with self._told("its objects were not listed"):
            for some in obstore.list(self._client, folder or None):
                for one in some:
                    yield _stored(one)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        import obstore

        left = list(names)
        with self._told("not all objects were deleted"):
            for first in range(0, len(left), _AT_ONCE):
                some = left[first : first + _AT_ONCE]
                try:
                    obstore.delete(self._client, some)
                except FileNotFoundError:  # which may have ended the request
                    for name in some:
                        with suppress(FileNotFoundError):
                            obstore.delete(self._client, name)


def _stored(found: Any) -> Stored:
    return Stored(found["path"], found["size"], found["e_tag"] or "", found["last_modified"])
