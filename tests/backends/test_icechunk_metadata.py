"""What kpstore reads of Icechunk's metadata is what Icechunk says, and only where it knows them.

docs/decisions/010: a new version of Icechunk's format must cost speed, never other rows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype

from kpstore.backends import icechunk_directory, icechunk_manifests
from kpstore.backends.base import MAIN, ArrayMeta
from kpstore.backends.checksums import TABLE
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_home import repository_config
from kpstore.backends.icechunk_manifests import locate_chunks, nodes_of
from kpstore.backends.session_chunks import SessionChunks

ROWS, SIZE = 40, 8


def numbers(seed: int, n_rows: int = ROWS) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((n_rows, 300), dtype=np.float32)


@pytest.fixture(params=[8192, 2])
def backend(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> IcechunkBackend:
    """A store of several commits on two branches: written, unwritten, grown, deleted arrays.

    With all chunks of an array in one manifest, and with two in each.
    """
    monkeypatch.setattr(icechunk_directory, "CONFIG", repository_config(request.param))
    backend = IcechunkBackend(str(tmp_path / "store"))
    backend.create({}, "created")
    first = backend.begin()
    for name, codec in (("raw", "raw"), ("packed", "lz4"), ("gone", "zstd")):
        first.create(name, ArrayMeta((ROWS, 300), "float32", SIZE, ("frame", "x"), codec=codec))
        first.write(name, 0, numbers(1))
    first.create("unwritten", ArrayMeta((ROWS,), "int64", SIZE, ("frame",), fill=7))
    first.create("inline", ArrayMeta((ROWS,), "uint8", SIZE, ("frame",)))
    first.write("inline", 0, np.arange(ROWS, dtype=np.uint8))
    first.create("text", ArrayMeta((3,), "str", SIZE, ("video",)))
    first.write("text", 0, np.array(["a", "bé", ""], dtype=object))
    backend.create_branch("try", first.commit("first"))
    second = backend.begin()
    second.write("raw", 3, numbers(2, n_rows=9))
    second.delete("gone")
    backend.create_tag("v1", second.commit("second"))
    third = backend.begin()
    third.resize("packed", ROWS + 20)
    third.write("packed", ROWS + 5, numbers(3, n_rows=11))
    third.commit("third")
    other = backend.begin("try")
    other.write("gone", 0, numbers(4))
    other.commit("on the branch")
    return backend


def repository(backend: IcechunkBackend) -> icechunk.Repository:
    return icechunk.Repository.open(icechunk.local_filesystem_storage(backend.location))


def all_versions(repo: icechunk.Repository) -> list[str]:
    """Ids of all versions, from Icechunk, but for its own empty first one."""
    infos = [info for name in repo.list_branches() for info in repo.ancestry(branch=name)]
    return sorted({info.id for info in infos if info.parent_id is not None})


def chunks_of(
    store: icechunk.IcechunkStore, session: icechunk.Session, name: str
) -> dict[tuple[int, ...], bytes]:
    """The encoded bytes of an array's written chunks, from Icechunk."""

    async def read() -> dict[tuple[int, ...], bytes]:
        found = {}
        async for index in session.chunk_coordinates(f"/{name}"):
            key = "/".join([name, "c", *map(str, index)])
            buffer = await store.get(key, default_buffer_prototype())
            found[tuple(index)] = buffer.to_bytes()
        return found

    return asyncio.run(read())


def test_a_commit_writes_the_manifests_of_its_own_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icechunk_directory, "CONFIG", repository_config(2))
    backend = IcechunkBackend(str(tmp_path / "long"))
    backend.create({}, "created")
    changes = backend.begin()
    changes.create("a", ArrayMeta((ROWS, 300), "float32", SIZE, ("frame", "x")))
    changes.write("a", 0, numbers(0))
    changes.commit("written")
    before = _manifests_of(backend, "a")
    changes = backend.begin()
    changes.resize("a", ROWS + SIZE)
    changes.write("a", ROWS, numbers(1, SIZE))
    changes.commit("grown")
    after = _manifests_of(backend, "a")
    assert (len(before), len(after), len(after - before)) == (3, 3, 1)
    rows = backend.session(backend.branches()[MAIN]).read("a", 0, ROWS + SIZE)
    np.testing.assert_array_equal(rows, np.concatenate([numbers(0), numbers(1, SIZE)]))


def _manifests_of(backend: IcechunkBackend, name: str) -> set[str]:
    nodes = nodes_of(repository(backend), backend.branches()[MAIN])
    assert nodes is not None
    return {manifest["id"] for manifest in nodes[name]["manifest_refs"]}


def test_arrays_and_chunks_are_those_of_icechunks_own_reader(backend: IcechunkBackend) -> None:
    repo, n_chunks = repository(backend), 0
    versions = all_versions(repo)
    assert len(versions) == 5
    for version in versions:
        session = repo.readonly_session(snapshot_id=version)
        group = zarr.open_group(session.store, mode="r")
        nodes = nodes_of(repo, version)
        assert nodes is not None
        assert sorted(nodes) == sorted(name for name, _ in group.arrays())
        for name in nodes:
            places = locate_chunks(nodes, Path(backend.location), name)
            assert places is not None
            wanted = chunks_of(session.store, session, name)
            assert {index: place.read() for index, place in places.items()} == wanted
            n_chunks += len(wanted)
    assert n_chunks > 50


@pytest.mark.parametrize("at_once", [3, 256])
def test_rows_are_those_of_icechunks_own_reader(
    backend: IcechunkBackend, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icechunk_manifests, "_AT_ONCE", at_once)
    repo = repository(backend)
    for version in all_versions(repo):
        group = zarr.open_group(repo.readonly_session(snapshot_id=version).store, mode="r")
        session = backend.session(version)
        assert session.names() == sorted({name for name, _ in group.arrays()} - {TABLE})
        for name, rows in rows_of(backend, version):
            np.testing.assert_array_equal(rows, np.asarray(group[name][:]))


def rows_of(backend: IcechunkBackend, version: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every array, numbers by their chunks."""
    session = backend.session(version)
    for name in session.names():
        meta = session.meta(name)
        if meta.dtype == "str":
            yield name, session.read(name, 0, meta.n_rows)
            continue
        rows = np.empty((meta.n_chunks * SIZE, *meta.shape[1:]), meta.dtype)
        chunks = session.chunks(name)
        for number in range(meta.n_chunks):
            chunks.read_into(number, rows[number * SIZE : (number + 1) * SIZE])
        yield name, rows[: meta.n_rows]


def test_names_and_parents_are_those_of_icechunks_own_reader(backend: IcechunkBackend) -> None:
    repo = repository(backend)
    assert backend.branches() == {
        name: repo.lookup_branch(name) for name in sorted(repo.list_branches())
    }
    assert backend.tags() == {name: repo.lookup_tag(name) for name in sorted(repo.list_tags())}
    for version in all_versions(repo):
        *ancestry, _ = repo.ancestry(snapshot_id=version)
        ours = list(backend.history(version))
        assert [commit.id for commit in ours] == [info.id for info in ancestry]
        assert [commit.parent for commit in ours[:-1]] == [c.parent_id for c in ancestry[:-1]]
        assert ours[-1].parent is None


def later_manifest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(icechunk_manifests, "_FORMAT_1", 2)


def snapshot_patch(patch: pytest.MonkeyPatch, change: Any) -> None:
    inspect = icechunk.Repository.inspect_snapshot

    def changed(self: icechunk.Repository, *args: Any, **kwargs: Any) -> str:
        return json.dumps(change(json.loads(inspect(self, *args, **kwargs))))

    patch.setattr(icechunk.Repository, "inspect_snapshot", changed)


def renamed_key(patch: pytest.MonkeyPatch) -> None:
    snapshot_patch(patch, lambda found: {"arrays": found["nodes"]})


def other_node_types(patch: pytest.MonkeyPatch) -> None:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        nodes = [{**node, "node_type": node["node_type"].title()} for node in found["nodes"]]
        return {**found, "nodes": nodes}

    snapshot_patch(patch, change)


def other_manifest_refs(patch: pytest.MonkeyPatch) -> None:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        for node in found["nodes"]:
            node["manifests"] = node.pop("manifest_refs", None)
        return found

    snapshot_patch(patch, change)


def no_inspection(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(icechunk.Repository, "inspect_snapshot")


@pytest.mark.parametrize(
    "new_version",
    [later_manifest, renamed_key, other_node_types, other_manifest_refs, no_inspection],
)
def test_metadata_of_a_later_version_fall_back_to_icechunk(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch, new_version: Any
) -> None:
    versions = all_versions(repository(backend))
    wanted = {version: dict(rows_of(backend, version)) for version in versions}
    history = list(backend.history(backend.branches()[MAIN]))
    new_version(monkeypatch)
    again = IcechunkBackend(backend.location)
    assert isinstance(again.session(backend.branches()[MAIN]).chunks("raw"), SessionChunks)
    for version in versions:
        found = dict(rows_of(again, version))
        assert found.keys() == wanted[version].keys()
        for name, rows in found.items():
            np.testing.assert_array_equal(rows, wanted[version][name])
    assert list(again.history(again.branches()[MAIN])) == history
    assert list(again.examine()) == []


def test_a_store_with_metadata_of_a_later_version_can_be_written(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_inspection(monkeypatch)
    later_manifest(monkeypatch)
    again = IcechunkBackend(backend.location)
    changes = again.begin()
    changes.create("new", ArrayMeta((ROWS, 300), "float32", SIZE, ("frame", "x")))
    changes.write("new", 0, numbers(5))
    changes.write("raw", 20, numbers(6, n_rows=10))
    changes.delete("inline")
    newest = changes.commit("by the fallback")
    monkeypatch.undo()
    session = IcechunkBackend(backend.location).session(newest)
    assert session.names() == ["new", "packed", "raw", "text", "unwritten"]
    np.testing.assert_array_equal(session.read("new", 0, ROWS), numbers(5))
    np.testing.assert_array_equal(session.read("raw", 20, 30), numbers(6, n_rows=10))
    assert list(backend.examine()) == []
