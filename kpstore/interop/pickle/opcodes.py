"""Writing pickles piece by piece, so that memory does not grow with their contents.

The opcodes are those of protocol 4; arrays are numpy's, under the module names that both numpy 1
and 2 know. The same calls give the same bytes under any version of Python and numpy.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import IO

import numpy as np
from numpy.typing import NDArray

_PROTO, _STOP, _POP, _MARK = b"\x80\x04", b".", b"0", b"("
_EMPTY_DICT, _EMPTY_LIST, _SETITEMS, _APPENDS = b"}", b"]", b"u", b"e"
_BINPUT, _BINGET = b"q", b"h"
_MADE_BY, _ARGUMENTS, _DTYPE, _FIRST_TEXT = range(4)
_MAKER = b"cnumpy.core.multiarray\n_reconstruct\n"
_MADE_OF = b"cnumpy\nndarray\nK\x00\x85C\x01b\x87"  # (ndarray, (0,), b"b")
_FLOAT32 = (
    b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"  # dtype("f4", False, True)
    b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


def _get(entry: int) -> bytes:
    return _BINGET + bytes([entry])


def plain(value: object) -> bytes:
    """Return opcodes that make a plain value, and may stand anywhere in a file."""
    out = BytesIO()
    pickler = pickle.Pickler(out, 3)
    pickler.fast = True  # no memo, whose numbers would clash with ours
    pickler.dump(value)
    return out.getvalue()[2:-1]


def array_opcodes(shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return the opcodes around the bytes of a float32 array in a file of :class:`PickleWriter`."""
    size = math.prod(shape) * 4
    code, width = (b"B", 4) if size < 2**32 else (b"\x8e", 8)
    made, data = _get(_MADE_BY) + _get(_ARGUMENTS) + b"R", code + size.to_bytes(width, "little")
    return made + b"(K\x01" + plain(shape) + _get(_DTYPE) + b"\x89" + data, b"tb"


class PickleWriter:
    """Writes one pickle to an open file.

    Parameters
    ----------
    file : a file that is open for binary writing.
    texts : frequent texts, such as names of parts; at most 200.

    Attributes
    ----------
    texts : the opcodes, two bytes, of each frequent text.
    """

    def __init__(self, file: IO[bytes], texts: Iterable[str] = ()) -> None:
        self._file = file
        self.texts: dict[str, bytes] = {}
        parts = [_MAKER, _MADE_OF, _FLOAT32]
        for number, text in enumerate(texts, start=_FIRST_TEXT):
            parts.append(plain(text))
            self.texts[text] = _get(number)
        entries = [part + _BINPUT + bytes([number]) + _POP for number, part in enumerate(parts)]
        self._file.write(_PROTO + b"".join(entries))

    def close(self) -> None:
        """End the pickle; the file stays open."""
        self._file.write(_STOP)

    def value(self, value: object) -> None:
        """Write a plain value: the key or the value of a dict."""
        self._file.write(plain(value))

    def entries(self, entries: Mapping[str, object]) -> None:
        """Write the keys and plain values of a part of a dict."""
        for key, value in entries.items():
            self.value(key)
            self.value(value)

    @contextmanager
    def mapping(self) -> Iterator[None]:
        """Write a dict of the keys and values that the block writes in turn."""
        self._file.write(_EMPTY_DICT + _MARK)
        yield
        self._file.write(_SETITEMS)

    def sequence(self, batches: Iterable[list[bytes]]) -> None:
        """Write a list from batches of items that are opcodes already."""
        self._file.write(_EMPTY_LIST)
        for items in batches:
            if items:
                self._file.write(_MARK)
                self._file.writelines(items)
                self._file.write(_APPENDS)

    def array(self, shape: tuple[int, ...], blocks: Iterable[NDArray[np.float32]]) -> None:
        """Write an array of float32 from blocks of its rows."""
        head, tail = array_opcodes(shape)
        self._file.write(head)
        for block in blocks:
            self._file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
        self._file.write(tail)
