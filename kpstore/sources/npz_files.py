"""Arrays of npz files, read a block of rows at a time; never a pickle."""

from __future__ import annotations

import errno
import lzma
import math
import tempfile
import tokenize
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, InvalidError, KpstoreError, NotFoundError, one_line

BLOCK_BYTES = 8 * 2**20
"""Decompressed bytes to hold in memory at once while an array is only passed through."""


_DAMAGE = (zipfile.BadZipFile, lzma.LZMAError, *DAMAGE)
"""What zipfile, its decompressors and numpy raise over a damaged file."""


@dataclass(frozen=True)
class NpyHeader:
    """The ``dtype`` of an array (native once read) and its ``shape``, rows first."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def n_rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the file."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Rows(Protocol):
    """Rows of an array by number."""

    def take(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return rows ``start`` to ``stop``, (stop - start, …)."""


class NpzFile:
    """An npz file, open; a context manager.

    Parameters
    ----------
    path : the file.
    most_bytes : memory that reading it may take; see :class:`kpstore.budget.MemoryBudget`.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    InvalidError
        If it is not a zip file or is damaged; every method raises it, with the file's name, when it
        meets damage.
    """

    def __init__(self, path: Path, most_bytes: int | None = None) -> None:
        self.path, self._most_bytes = path, most_bytes

    def __enter__(self) -> Self:
        if not self.path.is_file():
            raise NotFoundError(f"no npz file at {self.path}")
        self.budget = MemoryBudget.of(self.path, self._most_bytes)
        with self.damage_named():
            self._zip = zipfile.ZipFile(self.path)
        twice = next((name for name, n in Counter(self.names).items() if n > 1), None)
        if twice is not None:
            self._zip.close()
            raise InvalidError(f"{self.path}: array {twice!r} is in it twice; save it once")
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self._zip.namelist() if name.endswith(".npy")]

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Turn what zipfile, zlib and numpy raise over a damaged file into one line."""
        try:
            yield
        except KpstoreError:
            raise
        except _DAMAGE as error:
            raise InvalidError(
                f"{self.path} is not an npz file, or is cut short or damaged: {one_line(error)}"
            ) from None
        except OSError as error:
            if error.errno is None:  # bz2's words for damage
                raise InvalidError(f"{self.path} is damaged: {one_line(error)}") from None
            if error.errno != errno.EINVAL:
                raise
            # A damaged directory makes zipfile seek to where no file has a byte.
            raise InvalidError(
                f"{self.path} is damaged: its directory points outside of it"
            ) from None

    def header(self, name: str) -> NpyHeader:
        """Return what an array is, checked against its size.

        :class:`InvalidError` lists the arrays there are.
        """
        with self.damage_named(), self._open(name) as (_, header):
            return header

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], NpyHeader]]:
        if name not in self.names:
            have = ", ".join(n if n.isprintable() else repr(n) for n in self.names) or "no arrays"
            raise InvalidError(f"{self.path}: no array {name!r} in it; it has {have}")
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as member:
            header = self._read_header(name, member)
            if (
                header.dtype.kind != "O"
                and info.file_size - member.tell() != header.n_rows * header.row_bytes
            ):
                raise InvalidError(
                    f"{self.path}: {name!r} says it has the shape {header.shape} of "
                    f"{header.dtype}, but holds {info.file_size - member.tell()} bytes"
                )
            yield member, header

    def _read_header(self, name: str, member: IO[bytes]) -> NpyHeader:
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        try:
            shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
        except (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError) as error:
            raise InvalidError(
                f"{self.path}: {name!r} is not an array that numpy wrote ({one_line(error)})"
            ) from None
        if (
            not shape
            or min(shape) < 0
            or (dtype.hasobject and dtype.kind != "O")
            or dtype.kind == "V"
        ):
            raise InvalidError(
                f"{self.path}: {name!r} is {shape} of {dtype}; rows of numbers or text are needed"
            )
        return NpyHeader(dtype, tuple(shape), bool(fortran_order and len(shape) > 1))

    @contextmanager
    def in_order(self, name: str) -> Iterator[Rows]:
        """Give access to an array's rows, each once, from first to last.

        Only the rows asked for are in memory.
        """
        with self.damage_named(), self._open(name) as (member, header):
            if header.dtype.kind == "O" or header.fortran_order:
                with self.at_random(name) as rows:
                    yield rows
            else:
                yield _InOrder(member, header, self._checked(name, header), self.path, name)

    @contextmanager
    def at_random(self, name: str) -> Iterator[Rows]:
        """Give access to an array's rows in any order.

        Meanwhile they are decompressed in a temporary file (``$TMPDIR``).
        """
        with self.damage_named(), self._open(name) as (member, header):
            if header.dtype.kind == "O":
                yield _InMemory(self.objects(name, member, header))
                return
            with tempfile.TemporaryFile(prefix="kpstore-") as spool:
                while block := member.read(BLOCK_BYTES):
                    spool.write(block)
                spool.flush()
                if header.n_rows * header.row_bytes == 0:
                    yield _InMemory(np.empty(header.shape, header.dtype))
                    return
                order: Literal["F", "C"] = "F" if header.fortran_order else "C"
                mapped = np.memmap(spool, header.dtype, "r", shape=header.shape, order=order)
                yield _Spooled(mapped, self._checked(name, header))

    def _checked(self, name: str, header: NpyHeader) -> Callable[[int], None]:
        """Return what raises an error if so many rows take more memory than the file may."""

        def check(n_rows: int) -> None:
            what = f"{n_rows} of {header.n_rows} rows of {name!r}"
            self.budget.check(n_rows * header.row_bytes, what)

        return check

    def objects(self, name: str, member: IO[bytes], header: NpyHeader) -> NDArray[np.object_]:
        """Refuse to read an array of Python objects; a subclass may know how to read some."""
        raise InvalidError(f"{self.path}: {name!r} holds Python objects, which are not read")


@dataclass
class _InMemory:
    array: NDArray[np.generic]

    def take(self, start: int, stop: int) -> NDArray[np.generic]:
        return _native(np.array(self.array[start:stop]))


@dataclass
class _Spooled:
    array: NDArray[np.generic]
    check: Callable[[int], None]

    def take(self, start: int, stop: int) -> NDArray[np.generic]:
        self.check(stop - start)
        return _native(np.array(self.array[start:stop]))


@dataclass
class _InOrder:
    member: IO[bytes]
    header: NpyHeader
    check: Callable[[int], None]
    path: Path
    name: str
    position: int = 0

    def take(self, start: int, stop: int) -> NDArray[np.generic]:
        assert start == self.position, "rows of a compressed array come in order"
        self.check(stop - start)
        self.position = stop
        n_bytes = (stop - start) * self.header.row_bytes
        block = bytearray(self.member.read(n_bytes))
        if len(block) != n_bytes:
            last = start + len(block) // self.header.row_bytes
            raise InvalidError(f"{self.path}: {self.name!r} ends in the middle, at row {last}")
        if stop == self.header.n_rows:
            self.member.read(1)  # at the end zipfile compares the checksum
        rows = np.frombuffer(block, self.header.dtype)
        return _native(rows.reshape(stop - start, *self.header.shape[1:]))


def _native(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)
