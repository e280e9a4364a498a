"""Small stores and arrays for the contract of backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Backend, ReadSession

CHUNK = 4


def meta(n_rows: int = 10, dtype: str = "float32", **changes: Any) -> ArrayMeta:
    """(rows, 2) numbers in chunks of four."""
    fill: Any = {"f": np.nan, "b": False}.get(np.dtype(dtype).kind, 0)
    chunk_rows = changes.pop("chunk_rows", CHUNK)
    return ArrayMeta((n_rows, 2), dtype, chunk_rows, ("frame", "xy"), **{"fill": fill, **changes})


def text_meta(n_rows: int) -> ArrayMeta:
    """(rows,) text in chunks of four."""
    return ArrayMeta((n_rows,), TEXT, CHUNK, ("frame",))


def numbers(n_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """(rows, 2) float32, others for each seed."""
    return np.random.default_rng(seed).standard_normal((n_rows, 2)).astype(np.float32)


def add_array(backend: Backend, name: str = "a", n_rows: int = 10) -> str:
    """Commit an array whose rows nobody wrote."""
    changes = backend.begin()
    changes.create(name, meta(n_rows))
    return changes.commit(f"add {name}")


def commit_rows(
    backend: Backend, name: str, start: int, values: NDArray[Any], branch: str = MAIN
) -> str:
    """Commit rows of an array; return the new version."""
    changes = backend.begin(branch)
    changes.write(name, start, values)
    return changes.commit(f"write {name}[{start}:]")


def newest(backend: Backend, branch: str = MAIN) -> ReadSession:
    """Open the newest version of a branch."""
    return backend.session(backend.branches()[branch])


def another(backend: Backend, location: str) -> Backend:
    """Return a further backend of the same class, as another process would make it."""
    kind: Any = type(backend)
    found: Backend = kind(location)
    return found


class BackendFixtures:
    """Fixtures of all contracts; a subclass overrides ``backend``."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError

    @pytest.fixture
    def made(self, backend: Backend) -> Backend:
        backend.create({"title": "t"}, "created")
        return backend

    def needs_branches(self, backend: Backend) -> None:
        if not backend.capabilities.branches:
            pytest.skip("this backend has no branches")


def mapped_rows(session: ReadSession, name: str) -> NDArray[np.generic] | None:
    """Return all rows of an array in memory; None if its session has not mapped them."""
    chunks = session.chunks(name)
    if chunks.mapped is not None:
        for number in range(session.meta(name).n_chunks):
            chunks.bring(number)
    return chunks.mapped
