"""Pickles written piece by piece, so that memory does not grow with what goes into them.

The opcodes are those of protocol 4; arrays are numpy's own, under the module names that numpy 1 and
2 both know. The same calls give the same bytes, whatever Python or numpy writes them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_PROTO, _STOP, _POP, _MARK = b"\x80\x04", b".", b"0", b"("
_EMPTY_DICT, _EMPTY_LIST, _SETITEMS, _APPENDS = b"}", b"]", b"u", b"e"
_BINPUT, _BINGET = b"q", b"h"
_MADE_BY, _ARGUMENTS, _DTYPE, _FIRST_TEXT = range(4)
_MAKER = b"cnumpy.core.multiarray\n_reconstruct\n"
_MADE_OF = b"cnumpy\nndarray\nK\x00\x85C\x01b\x87"  # (ndarray, (0,), b"b")


def _get(entry: int) -> bytes:
    return _BINGET + bytes([entry])


def _dtype(dtype: np.dtype[Any]) -> bytes:
    code, size = dtype.str[1:].encode(), dtype.itemsize
    state = b"(K\x03X\x01\x00\x00\x00%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" % (
        b"<" if size > 1 else b"|"
    )
    return b"cnumpy\ndtype\nX" + len(code).to_bytes(4, "little") + code + b"\x89\x88\x87R" + state


def plain(value: Any) -> bytes:
    """Return opcodes that make a plain value, and may stand anywhere in a file."""
    out = BytesIO()
    pickler = pickle.Pickler(out, 3)
    pickler.fast = True  # no memo, whose numbers would clash with ours
    pickler.dump(value)
    return out.getvalue()[2:-1]


def array_opcodes(shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """Return the opcodes before and after the bytes of a float32 array.

    For files of :class:`PickleWriter`.
    """
    size = int(np.prod(shape, dtype=object)) * 4
    width = (
        b"B" + size.to_bytes(4, "little") if size < 2**32 else b"\x8e" + size.to_bytes(8, "little")
    )
    head = (
        _get(_MADE_BY)
        + _get(_ARGUMENTS)
        + b"R(K\x01"
        + plain(shape)
        + _get(_DTYPE)
        + b"\x89"
        + width
    )
    return head, b"tb"


class PickleWriter:
    """Writes one pickle to an open file.

    Parameters
    ----------
    file : open for binary writing.
    texts : texts that come often, such as names of parts; at most 200.

    Attributes
    ----------
    texts : opcodes of two bytes by text.
    """

    def __init__(self, file: IO[bytes], texts: Iterable[str] = ()) -> None:
        self._file = file
        self.texts: dict[str, bytes] = {}
        parts = [_MAKER, _MADE_OF, _dtype(np.dtype(np.float32))]
        for number, text in enumerate(texts, start=_FIRST_TEXT):
            parts.append(plain(text))
            self.texts[text] = _get(number)
        entries = [part + _BINPUT + bytes([number]) + _POP for number, part in enumerate(parts)]
        self._file.write(_PROTO + b"".join(entries))

    def close(self) -> None:
        """End the pickle; the file stays open."""
        self._file.write(_STOP)

    def value(self, value: Any) -> None:
        """Write a plain value: the key or the value of a dict."""
        self._file.write(plain(value))

    @contextmanager
    def mapping(self) -> Iterator[None]:
        """Write a dict of what the block writes: key, value, key, value, …."""
        self._file.write(_EMPTY_DICT + _MARK)
        yield
        self._file.write(_SETITEMS)

    def sequence(self, batches: Iterable[list[bytes]]) -> None:
        """Write a list of items that are opcodes already, some at a time."""
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
