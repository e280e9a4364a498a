"""Arrays of npz files that hold text; of pickled ones, text alone is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.files import damage_named
from kpstore.interop.unpickling import loads_pickle
from kpstore.sources.npz_files import BLOCK_BYTES, NpyHeader, NpzFile


class NpzTable(NpzFile):
    """An open npz file whose arrays may be text."""

    def objects(self, name: str, member: IO[bytes], header: NpyHeader) -> NDArray[np.object_]:
        """Return an array of Python objects, all of them text; runs nothing that a pickle names."""
        texts = loads_pickle(member.read(), f"{self.path}: {name!r}, which holds Python objects,")
        whole = (
            isinstance(texts, np.ndarray)
            and texts.shape == header.shape
            and texts.dtype.kind == "O"
        )
        if not whole or not all(type(text) is str for text in texts.flat):
            raise InvalidError(
                f"{self.path}: {name!r} holds Python objects other than text, which are not read"
            )
        return np.asarray(texts)

    def iter_texts(self, name: str) -> Iterator[list[str]]:
        """Yield a text array, block by block."""
        header = self.header(name)
        step = max(1, BLOCK_BYTES // max(header.row_bytes, 1))
        with self.in_order(name) as rows:
            for start in range(0, header.n_rows, step):
                yield self.texts(name, rows.take(start, min(start + step, header.n_rows)))

    def texts(self, name: str, block: NDArray[Any]) -> list[str]:
        """Return a block of a text array as str.

        Raises
        ------
        InvalidError
            If it is not text, or text that cannot be written as UTF-8.
        """
        with damage_named(
            f"{self.path}: {name!r} holds text that is not Unicode", (UnicodeError, ValueError)
        ):
            if block.dtype.kind == "S":
                block = np.char.decode(block, "utf-8")
            if block.ndim != 1 or (block.dtype.kind not in "UO" and block.size):
                raise InvalidError(
                    f"{self.path}: {name!r} is {block.dtype}, {block.ndim}-D; one text a row is "
                    "needed"
                )
            texts: list[str] = block.tolist()
            "".join(texts).encode()
        return texts


def runs(texts: Iterable[list[str]]) -> Iterator[tuple[str, int, int]]:
    """Yield runs of equal neighbours of a text array: text, first row, row after the last."""
    first = 0
    for text, run in groupby(chain.from_iterable(texts)):
        stop = first + sum(1 for _ in run)
        yield text, first, stop
        first = stop
