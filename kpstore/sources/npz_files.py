"""Arrays of npz files, read a block of rows at a time; never a pickle."""

from __future__ import annotations

import errno
import math
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError, one_line

BLOCK_BYTES = 8 * 2**20
"""Decompressed bytes in memory at once while nothing but a pass over an array is made."""


@dataclass(frozen=True)
class NpyHeader:
    """An array's ``dtype``, native once read, and its ``shape`` with rows first."""

    dtype: np.dtype[Any]
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

    def take(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop``, (stop - start, …)."""


class NpzFile:
    """An npz file, open; a context manager.

    Raises
    ------
    NotFoundError
        If the file does not exist.
    InvalidError
        If it is not a zip file or is damaged; every method raises it, with the file's name, when it
        meets damage.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        if not self.path.is_file():
            raise NotFoundError(f"no npz file at {self.path}")
        with self.damage_named():
            self._zip = zipfile.ZipFile(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise InvalidError(
                f"{self.path} is not an npz file, or is cut short or damaged: {one_line(error)}"
            ) from None
        except OSError as error:
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
        """Give an array's rows, each once and from first to last.

        Only the rows asked for are in memory.
        """
        with self.damage_named(), self._open(name) as (member, header):
            if header.dtype.kind == "O":
                yield _InMemory(self.objects(name, member, header))
            elif header.fortran_order:
                with self.at_random(name) as rows:
                    yield rows
            else:
                yield _InOrder(member, header, f"{self.path}: {name!r}")

    @contextmanager
    def at_random(self, name: str) -> Iterator[Rows]:
        """Give an array's rows in any order.

        They lie decompressed in a temporary file meanwhile (``$TMPDIR``).
        """
        with self.damage_named(), self._open(name) as (member, header):
            if header.dtype.kind == "O":
                yield _InMemory(self.objects(name, member, header))
                return
            with tempfile.TemporaryFile(prefix="kpstore-") as spool:
                while block := member.read(BLOCK_BYTES):
                    spool.write(block)
                spool.flush()
                order: Any = "F" if header.fortran_order else "C"
                empty = header.n_rows * header.row_bytes == 0
                rows: NDArray[Any] = (
                    np.empty(header.shape, header.dtype)
                    if empty
                    else np.memmap(spool, header.dtype, "r", shape=header.shape, order=order)
                )
                yield _InMemory(rows)

    def objects(self, name: str, member: IO[bytes], header: NpyHeader) -> NDArray[np.object_]:
        """Return an array of Python objects, which are not read unless somebody knows how."""
        raise InvalidError(f"{self.path}: {name!r} holds Python objects, which are not read")


@dataclass
class _InMemory:
    array: NDArray[Any]

    def take(self, start: int, stop: int) -> NDArray[Any]:
        return _native(np.array(self.array[start:stop]))


@dataclass
class _InOrder:
    member: IO[bytes]
    header: NpyHeader
    where: str
    position: int = 0

    def take(self, start: int, stop: int) -> NDArray[Any]:
        assert start == self.position, "rows of a compressed array come in order"
        self.position = stop
        block = bytearray((stop - start) * self.header.row_bytes)
        n_read = sum(_read_into(self.member, memoryview(block)))
        if n_read != len(block):
            raise InvalidError(
                f"{self.where} ends in the middle, at row {start + n_read // self.header.row_bytes}"
            )
        if stop == self.header.n_rows:
            self.member.read(1)  # at the end zipfile compares the checksum
        rows: NDArray[Any] = np.frombuffer(block, self.header.dtype).reshape(
            stop - start, *self.header.shape[1:]
        )
        return _native(rows)


def _read_into(member: IO[bytes], space: memoryview) -> Iterator[int]:
    while space:
        block = member.read(len(space))
        if not block:
            return
        space[: len(block)] = block
        space = space[len(block) :]
        yield len(block)


def _native(rows: NDArray[Any]) -> NDArray[Any]:
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)
