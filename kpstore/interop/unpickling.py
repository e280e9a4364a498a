"""Reading pickles of plain values and numpy arrays without running anything that they name.

A pickle is a program. Here it can build dicts, lists, tuples, sets, text, numbers and arrays, and
nothing else. Every name that it asks for is looked up in a short list of kpstore's own makers;
those of numpy are not among them, as their ``__setstate__`` trusts any memory layout.
"""

from __future__ import annotations

import math
import mmap
import pickle
import re
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import VALUE_BYTES, MemoryBudget
from kpstore.errors import DAMAGE, InvalidError
from kpstore.user_files import uncollected

_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|[US][0-9]{1,9}|O[48]?)\Z")
_CORES = ("numpy._core", "numpy.core")
Array = NDArray[np.generic]
Maker = Callable[..., object] | None
_BROKEN = (pickle.UnpicklingError, BufferError, ImportError, *DAMAGE)
"""Errors that the unpickler raises for a damaged file, or one that is not a pickle."""


_MOST_AXES = 32


class RefusedError(ValueError):
    """Something that a pickle may not hold; the message does not name the file."""


def load_pickle(path: Path, budget: MemoryBudget | None = None) -> object:
    """Return the contents of a pickle: plain values and arrays of numbers, text or such values.

    Parameters
    ----------
    path : a file of any pickle protocol, written under numpy 1 or 2.
    budget : holds what the contents take; that of the file alone by default.

    Raises
    ------
    InvalidError
        If it is torn, not a single pickle, or asks for any other class or function.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise InvalidError(f"{path} is empty; a pickle has two bytes at least")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            check_opcodes(mapped, str(path), budget or MemoryBudget.of(path))
        return _load(file, str(path))


def loads_pickle(data: bytes, name: str, budget: MemoryBudget | None = None) -> object:
    """Return the contents of a pickle in memory.

    Parameters
    ----------
    name : its name in messages.
    budget : holds what the contents take; that of a file of ``data`` by default.
    """
    check_opcodes(data, name, budget or MemoryBudget(name, len(data)))
    return _load(BytesIO(data), name)


def _load(file: IO[bytes], name: str) -> object:
    try:
        with uncollected():
            return _PlainUnpickler(file).load()
    except RefusedError as error:
        raise InvalidError(f"{name}: {error}") from None
    except _BROKEN as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InvalidError(
            f"{name} cannot be read as a pickle ({text}); it is torn, or not a pickle"
        ) from None


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows only the names that plain data needs."""

    def find_class(self, module: str, name: str) -> Maker:
        """Return the maker of that name, or refuse it."""
        try:
            return _PLAIN_MAKERS[module, name]
        except KeyError:
            raise RefusedError(
                f"it asks for {f'{module}.{name}'[:200]!r}, which is neither plain data nor an "
                "array; kpstore runs no code of a file, so load it where it comes from and save "
                "dicts, lists and numpy arrays"
            ) from None


class _Makers:
    """What pickles may call, in place of the makers of Python and numpy.

    All are bound methods, not functions or classes, as a pickle can set attributes of those.
    """

    __slots__ = ()

    def make_bytes(self, text: str = "", encoding: str = "latin1") -> bytes:
        if encoding.lower() not in ("latin1", "latin-1"):
            raise RefusedError(f"it holds bytes as {encoding!r}; latin1 is how pickles keep them")
        return text.encode("latin1")

    def make_bytearray(self, data: bytes | str = b"", encoding: str = "latin1") -> bytearray:
        return bytearray(
            self.make_bytes(data, encoding) if isinstance(data, str) else memoryview(data)
        )

    def make_list(self) -> list[object]:
        return []  # what a defaultdict(list) makes

    def make_dict(self) -> dict[object, object]:
        return {}

    def make_int(self) -> int:
        return 0

    def make_dtype(self, code: str, align: bool = False, copy: bool = False) -> PlainDtype:
        if not isinstance(code, str) or not _DTYPE.match(code):
            raise RefusedError(
                f"it holds an array of dtype {code!r}; numbers, booleans, text and objects can be "
                "read"
            )
        return PlainDtype(np.dtype(code))

    def make_array(self, kind: object = None, shape: object = None, code: object = None) -> Array:
        """Return the empty array that numpy's ``_reconstruct`` makes before its state is set."""
        return PlainArray(0, np.int8)

    def make_scalar(self, dtype: PlainDtype, data: bytes | str = b"") -> object:
        return _values(dtype, data, (1,), "C")[0]

    def make_array_from(
        self,
        data: bytes | str,
        dtype: PlainDtype,
        shape: Sequence[int],
        order: str,
        axes: Sequence[int] | None = None,
    ) -> Array:
        """Return the same array as numpy's ``_frombuffer``."""
        array = _values(dtype, data, shape, "C" if order == "K" else order)
        return array if axes is None or order != "K" else array.transpose(axes)


_makers = _Makers()
ARRAY_MAKERS: dict[tuple[str, str], Maker] = {
    ("_codecs", "encode"): _makers.make_bytes,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "dtype"): _makers.make_dtype,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct, which makes nothing else
    **{(f"{core}.multiarray", "_reconstruct"): _makers.make_array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _makers.make_scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _makers.make_array_from for core in _CORES},
    ("__builtin__", "bytes"): _makers.make_bytes,
}
"""What may be called for arrays, and for bytes in old protocols, by module and name."""
# The real list and str are not here: of a few nested values they make gigabytes.
_BUILTINS: dict[str, Maker] = {
    "set": set,
    "frozenset": frozenset,
    "list": _makers.make_list,
    "dict": _makers.make_dict,
    "int": _makers.make_int,
    "bytearray": _makers.make_bytearray,
    "bytes": _makers.make_bytes,
}
_PLAIN_MAKERS = {
    **ARRAY_MAKERS,
    ("collections", "defaultdict"): defaultdict,
    **{(m, name): make for m in ("builtins", "__builtin__") for name, make in _BUILTINS.items()},
}


class PlainDtype:
    """A stand-in for a numpy dtype while a file is read; a pickle can set only its byte order."""

    __slots__ = ("real",)

    def __init__(self, real: np.dtype[np.generic]) -> None:
        self.real = real

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.real = self.real.newbyteorder(order)
        elif order not in ("|", "="):
            raise RefusedError(f"it holds an array of byte order {order!r}")


class PlainArray(np.ndarray[Any, Any]):
    """An array whose state is checked before numpy takes it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if self.shape != (0,) or self.base is not None:
            # A second state would free memory that views of the array may still use.
            raise RefusedError(
                "it sets the contents of an array twice; it is damaged, or means harm"
            )
        _, shape, dtype, fortran, data = state
        lengths = _lengths(shape)
        real = _real(dtype)
        if isinstance(data, str):
            data = data.encode("latin1")
        if real.hasobject:
            if not isinstance(data, list) or len(data) != math.prod(lengths):
                raise RefusedError(
                    f"it holds an array that claims {shape} objects and has another number"
                )
        else:
            _check_bytes(real, data, lengths)
        super().__setstate__((1, lengths, real, bool(fortran), data))  # type: ignore[arg-type]


def _real(dtype: object) -> np.dtype[np.generic]:
    if not isinstance(dtype, PlainDtype):
        raise RefusedError(f"it holds an array whose dtype is a {type(dtype).__name__}")
    return dtype.real


def _lengths(shape: Iterable[int]) -> tuple[int, ...]:
    lengths = tuple(shape)
    # A loop: a pickle has a million arrays, and any() takes three times as long.
    sound = len(lengths) <= _MOST_AXES
    for n in lengths:
        sound = sound and type(n) is int and n >= 0
    if not sound:
        raise RefusedError(f"it holds an array of shape {str(shape)[:100]}")
    return lengths


def _check_bytes(real: np.dtype[np.generic], data: bytes, lengths: tuple[int, ...]) -> None:
    n_values = math.prod(lengths)
    n_bytes = len(data) if type(data) is bytes else memoryview(data).nbytes
    if n_bytes != n_values * real.itemsize or (real.itemsize == 0 and n_values):
        raise RefusedError(
            f"it holds an array that claims {lengths} of {real} and has {n_bytes} bytes; it is "
            "damaged"
        )
    if real.kind == "U" and n_bytes:
        letters = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(real.byteorder))
        if letters.max() > sys.maxunicode:
            raise RefusedError("it holds an array of text beyond Unicode; it is damaged")


def _values(dtype: PlainDtype, data: bytes | str, shape: Iterable[int], order: str) -> Array:
    lengths, real = _lengths(shape), _real(dtype)
    if real.hasobject or order not in ("C", "F"):
        raise RefusedError(f"it holds a {real} that cannot be read")
    if isinstance(data, str):
        data = data.encode("latin1")
    _check_bytes(real, data, lengths)
    return np.frombuffer(data, real).reshape(lengths, order=order)  # type: ignore[call-overload, no-any-return]


_PLAIN = rb"[(012NQR\x88\x89eb}\]dloast)u\x81\x85-\x87\x8f-\x94\x97\x98]"
_TAKES = {1: rb"[Khq\x80\x82]", 2: rb"[M\x83]", 4: rb"[Jj\x84]", 8: rb"G"}
_SIZED = {
    **dict.fromkeys(b"CU\x8a\x8c", 1),
    **dict.fromkeys(b"TBX\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
"""Opcodes that are followed by the length of their data, with the bytes of that length."""
_LINES = {**dict.fromkeys(b"ILFSVpgP", 1), **dict.fromkeys(b"ic", 2)}
"""Opcodes that are followed by lines of text, with their number."""
_WIDE = {0x8A: 11, 0x8B: 0, **dict.fromkeys(b"IL", 24)}
"""Opcodes of integers, with the most bytes that one of 64 bits takes."""
_CONTAINERS = b"}])\x8f(\x85\x86\x87"
"""Opcodes of empty containers, of short tuples, and of the mark with which all others begin."""
_MOST_WIDE = 1000
"""Integers that share a hash have more than 64 bits; text has hashes that nobody can foresee."""
_STOP, _FRAME, _LONG_BINPUT, _PUT = b".\x95rp"
_LONGEST_LINE = 1 << 20
_UNCHECKED = 1000
"""Values that are only counted, before what all of them take is compared with the budget."""
_KEEP_MAPPED = 64 * 2**20


def check_opcodes(data: bytes | mmap.mmap, name: str, budget: MemoryBudget) -> None:
    """Refuse a pickle that is torn, or whose opcodes claim more data than there is.

    Python's unpickler allocates what a pickle claims (a text of an exabyte, a memo of four billion
    entries) before it checks that the data exist. Of a single byte it makes an empty container.

    Parameters
    ----------
    budget : holds what the contents take.

    Raises
    ------
    InvalidError
        If so; the message names the byte.
    """
    size = len(data)
    most_puts = 1024 + size // 5  # an entry of the memo takes five bytes to make and one to fill
    run = _runs_of_fixed(most_puts)
    at = freed = n_wide = n_small = n_checked = 0
    what = "its lists, dicts, texts and numbers"
    while True:
        found = run.match(data, at)
        assert found is not None
        before, at = at, found.end()
        n_small += 1 + _containers(data, before, at)
        if n_small > n_checked:
            budget.check(size + n_small * VALUE_BYTES, what)
            n_checked = n_small + _UNCHECKED
        if at >= size:
            raise InvalidError(
                f"{name} is torn: its pickle does not end in {size} bytes; copy or make it again"
            )
        opcode = data[at]
        if opcode == _STOP:
            break
        before, at = at, _after(data, at, size, most_puts, name)
        n_wide += at - before > _WIDE.get(opcode, size)
        if n_wide > _MOST_WIDE:
            raise InvalidError(
                f"{name} holds more than {_MOST_WIDE} integers of more than 64 bits, which no data "
                "of features needs; as keys of a dict they could keep a process busy for hours"
            )
        if at - freed > _KEEP_MAPPED:
            freed = _let_go(data, freed, at)
    budget.hold(size + n_small * VALUE_BYTES, what)
    if at + 1 != size:
        raise InvalidError(
            f"{name} goes on after the end of its pickle, at byte {at + 1} of {size}; save one "
            "object to a file"
        )


def _containers(data: bytes | mmap.mmap, start: int, stop: int) -> int:
    """Return how many containers a run of opcodes of fixed length makes at most."""
    n_found = 0
    while start < stop:
        block = data[start : min(start + _KEEP_MAPPED, stop)]
        n_found += len(block) - len(block.translate(None, _CONTAINERS))
        start += _KEEP_MAPPED
    return n_found


def _runs_of_fixed(most_puts: int) -> re.Pattern[bytes]:
    """Return a pattern that matches any number of opcodes of fixed length."""
    top = most_puts.to_bytes(4, "little")
    if top[3]:
        put = rb"r.{3}[\x00-" + re.escape(bytes([top[3] - 1])) + rb"]"
    else:
        put = rb"r.{2}[\x00-" + re.escape(bytes([max(top[2], 1) - 1])) + rb"]\x00"
    takes = [b"%s.{%d}" % (codes, n) for n, codes in _TAKES.items()]
    return re.compile(b"(?:" + b"|".join([_PLAIN, *takes, put]) + b")*+", re.DOTALL)


def _after(data: bytes | mmap.mmap, at: int, size: int, most_puts: int, name: str) -> int:
    """Return where the opcode after the one at ``at`` begins."""
    opcode = data[at]
    width = 8 if opcode == _FRAME else _SIZED.get(opcode, 0)
    if width:
        start = at + 1 + width
        claim = (
            data[at + 1]
            if width == 1 < size - at
            else int.from_bytes(data[at + 1 : start], "little")
        )
        if start + claim > size:
            raise InvalidError(
                f"{name} is torn: byte {at} claims {claim} bytes, {max(size - start, 0)} follow; "
                "copy or make it again"
            )
        return start if opcode == _FRAME else start + claim
    no_entry = f"{name} is torn: byte {at} names an entry that cannot be; make it again"
    if opcode == _LONG_BINPUT:
        if at + 5 > size or int.from_bytes(data[at + 1 : at + 5], "little") > most_puts:
            raise InvalidError(no_entry)
        return at + 5
    lines = _LINES.get(opcode, 0)
    if not lines:
        raise InvalidError(
            f"{name} is torn, or not a pickle: byte {at} of {size} is {bytes([opcode])!r}"
        )
    end = at
    for _ in range(lines):
        end = data.find(b"\n", end + 1, min(size, end + _LONGEST_LINE))
        if end < 0:
            raise InvalidError(
                f"{name} is torn, or not a pickle: the line at byte {at} does not end"
            )
    if opcode == _PUT and not (
        data[at + 1 : end].isdigit() and int(data[at + 1 : end][:20]) <= most_puts
    ):
        raise InvalidError(no_entry)
    return end + 1


def _let_go(data: bytes | mmap.mmap, start: int, stop: int) -> int:
    """Free the mapped pages before ``stop``, which count as memory of this process."""
    page = mmap.PAGESIZE
    first, last = start // page * page, stop // page * page
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, first, last - first)
    return stop
