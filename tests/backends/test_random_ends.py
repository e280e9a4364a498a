"""Random histories of appends, with branches, rollbacks and garbage collections."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import MAIN, ArrayMeta, Codec, WriteSession
from kpstore.backends.garbage import Before
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.testing.store_data import mapped_rows

CODECS: dict[str, Codec] = {"raw": "raw", "packed": "lz4"}
STEPS = 30
Arrays = dict[str, NDArray[np.float32]]


def create(changes: WriteSession, name: str) -> NDArray[np.float32]:
    meta = ArrayMeta((0, 8), "float32", 64, ("frame", "x"), float("nan"), codec=CODECS[name])
    changes.create(name, meta)
    return np.empty((0, 8), dtype=np.float32)


def change(
    changes: WriteSession, name: str, rows: NDArray[np.float32], rng: random.Random
) -> Arrays:
    """Append rows, all or some of which are written, or write others, or begin anew."""
    what, values = rng.random(), rng.random()
    if what < 0.65:
        more = rng.choice((1, 3, 10, 30, 64, 90))
        begin = len(rows) + rng.choice((0, rng.randrange(more)))
        changes.resize(name, len(rows) + more)
        rows = np.concatenate([rows, np.full((more, 8), np.nan, dtype=np.float32)])
        end = rng.choice((begin, len(rows)))
    elif what < 0.95:
        begin = rng.randrange(len(rows) + 1)
        end = min(len(rows), begin + rng.choice((1, 5, 70)))
        rows = rows.copy()
    else:
        changes.delete(name)
        return {name: create(changes, name)}
    if end > begin:
        rows[begin:end] = values
        changes.write(name, begin, rows[begin:end])
    return {name: rows}


@pytest.mark.parametrize("seed", [5, 6, 18, 29, 42, 54])
def test_all_versions_keep_their_rows_whatever_comes_after(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    backend = IcechunkBackend(str(tmp_path / "store"))
    backend.create({}, "made")
    changes = backend.begin()
    arrays = {name: create(changes, name) for name in CODECS}
    versions: dict[str, Arrays] = {changes.commit("arrays"): arrays}
    for step in range(STEPS):
        branches = backend.branches()
        branch = rng.choice(list(branches))
        what = rng.random()
        if what < 0.75:
            changes, arrays = backend.begin(branch), dict(versions[branches[branch]])
            for _ in range(rng.randint(1, 4)):
                name = rng.choice(list(CODECS))
                arrays |= change(changes, name, arrays[name], rng)
            versions.setdefault(changes.commit("rows"), arrays)
        elif what < 0.85:
            backend.create_branch(f"branch-{step}", rng.choice(list(versions)))
        elif what < 0.95:
            target = rng.choice([c.id for c in backend.history(branches[branch])])
            if target in versions:
                backend.reset_branch(branch, target, expected=branches[branch])
        else:
            now = datetime.now(UTC)
            backend.collect_garbage(Before(now, now), apply=True)
            left = {c.id for tip in branches.values() for c in backend.history(tip)}
            versions = {version: rows for version, rows in versions.items() if version in left}
    assert MAIN in backend.branches()
    assert not list(backend.examine())
    for version, arrays in versions.items():
        session = IcechunkBackend(backend.location).session(version)
        for name, rows in arrays.items():
            np.testing.assert_array_equal(session.read(name, 0, session.meta(name).n_rows), rows)
            mapped = mapped_rows(session, name)
            if mapped is not None:
                np.testing.assert_array_equal(mapped, rows)
