"""Objects that never change, read as files of a folder: many at a time, each once per machine.

Chunks and manifests of Icechunk have names that are given once. What is asked for ahead is fetched
by many threads, as storage answers late but answers many at once. Copies stay on the local disk,
where all processes of the machine find them, unless the store was opened with ``cache="off"``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from kpstore.backends.locks import waiting_lock
from kpstore.backends.object_files import ObjectFiles
from kpstore.backends.optional import COPIES, COPIES_OF, CopiesPlace
from kpstore.errors import UnreachableError

T = TypeVar("T")

N_REQUESTS = 32
"""Most requests of a store at once. They wait for the storage, and not for a core."""
_AHEAD_BYTES = 256 * 2**20
"""Most memory of objects that were asked for ahead and that nobody has read yet."""
_LOOKED_AT_S = 3600.0
"""A copy that is used is marked as such at most so often."""
_LOOK_EVERY = 64
"""Number of new copies after which the size of all is looked up."""


class Copies:
    """Copies of one store's objects on the local disk, shared by all processes of a machine.

    Parameters
    ----------
    place : where all stores have them.
    files : of the store.
    """

    def __init__(self, place: CopiesPlace, files: ObjectFiles) -> None:
        self._place, self._files = place, files
        address = files.address
        # Another server may have a bucket of that name; region and profile only lead to it.
        known = f"{address.scheme}://{address.bucket}/{address.prefix} {address.option('endpoint')}"
        self.folder = place.folder / COPIES / hashlib.sha256(known.encode()).hexdigest()[:20]
        self._n_new = 0

    def path(self, name: str) -> Path:
        """Return the path of a copy, whether or not it is there."""
        return self.folder / name.replace("/", "-")

    def bring(self, name: str) -> Path:
        """Fetch an object unless there is a copy; other processes wait and find it."""
        path = self.path(name)
        try:
            if time.time() - path.stat().st_mtime > _LOOKED_AT_S:
                os.utime(path)  # those that nobody uses make room first
            return path
        except OSError:
            pass
        try:
            self._make_folder()
            # One of a thousand locks, as names are random: two objects rarely share one.
            with waiting_lock(self.folder / f".{name[-2:]}.lock"):
                if not path.exists():
                    self._fetch(name, path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and error.filename is None:
                raise  # the object's
            raise UnreachableError(
                f"{self._files.address}: no copy of {name} can be kept in {self.folder} "
                f"({error.strerror or error}); make room, set KPSTORE_CACHE to another folder, or "
                "open the store with cache='off'"
            ) from None
        return path

    def _make_folder(self) -> None:
        if not (self.folder / COPIES_OF).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            address = str(self._files.address)
            (self.folder / COPIES_OF).write_text(address, encoding="utf-8")

    def _fetch(self, name: str, path: Path) -> None:
        content = self._files.fetch(name)
        if self._n_new % _LOOK_EVERY == 0:
            self._make_room()
        self._n_new += 1
        handle, aside = tempfile.mkstemp(prefix=".", suffix=".part", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise

    def has_room(self, n_bytes: int) -> bool:
        """Whether so many bytes can stay, so that files may be mapped into memory.

        A file that is mapped takes its place on the disk even if it is removed.
        """
        about = os.statvfs(self._existing())
        return n_bytes <= self._place.limit_bytes and n_bytes <= about.f_bavail * about.f_frsize

    def _existing(self) -> Path:
        return next(one for one in (self.folder, *self.folder.parents) if one.exists())

    def _make_room(self) -> None:
        """Remove the oldest copies of any store beyond nine tenths of the limit."""
        found: list[tuple[float, int, str]] = []
        for folder in (self._place.folder / COPIES).iterdir():
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        about = entry.stat(follow_symlinks=False)
                        if not entry.name.endswith((".lock", COPIES_OF)):
                            found.append((about.st_mtime, about.st_size, entry.path))
        left = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if left <= self._place.limit_bytes * 0.9:
                return
            with suppress(OSError):
                os.unlink(path)
            left -= size


class ObjectReader:
    """Reads the objects of a store that never change.

    Parameters
    ----------
    copies : where they stay; None to keep nothing.
    """

    def __init__(self, files: ObjectFiles, copies: Copies | None = None) -> None:
        self._files, self.copies = files, copies
        self._coming: dict[str, tuple[Future[memoryview | None], int]] = {}
        """What was asked for and not read yet, in that order, with its size."""
        self._n_bytes = 0
        self._mapped_bytes = 0
        # Entered again where an object has come before its future can be told to say so.
        self._lock = threading.RLock()
        self._threads = _Threads(N_REQUESTS)
        self._process = os.getpid()

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self, name)

    def drop(self, name: str) -> bool:
        """Remove the copy of an object; return whether there may have been one.

        Another process may have removed it to make room, while this one was about to open it.
        """
        if self.copies is None:
            return False
        with suppress(OSError):
            self.copies.path(name).unlink()
        return True

    def has_room(self, n_bytes: int) -> bool:
        """Whether copies of so many bytes can stay on the disk, besides those of earlier calls.

        See :meth:`Copies.has_room`.
        """
        if self.copies is None or not self.copies.has_room(self._mapped_bytes + n_bytes):
            return False
        self._mapped_bytes += n_bytes
        return True

    def ask(self, name: str, size: int) -> None:
        """Begin to fetch an object of ``size`` bytes that will be read, and return at once.

        What would take too much memory is fetched when it is read.
        """
        if self.copies is not None and self.copies.path(name).exists():
            return
        with self._lock:
            self._check_process()
            if name not in self._coming and self._make_room(size):
                self._submit(name, size)

    def _submit(self, name: str, size: int) -> Future[memoryview | None]:
        self._n_bytes += size
        future = self._threads.submit(lambda: self._fetch(name))
        self._coming[name] = future, size
        if self.copies is not None:
            future.add_done_callback(partial(self._arrived, name))
        return future

    def _make_room(self, size: int) -> bool:
        """Forget what came first, and whoever asked for it has never read."""
        while self._coming and self._n_bytes + size > _AHEAD_BYTES:
            name, (future, old) = next(iter(self._coming.items()))
            if not future.done():
                return False
            del self._coming[name]
            self._n_bytes -= old
        return True

    def _arrived(self, name: str, _: Future[memoryview | None]) -> None:
        self._taken(name)

    def _fetch(self, name: str) -> memoryview | None:
        if self.copies is None:
            return self._files.fetch(name)
        self.copies.bring(name)
        return None

    def _taken(self, name: str) -> Future[memoryview | None] | None:
        with self._lock:
            self._check_process()
            future, size = self._coming.pop(name, (None, 0))
            self._n_bytes -= size
            return future

    def _check_process(self) -> None:
        """Forget what a process that forked this one has asked for."""
        if self._process != os.getpid():
            self._coming, self._n_bytes, self._threads = {}, 0, _Threads(N_REQUESTS)
            self._process = os.getpid()

    def read(self, name: str, offset: int, length: int) -> bytes | memoryview:
        """Return ``length`` bytes of an object from ``offset`` on."""
        if self.copies is not None:
            with open(self.path(name), "rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)
        future = self._taken(name)
        if future is not None:
            return (future.result() or memoryview(b""))[offset : offset + length]
        # In a thread, as a request cannot be interrupted and waiting for a thread can.
        return self._threads.submit(lambda: self._files.fetch(name, offset, length)).result()

    def whole(self, name: str) -> bytes:
        """Return an object."""
        if self.copies is not None:
            return Path(self.path(name)).read_bytes()
        future = self._taken(name) or self._threads.submit(lambda: self._files.fetch(name))
        return bytes(future.result() or b"")

    def path(self, name: str) -> str:
        """Return the path of an object's copy, which is made now if it is not there."""
        assert self.copies is not None
        path = self.copies.path(name)
        if not path.exists():
            with self._lock:
                self._check_process()
                future = self._coming[name][0] if name in self._coming else self._submit(name, 0)
            future.result()
        return str(path)


class _Threads:
    """Threads that fetch; unlike those of Python's own pool, none is waited for at exit.

    Storage that does not answer would otherwise keep a process that has ended.

    Parameters
    ----------
    most : number of threads, which start as there is work.
    """

    def __init__(self, most: int) -> None:
        self._most, self._n_started = most, 0
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, do: Callable[[], T]) -> Future[T]:
        """Return what ``do`` will return."""
        future: Future[T] = Future()
        self._work.put((future, do))
        if self._n_started < self._most:
            self._n_started += 1
            name = f"kpstore-fetch-{self._n_started}"
            threading.Thread(target=_serve, args=[self._work], name=name, daemon=True).start()
        return future


def _serve(work: SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        future, do = work.get()
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)
        del future, do


class ObjectPath:
    """The place of an object, used like a path: where it is opened as a file, it is fetched."""

    __slots__ = ("_name", "_reader")

    def __init__(self, reader: ObjectReader, name: str) -> None:
        self._reader, self._name = reader, name

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self._reader, f"{self._name}/{name}" if self._name else name)

    @property
    def parent(self) -> ObjectPath:
        """The place without the last part of its name."""
        return ObjectPath(self._reader, self._name.rpartition("/")[0])

    def __str__(self) -> str:
        return self._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and (self._reader, self._name) == (
            other._reader,
            other._name,
        )

    def __fspath__(self) -> str:
        return self._reader.path(self._name)

    @property
    def reader(self) -> ObjectReader:
        """What reads it."""
        return self._reader

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        return self._reader.whole(self._name)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return a part of the object."""
        return self._reader.read(self._name, offset, length)
