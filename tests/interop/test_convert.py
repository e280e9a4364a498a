"""A store in another backend: the same arrays, versions and tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.errors import ExistsError
from kpstore.interop.convert import convert
from tests.conftest import location_of
from tests.fakes import fake_spec, record
from tests.store.data import PROVENANCE, fill, rows_of

BACKENDS = ("memory", "icechunk", "hdf5")


def versions(location: str) -> kpstore.Store:
    """A store with rows that are written, written again, appended and removed."""
    store = fill(kpstore.create(location), compression="lz4")
    store.tag("first")
    with store.transaction("more") as tx:
        tx.write("points", "d", rows_of("d", 20), failed_frames={3: "torn"})
        tx.fail("points", "c", "empty")
    with store.transaction("again") as tx:
        tx.write("points", "a", rows_of("a", 5, seed=7))
        tx.add_videos([record("e", 30, "test", gloss="E", signer="S")])
    store.at().tag("second")
    with store.transaction("gone") as tx:
        tx.remove_feature("points")
        tx.add_feature(fake_spec(8), PROVENANCE)
        tx.write("points", "b", rows_of("b", 9, seed=3))
    return store.at()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, kpstore.Store]:
    """Such a store on each backend, for reading."""
    folder = tmp_path_factory.mktemp("sources")
    return {kind: versions(location_of(kind, folder)) for kind in BACKENDS}


def same(one: kpstore.Store, other: kpstore.Store) -> None:
    assert one.session.names() == other.session.names()
    assert one.session.attrs() == other.session.attrs()
    for name in one.session.names():
        here, there = one.session.meta(name), other.session.meta(name)
        assert (
            here.shape,
            here.dtype,
            here.chunk_rows,
            here.dims,
            here.codec,
            dict(here.attrs),
        ) == (
            (there.shape, there.dtype, there.chunk_rows, there.dims, there.codec, dict(there.attrs))
        )
        np.testing.assert_array_equal(
            one.session.read(name, 0, here.n_rows), other.session.read(name, 0, here.n_rows)
        )


@pytest.mark.parametrize(
    ("kind", "to"),
    [
        ("memory", "icechunk"),
        ("icechunk", "hdf5"),
        ("icechunk", "icechunk"),
        ("hdf5", "icechunk"),
        ("hdf5", "memory"),
    ],
)
def test_all_versions_are_the_same_in_the_copy(
    sources: dict[str, kpstore.Store], tmp_path: Path, kind: str, to: str
) -> None:
    store = sources[kind]
    target = location_of(to, tmp_path / "copy")
    made = convert(store.location, target, with_history=True)
    copy = kpstore.open(target)
    assert (made.snapshot, made.versions) == (copy.snapshot, len(store.history()))
    assert [c.message for c in copy.history()] == [c.message for c in store.history()]
    for mine, theirs in zip(store.history(), copy.history(), strict=True):
        same(store.at(mine.id), copy.at(theirs.id))
        assert theirs.parent is None or theirs.metadata["converted_from"]["id"] == mine.id
    assert {tag: copy.at(tag).history()[0].message for tag in copy.tags} == {
        "first": "fill",
        "second": "again",
    }


@pytest.mark.parametrize("to", BACKENDS)
def test_one_version_alone(sources: dict[str, kpstore.Store], tmp_path: Path, to: str) -> None:
    store = sources["icechunk"]
    seen: list[tuple[int, int]] = []
    made = convert(
        store.location,
        location_of(to, tmp_path / "copy"),
        at="second",
        on_version=lambda *n: seen.append(n),
    )
    copy = kpstore.open(made.location)
    same(store.at("second"), copy)
    assert list(copy.tags) == ["second"]
    assert made.notes == ("tags of other versions: first (--history takes more)",)
    assert seen == [(1, 1)]


def test_nothing_is_left_of_a_copy_that_fails(tmp_path: Path) -> None:
    store = versions(str(tmp_path / "s.kps"))

    def stop(done: int, total: int) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        convert(store.location, str(tmp_path / "c.h5"), with_history=True, on_version=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["s.kps"]
    with pytest.raises(ExistsError, match="already exists"):
        convert(store.location, store.location)
    store.branch("side")
    assert convert(store.location, str(tmp_path / "c.h5"), with_history=True).notes == (
        "branches: side",
    )


def test_a_change_of_nothing_but_a_sign_is_copied(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", 2)])
        tx.add_feature(fake_spec(4))
        tx.write("points", "a", np.zeros((2, 5, 3), np.float32))
    with store.transaction("other zeros") as tx:
        tx.write("points", "a", np.full((2, 5, 3), -0.0, np.float32))
    copy = kpstore.open(convert(store.location, str(tmp_path / "c.h5"), with_history=True).location)
    assert np.signbit(copy["points"][:]).all()


def test_a_copy_says_how_many_versions_its_history_has(
    sources: dict[str, kpstore.Store], tmp_path: Path
) -> None:
    made = convert(sources["icechunk"].location, str(tmp_path / "c.h5"))
    assert made.versions == len(kpstore.open(made.location).history())


@pytest.mark.parametrize("suffix", [".kps", ".h5"])
def test_a_copy_is_never_made_in_a_store(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"s{suffix}"
    kpstore.create(source)
    for name in ("copy.kps", "copy.h5"):
        with pytest.raises(ExistsError, match="is a store, or lies in one; choose another place"):
            convert(str(source), str(source / name))
