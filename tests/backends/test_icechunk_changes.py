"""Changes of an Icechunk store that are gathered before Icechunk has them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import kpstore
from kpstore.backends import icechunk_changes, icechunk_pending
from kpstore.backends.base import TEXT, ArrayMeta, WriteSession
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_chunks import root_group
from tests.fakes import record

METAS = {
    "mapped": ArrayMeta((0, 3), "float32", 16, ("frame", "x"), float("nan"), codec="raw"),
    "packed": ArrayMeta((0,), "int64", 32, ("frame",), codec="lz4"),
    "small": ArrayMeta((0, 2), "uint8", 8, ("frame", "x")),
    "text": ArrayMeta((0,), TEXT, 16, ("frame",)),
}
Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def backend(tmp_path: Path) -> IcechunkBackend:
    backend = IcechunkBackend(str(tmp_path / "store"))
    backend.create({}, "created")
    changes = backend.begin()
    for name, meta in METAS.items():
        changes.create(name, meta)
    changes.commit("arrays")
    return backend


def values_of(meta: ArrayMeta, n_rows: int, rng: random.Random) -> NDArray[np.generic]:
    shape = (n_rows, *meta.shape[1:])
    if meta.dtype == TEXT:
        return np.array([rng.choice(("", "ä", "x" * 99)) for _ in range(n_rows)], dtype=object)
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 99, shape).astype(meta.dtype)


def change(
    changes: WriteSession, name: str, rows: NDArray[np.generic], rng: random.Random
) -> Arrays:
    """Lengthen, write, or begin anew."""
    meta = METAS[name]
    if rng.random() < 0.1:
        changes.delete(name)
        changes.create(name, meta)
        return {name: meta.unwritten(0)}
    if rng.random() < 0.5:
        more = rng.choice((1, 7, 16, 50))
        changes.resize(name, len(rows) + more)
        rows = np.concatenate([rows, meta.unwritten(more)])
    start = rng.randrange(len(rows) + 1)
    values = values_of(meta, min(len(rows) - start, rng.choice((0, 1, 5, 40))), rng)
    changes.write(name, start, values)
    written = rows.copy()
    written[start : start + len(values)] = values
    values[...] = values[::-1].copy()  # a caller may use its array again
    return {name: written}


def assert_same(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("gathered", [0, 500, 2**24])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_what_was_written_before_and_after_icechunk_has_them(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch, seed: int, gathered: int
) -> None:
    monkeypatch.setattr(icechunk_changes, "GATHERED_BYTES", gathered)
    rng = random.Random(seed)
    arrays: Arrays = {name: meta.unwritten(0) for name, meta in METAS.items()}
    for _ in range(4):
        changes = backend.begin()
        for _ in range(12):
            name = rng.choice(list(METAS))
            arrays |= change(changes, name, arrays[name], rng)
            seen = rng.choice(list(METAS))
            start = rng.randrange(len(arrays[seen]) + 1)
            stop = rng.randrange(start, len(arrays[seen]) + 1)
            assert_same(changes.read(seen, start, stop), arrays[seen][start:stop])
        changes.commit("rows")
    session = IcechunkBackend(backend.location).session(newest(backend))
    storage = icechunk.local_filesystem_storage(backend.location)
    by_zarr = root_group(icechunk.Repository.open(storage).readonly_session("main"))
    for name, rows in arrays.items():
        assert_same(session.read(name, 0, session.meta(name).n_rows), rows)
        array = by_zarr[name]
        assert isinstance(array, zarr.Array)
        assert_same(np.asarray(array[:]).astype(rows.dtype), rows)
    assert not list(backend.examine())


def newest(backend: IcechunkBackend) -> str:
    return backend.branches()["main"]


def test_what_was_not_handed_over_is_not_committed_without(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, changes = newest(backend), backend.begin()
    changes.resize("small", 3)
    changes.write("small", 0, np.ones((3, 2), np.uint8))

    async def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(icechunk_pending, "set_chunk", fail)
        with pytest.raises(OSError, match="No space"):
            changes.commit("rows")
    assert newest(backend) == before
    changes = backend.begin()
    changes.resize("small", 3)
    changes.commit("rows")
    assert backend.session(newest(backend)).read("small", 0, 3).tolist() == [[0, 0]] * 3


def test_what_is_discarded_is_gone(backend: IcechunkBackend) -> None:
    before, changes = newest(backend), backend.begin()
    changes.resize("text", 3)
    changes.write("text", 0, np.array(["a", "b", "c"], dtype=object))
    changes.discard()
    assert newest(backend) == before
    assert backend.begin().meta("text").n_rows == 0


def round_trips(path: Path, n_features: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often Zarr's thread is waited for in a commit of one video."""
    spec = [kpstore.FeatureSpec(f"k{k}", (2, 3), ("point", "space")) for k in range(n_features)]
    with kpstore.create(path).transaction("features") as tx:
        tx.add_videos([record("a", 4)])
        for one in spec:
            tx.add_feature(one, {})
    calls = 0
    run = asyncio.run_coroutine_threadsafe

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return run(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "run_coroutine_threadsafe", counted)
        with kpstore.open(path, mode="a").transaction("rows") as tx:
            tx.add_videos([record("b", 4)])
            for one in spec:
                tx.write(one.name, "b", np.ones((4, 2, 3), np.float32))
    assert kpstore.open(path).video("b")["k0"].tolist() == np.ones((4, 2, 3)).tolist()
    return calls


def test_a_small_commit_waits_as_often_for_many_features_as_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert round_trips(tmp_path / "one.kps", 1, monkeypatch) <= 6
    assert round_trips(tmp_path / "five.kps", 5, monkeypatch) <= 6
