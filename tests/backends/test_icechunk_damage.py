"""Files of an Icechunk store that are no longer what was written are never read as data."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
import icechunk
import numpy as np
import pytest
import xarray
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

import kpstore
from kpstore.backends import flatbuffers, icechunk_chunks, icechunk_table
from kpstore.backends.base import MAIN, TEXT, ArrayMeta, Codec
from kpstore.backends.garbage import Before
from kpstore.backends.icechunk import IcechunkBackend
from kpstore.backends.icechunk_manifests import locate_chunks, locate_rows, nodes_of
from kpstore.backends.ledger import Ledger
from kpstore.errors import ConflictError, CorruptError, ExistsError, InvalidError
from tests.store.data import copy_store, format_1

ROWS, SIZE = 10, 4
"""Of array ``a``: three chunks, the last of them short."""


def values(n_rows: int = ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, 200)).astype(np.float32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    backend = IcechunkBackend(str(tmp_path_factory.mktemp("built") / "s.kps"))
    backend.create({}, "created")
    changes = backend.begin()
    changes.create(
        "a", ArrayMeta((ROWS, 200), "float32", SIZE, ("frame", "x"), float("nan"), codec="raw")
    )
    changes.create("words", ArrayMeta((6,), TEXT, 3, ("word",)))
    changes.write("a", 0, values())
    changes.write("words", 0, np.array([*"abcdef"], dtype=object))
    backend.create_tag("old", changes.commit("filled"))
    changes = backend.begin()
    changes.write("a", 0, values(SIZE, seed=1))
    changes.commit("other rows")
    backend.create_branch("side", backend.tags()["old"])
    return backend.location


@pytest.fixture
def backend(built: str, tmp_path: Path) -> IcechunkBackend:
    """Two versions after the first; rows 0 to 4 of ``a`` changed since the tag ``old``."""
    return IcechunkBackend(copy_store(built, tmp_path))


def file_of(backend: IcechunkBackend, name: str, chunk: int) -> Path:
    session = backend.session(backend.branches()[MAIN])
    return Path(backend.location) / session.place(name, chunk)


def read(backend: IcechunkBackend, at: str | None = None, name: str = "a") -> np.ndarray:
    again = IcechunkBackend(backend.location)
    session = again.session(at or again.branches()[MAIN])
    return session.read(name, 0, session.meta(name).n_rows)


def swap(one: Path, other: Path) -> None:
    here, there = one.read_bytes(), other.read_bytes()
    one.write_bytes(there)
    other.write_bytes(here)


def flip(path: Path, at: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


def replace(path: Path, body: bytes) -> None:
    """Put another chunk of as many bytes in a file, with the check at its end."""
    assert len(body) + 4 == path.stat().st_size
    path.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))


def claim_to_have(path: Path) -> None:
    """Let Blosc read a block far behind the chunk's end."""
    body = bytearray(path.read_bytes()[:-4])
    struct.pack_into("<2I", body, 12, 2**31 - 1, 2**31 - 100)
    replace(path, bytes(body))


def claim_to_become(path: Path) -> None:
    """Let the header of a Zstandard frame say that it becomes 3 GiB."""
    body = path.read_bytes()[:-4]
    frame = b"\x28\xb5\x2f\xfd\xe0" + (3 * 2**30).to_bytes(8, "little")
    replace(path, frame + body[len(frame) :])


@pytest.mark.parametrize(
    ("codec", "make", "said"),
    [
        ("lz4", claim_to_have, "it claims 2147483647 bytes"),
        ("zstd", claim_to_become, "it becomes 3,072 MiB"),
    ],
)
@pytest.mark.parametrize("n_chunks", [1, 8])
def test_what_a_chunk_claims_is_looked_at_before_it_is_decoded(
    backend: IcechunkBackend, codec: Codec, make: Callable[[Path], None], said: str, n_chunks: int
) -> None:
    changes = backend.begin()
    changes.create("c", ArrayMeta((8 * SIZE, 200), "float32", SIZE, ("frame", "x"), codec=codec))
    changes.write("c", 0, np.round(values(8 * SIZE), 1))
    changes.commit("compressed")
    make(file_of(backend, "c", 2))
    session = IcechunkBackend(backend.location).session(backend.branches()[MAIN])
    first = 2 * SIZE if n_chunks == 1 else 0
    with pytest.raises(CorruptError, match=f"rows 8:12 of 'c' .*{said}"):
        session.read("c", first, first + n_chunks * SIZE)


# -- what a worker wrote ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "lz4", "zstd"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(
            path, -1
        ),  # in the codec's own checksum, which others who read the chunk compare
        lambda path: flip(path, 12),
        lambda path: path.write_bytes(path.read_bytes()[:3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["its CRC", "a bit", "three bytes", "empty", "gone"],
)
def test_what_a_worker_wrote_is_looked_at_as_others_will_read_it(
    backend: IcechunkBackend, codec: Codec, damage: Callable[[Path], object]
) -> None:
    changes = backend.begin()
    changes.create(
        "b", ArrayMeta((400, 200), "float32", SIZE, ("frame", "x"), float("nan"), codec=codec)
    )
    changes.commit("b")
    changes = backend.begin()
    fork = changes.fork()
    folder = Path(backend.location) / "chunks"
    before = set(folder.iterdir())
    fork.write("b", 40, values(SIZE))
    fork.write("b", 80, values(40 * SIZE, seed=3))
    written = next(iter(set(folder.iterdir()) - before))
    fork = pickle.loads(pickle.dumps(fork))
    fork.check()
    damage(written)
    with pytest.raises(
        CorruptError, match=r"of 'b', which a worker says it wrote, (cannot be read: \S|hold other)"
    ):
        fork.check()


# -- chunks ----------------------------------------------------------------------------------------


def test_chunks_that_have_changed_places_are_said(backend: IcechunkBackend) -> None:
    one, other = (file_of(backend, "a", chunk) for chunk in (0, 1))
    swap(one, other)
    said = (
        r"rows 0:4 of 'a' in .*s.kps cannot be read: it is not what was committed there "
        rf"\(chunks/{one.name}\)"
    )
    with pytest.raises(CorruptError, match=said):
        read(backend)
    session = IcechunkBackend(backend.location).begin()
    with pytest.raises(CorruptError, match=f"rows 4:8 .*{other.name}"):
        session.read("a", 5, 6)
    np.testing.assert_array_equal(session.read("a", 8, 10), values()[8:])


def test_a_chunk_of_another_version_is_not_taken_for_todays(backend: IcechunkBackend) -> None:
    old = backend.session(backend.tags()["old"]).place("a", 0)
    shutil.copy(Path(backend.location) / old, file_of(backend, "a", 0))
    with pytest.raises(CorruptError, match="rows 0:4 of 'a'"):
        read(backend)
    np.testing.assert_array_equal(read(backend, backend.tags()["old"]), values())


def test_a_chunk_that_no_manifest_lists_any_more_is_not_read_as_missing(
    backend: IcechunkBackend,
) -> None:
    """Zarr reads fill for it, as for a chunk that nobody wrote."""
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).writable_session(MAIN)
    asyncio.run(session.store.delete("a/c/1/0"))
    session.commit("a chunk is lost")
    with pytest.raises(CorruptError, match=r"rows 4:8 of 'a' .* \(no file\)"):
        read(backend)


def test_damage_is_never_written_back_with_a_new_checksum(backend: IcechunkBackend) -> None:
    for chunk in range(3):
        flip(file_of(backend, "a", chunk))
    changes = IcechunkBackend(backend.location).begin()
    for start, n_rows in ((1, 1), (0, 3), (2, 6), (9, 1)):
        with pytest.raises(CorruptError, match=r"rows \d+:\d+ of 'a' .* cannot be read"):
            changes.write("a", start, values(n_rows))
    changes.write("a", 0, values(4, seed=5))
    changes.write("a", 4, values(6, seed=6))
    changes.commit("whole chunks, the short last one too, may be written over damage")
    np.testing.assert_array_equal(
        read(backend), np.concatenate([values(4, seed=5), values(6, seed=6)])
    )


@pytest.mark.parametrize("start", [0, 1, 4, 7])
@pytest.mark.parametrize("stop", [8, 9, 10])
def test_large_writes_fill_up_chunks_at_their_ends_alone(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch, start: int, stop: int
) -> None:
    monkeypatch.setattr(icechunk_chunks, "_COPY_BYTES", 0)
    before = read(backend)
    changes = backend.begin()
    changes.write("a", start, values(stop - start, seed=3))
    changes.commit("in pieces")
    before[start:stop] = values(stop - start, seed=3)
    np.testing.assert_array_equal(read(backend), before)


def test_the_table_grows_and_gives_rows_of_deleted_arrays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(icechunk_table, "COLUMNS", 2)
    backend = IcechunkBackend(str(tmp_path / "s.kps"))
    backend.create({}, "created")
    meta = ArrayMeta((ROWS, 200), "float32", 1, ("frame", "x"))
    for name in ("a", "b"):
        changes = backend.begin()
        changes.create(name, meta)
        changes.write(name, 0, values())
        changes.commit(name)
    both = backend.branches()[MAIN]
    changes = backend.begin()
    changes.delete("a")
    changes.create("c", meta)
    changes.write("c", 3, values(2, seed=3))
    changes.delete("b")
    changes.create("b", meta)
    changes.commit("c takes the row of a, b begins anew")
    session = backend._repo().readonly_session(branch=MAIN)
    table = zarr.open_array(session.store, path="chunk_checksums", mode="r")
    assert (table.shape, sorted(table.attrs["arrays"])) == ((2, 10), ["b", "c"])
    assert not read(backend, name="b").any()
    assert np.flatnonzero(read(backend, name="c").any(axis=1)).tolist() == [3, 4]
    np.testing.assert_array_equal(read(backend, both, name="a"), values())


def test_a_damaged_table_is_one_line(backend: IcechunkBackend) -> None:
    changes = backend.begin()
    changes.create("many", ArrayMeta((200, 1), "float32", 1, ("frame", "x")))
    changes.write("many", 0, values(200)[:, :1])
    changes.commit("so many that their checksums are a file")
    nodes = backend.nodes(backend.branches()[MAIN])
    assert (
        locate_rows(nodes, backend.path, "chunk_checksums", 1) is None
    )  # the table is cut along both axes: only Icechunk can say
    newest = max(
        (Path(backend.location) / "chunks").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )
    flip(newest, 50)
    with pytest.raises(CorruptError, match=r"the checksums of 'many' in .* cannot be read: \S"):
        read(backend, name="many")
    assert read(backend, name="words").tolist() == [*"abcdef"]


def test_a_table_that_holds_other_checksums_is_damaged_not_the_chunks(
    backend: IcechunkBackend,
) -> None:
    changes = backend.begin()
    changes.create("more", ArrayMeta((ROWS, 200), "float32", SIZE, ("frame", "x"), codec="raw"))
    changes.write("more", 0, values(seed=7))
    changes.commit("more")
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).writable_session(MAIN)
    table = zarr.open_array(session.store, path="chunk_checksums", mode="r+")
    rows = [table.attrs["arrays"].index(name) for name in ("a", "more")]
    one, other = table[rows[0]], table[rows[1]]
    table[rows[0]], table[rows[1]] = other, one
    session.commit("two rows of the table change places")
    again = IcechunkBackend(backend.location)
    for name in ("a", "more"):
        with pytest.raises(
            CorruptError,
            match=f"of '{name}' .*the table of checksums is damaged at '{name}', chunks 0",
        ):
            read(again, name=name)
    assert read(again, name="words").tolist() == [*"abcdef"]
    changes = again.begin()
    changes.write("words", 0, np.array([*"xyz"], dtype=object))
    changes.commit("what has nothing to do with it")
    changes = again.begin()
    with pytest.raises(CorruptError, match="the table of checksums is damaged at 'more'"):
        changes.write("more", 0, values(2))
    changes.discard()


@pytest.mark.parametrize(
    ("chunks", "compressors"),
    [((1, 2048), ("zstd",)), ((1, 2048), ("blosc", "crc32c")), ((2, 1024), ("zstd", "crc32c"))],
)
def test_a_table_that_other_software_wrote_in_its_own_way_is_read(
    backend: IcechunkBackend, chunks: tuple[int, int], compressors: tuple[str, ...]
) -> None:
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).writable_session(MAIN)
    group = zarr.open_group(session.store)
    table = group["chunk_checksums"]
    assert isinstance(table, zarr.Array)
    cells, attrs = table[:], dict(table.attrs)
    del group["chunk_checksums"]
    codecs = {"zstd": ZstdCodec(), "blosc": BloscCodec(), "crc32c": Crc32cCodec()}
    made = group.create_array(
        "chunk_checksums",
        shape=cells.shape,
        chunks=chunks,
        dtype="uint64",
        fill_value=0,
        attributes=attrs,
        compressors=[codecs[name] for name in compressors],
    )
    made[:] = cells
    session.commit("the table in another encoding")
    assert read(backend)[:SIZE].tolist() == values(SIZE, seed=1).tolist()
    flip(file_of(backend, "a", 1))
    with pytest.raises(CorruptError, match="rows 4:8 of 'a'"):
        read(backend)


def test_numbers_in_a_manifest_that_cannot_be_are_no_crash(
    backend: IcechunkBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit is enough: an index of impossible length, an offset behind the end of all files."""
    numbers = flatbuffers.Numbers.at
    with monkeypatch.context() as patch:
        patch.setattr(flatbuffers, "_MOST_ITEMS", 0)
        np.testing.assert_array_equal(read(backend)[SIZE:], values()[SIZE:])  # by Icechunk itself
    says = {2**41: r"at .* has \d+ bytes, those up to \d+ were", 2**63: "is damaged: a chunk that"}
    for huge, words in says.items():

        def at(
            self: Any, places: NDArray[np.int64], dtype: str, huge: int = huge
        ) -> NDArray[np.int64]:
            found = numbers(self, places, dtype)
            if dtype == "<u8":
                found[1:2] = np.uint64(huge).astype("<i8")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(flatbuffers.Numbers, "at", at)
            again = IcechunkBackend(backend.location)
            chunks = again.session(again.branches()[MAIN]).chunks("a")
            out = np.empty((SIZE, 200), np.float32)
            with pytest.raises(CorruptError, match=f"chunk 1 .*{words}"):
                chunks.read_into(1, out)
            chunks.read_into(2, out)  # its own reference is sound
            np.testing.assert_array_equal(out[:2], values()[2 * SIZE : 2 * SIZE + 2])


def test_plain_zarr_and_xarray_still_open_a_store(backend: IcechunkBackend) -> None:
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).readonly_session(MAIN)
    with xarray.open_zarr(session.store, consolidated=False) as opened:
        np.testing.assert_array_equal(opened["a"][SIZE:].to_numpy(), values()[SIZE:])
    assert "chunk_checksums" in zarr.open_group(session.store, mode="r")
    assert backend.session(session.snapshot_id).names() == ["a", "words"]


def test_arrays_of_other_software_are_read_as_they_are(backend: IcechunkBackend) -> None:
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).writable_session(MAIN)
    theirs = zarr.open_group(session.store, mode="r+").create_array(
        "theirs", shape=(6,), chunks=(2,), dtype="int64"
    )
    theirs[:] = np.arange(6)
    session.commit("by plain Zarr")
    changes = IcechunkBackend(backend.location).begin()
    changes.write("theirs", 1, np.array([7, 8]))
    changes.write("a", 0, values(2, seed=9))
    changes.commit("by kpstore on top")
    assert backend.session(backend.branches()[MAIN]).checksums("theirs") is None
    assert read(backend, name="theirs").tolist() == [0, 7, 8, 3, 4, 5]
    assert list(backend.examine()) == []


def test_a_single_number_of_other_software_stops_no_garbage_collection(
    backend: IcechunkBackend,
) -> None:
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(backend.location)
    ).writable_session(MAIN)
    group = zarr.open_group(session.store, mode="r+")
    group.create_array("spatial_ref", shape=(), dtype="int64")[()] = 4326  # as xarray writes it
    session.commit("a scalar")
    now = datetime.now(UTC)
    backend.collect_garbage(Before(now, now), apply=True)
    np.testing.assert_array_equal(read(backend)[:SIZE], values(SIZE, seed=1))
    kept = icechunk.Repository.open(icechunk.local_filesystem_storage(backend.location))
    group = zarr.open_group(kept.readonly_session(MAIN).store, mode="r")
    assert group["spatial_ref"][()] == 4326
    assert (
        locate_chunks(
            nodes_of(kept, backend.branches()[MAIN]), Path(backend.location), "spatial_ref"
        )
        is None
    )


# -- forks -----------------------------------------------------------------------------------------


def wrote(backend: IcechunkBackend) -> tuple[bytes, Path]:
    """A fork with chunks 1 and 2 of ``a``, as a worker sends it, and the file of chunk 1."""
    folder = Path(backend.location) / "chunks"
    before = set(folder.iterdir())
    fork = pickle.loads(pickle.dumps(backend.begin().fork()))
    fork.write("a", 4, values(6, seed=2))
    one, *others = set(folder.iterdir()) - before
    assert others
    return pickle.dumps(fork), one


@pytest.mark.parametrize("lost", ["chunk", "disk"])
def test_a_fork_whose_chunks_are_on_another_disk_fails_its_check(
    backend: IcechunkBackend, lost: str
) -> None:
    sent, chunk = wrote(backend)
    pickle.loads(sent).check()
    if lost == "chunk":
        chunk.unlink()
    else:
        shutil.move(backend.location, backend.location + ".elsewhere")
    with pytest.raises(
        CorruptError, match=r"'a', (which|of which) a worker says it wrote.* cannot be read: \S"
    ):
        pickle.loads(sent).check()


def test_a_fork_whose_chunks_hold_something_else_fails_its_check(backend: IcechunkBackend) -> None:
    sent, chunk = wrote(backend)
    other = file_of(backend, "a", 0)
    chunk.write_bytes(other.read_bytes())
    with pytest.raises(
        CorruptError, match="of 'a', which a worker says it wrote, hold other values"
    ):
        pickle.loads(sent).check()


def test_two_forks_that_wrote_one_chunk_are_refused(backend: IcechunkBackend) -> None:
    changes = backend.begin()
    forks = [changes.fork(), changes.fork()]
    for seed, fork in enumerate(forks):
        fork.write("a", SIZE, values(ROWS - SIZE, seed=seed))
    with pytest.raises(ConflictError, match=r"chunk 1 of 'a' in .* was written by two forks"):
        changes.merge(forks)
    changes.discard()


# -- names -----------------------------------------------------------------------------------------


def test_names_that_an_older_kpstore_made_are_found_again(tmp_path: Path) -> None:
    store = kpstore.open(format_1(tmp_path, ".kps"), mode="a")
    assert list(store.tags) == ["first", "版本1"]
    assert list(store.branches) == ["main", "seite-ö"]
    assert store.at("版本1").history()[0].message == "more"
    assert store.at("seite-ö").snapshot == store.at("first").snapshot
    with store.transaction("on the branch", branch="seite-ö") as tx:
        tx.set_splits({"a": "dev"})
    assert store.at("seite-ö").index.splits[0] == "dev"
    with pytest.raises(ExistsError, match="版本1"):
        store.tag("版本1")
    store.delete_tag("版本1")
    assert list(store.tags) == ["first"]
    with pytest.raises(ExistsError, match="版本1"):
        store.tag("版本1")


def test_a_name_in_another_normal_form_is_the_same_name(store: kpstore.Store) -> None:
    two_characters, one_character = "u\u0308ber", "über"
    store.tag(two_characters)
    assert list(store.tags) == [one_character]
    for name in (two_characters, one_character):
        assert store.at(name).snapshot == store.snapshot
        with pytest.raises(ExistsError):
            store.tag(name)
    store.tag("हिन्दी-1")
    assert store.at("हिन्दी-1").snapshot == store.snapshot
    store.delete_tag(two_characters)
    assert list(store.tags) == ["हिन्दी-1"]


@pytest.mark.parametrize(
    "name", ["x" * 252, "".join(map(chr, range(0x4E00, 0x8E00, 97))), "a b", "a/b", "a%b"]
)
def test_a_name_that_no_file_can_have_is_refused_and_nothing_is_made(
    backend: IcechunkBackend, name: str
) -> None:
    before = sorted(Path(backend.location).rglob("*"))
    newest = backend.branches()[MAIN]
    for make in (backend.create_tag, backend.create_branch):
        with pytest.raises(
            InvalidError,
            match=r"^(tag|branch) name .* (choose a shorter one|use letters and digits)$",
        ):
            make(name, newest)
    assert sorted(Path(backend.location).rglob("*")) == before


def test_the_longest_names_work(backend: IcechunkBackend) -> None:
    for name in ("x" * 251, "版" * 60):
        backend.create_tag(name, backend.branches()[MAIN])
        assert name in IcechunkBackend(backend.location).tags()


@pytest.mark.parametrize("damage", ["zero", "cut", "missing"])
def test_a_damaged_name_is_said_when_it_is_asked_for(backend: IcechunkBackend, damage: str) -> None:
    store = kpstore.create(backend.location + "2")
    store.tag("版本1")
    store.tag("good")
    store.branch("side")
    for file in ("refs/tag.xn--1-756b314a/ref.json", "refs/branch.side/ref.json"):
        path = Path(store.location) / file
        content = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(
            bytes(35) if damage == "zero" else content[:20]
        )
    again = kpstore.open(store.location, mode="a")
    assert again.at("good").snapshot == store.snapshot
    for name, file in (
        ("版本1", "refs/tag.xn--1-756b314a/ref.json"),
        ("side", "refs/branch.side/ref.json"),
    ):
        said = (
            f"{name}' of .* cannot be read: {file} is (damaged|gone); it named version "
            f"{store.snapshot}"
        )
        with pytest.raises(CorruptError, match=said):
            again.at(name)
        assert any(file in line for line in again.backend.examine())
    with pytest.raises(ExistsError):
        again.tag("版本1")
    with pytest.raises(CorruptError, match="branch 'side'"):
        again.transaction("on it", branch="side")


def test_a_damaged_name_is_told_of_where_names_are_listed(
    backend: IcechunkBackend, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(backend.location) / "refs/tag.old/ref.json").write_bytes(bytes(35))
    again = IcechunkBackend(backend.location)
    assert (dict(again.tags()), dict(again.tags())) == ({}, {})
    assert [
        record.getMessage().count("refs/tag.old/ref.json is damaged") for record in caplog.records
    ] == [1]


def test_others_can_commit_while_a_store_is_examined(backend: IcechunkBackend) -> None:
    for version in (backend.branches()[MAIN], backend.tags()["old"]):
        (Path(backend.location) / "transactions" / version).write_bytes(b"")
    lines = IcechunkBackend(backend.location).examine()
    assert "is damaged: transactions/" in next(lines)
    backend.create_tag("meanwhile", backend.branches()[MAIN])
    assert len(list(lines)) == 1


def test_a_branch_with_the_file_of_one_that_builds_upon_it_is_damaged(
    backend: IcechunkBackend,
) -> None:
    main, side = (
        Path(backend.location) / f"refs/branch.{name}/ref.json" for name in (MAIN, "side")
    )
    side.write_bytes(main.read_bytes())
    with pytest.raises(
        CorruptError, match=r"branch 'side' of .* the newest that was committed to it"
    ):
        IcechunkBackend(backend.location).branches()["side"]


def test_a_branch_stays_ahead_when_another_one_is_committed_to_on_top_of_it(
    backend: IcechunkBackend,
) -> None:
    changes = backend.begin()
    changes.write("a", 0, values(1, seed=4))
    newest = changes.commit("killed before its line was written")
    forget_last_line(Path(backend.location))
    backend.create_branch("new", newest)
    changes = backend.begin("new")
    changes.write("a", 0, values(1, seed=5))
    changes.commit("on the new branch")
    again = IcechunkBackend(backend.location)
    assert (list(again.examine()), again.branches()[MAIN]) == ([], newest)


def test_a_deleted_tag_that_comes_back_is_told(backend: IcechunkBackend) -> None:
    backend.delete_tag("old")
    (Path(backend.location) / "refs/tag.old/ref.json.deleted").unlink()
    again = IcechunkBackend(backend.location)
    (line,) = again.examine()
    assert "tag 'old'" in line
    assert "it was deleted, and refs/tag.old/ref.json is there again" in line
    with pytest.raises(CorruptError, match="it was deleted"):
        again.tags()["old"]
    again.delete_tag("old")
    assert list(IcechunkBackend(backend.location).examine()) == []


def test_a_branch_that_has_lost_versions_is_not_read_or_built_upon(
    backend: IcechunkBackend,
) -> None:
    main, side = (
        Path(backend.location) / f"refs/branch.{name}/ref.json" for name in (MAIN, "side")
    )
    main.write_bytes(side.read_bytes())
    again = IcechunkBackend(backend.location)
    said = r"branch 'main' of .* refs/branch.main/ref.json leads to version \w+, but \w+"
    for call in (lambda: again.branches()[MAIN], again.begin):
        with pytest.raises(CorruptError, match=said):
            call()
    assert again.branches()["side"] == again.tags()["old"]
    (Path(backend.location) / "kpstore" / "ledger").unlink()
    assert again.branches()[MAIN] == again.tags()["old"]


# -- the ledger ------------------------------------------------------------------------------------


def damage_nothing(folder: Path) -> None:
    """Leave all as it is."""


def forget_last_line(folder: Path) -> None:
    """As if a kill had come between Icechunk's commit and the line."""
    ledger = folder / "kpstore" / "ledger"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))


def tear_last_line(folder: Path) -> None:
    """As if it had come while the line was being written."""
    ledger = folder / "kpstore" / "ledger"
    ledger.write_bytes(ledger.read_bytes()[:-30])


@pytest.mark.parametrize("killed", [damage_nothing, forget_last_line, tear_last_line])
@pytest.mark.parametrize("change", ["commit", "tag", "delete tag", "branch", "reset"])
def test_a_kill_between_a_change_and_its_line_is_no_damage(
    backend: IcechunkBackend, change: str, killed: Callable[[Path], None]
) -> None:
    newest, old = backend.branches()[MAIN], backend.tags()["old"]
    if change == "commit":
        changes = backend.begin()
        changes.write("a", 0, values(1, seed=4))
        changes.commit("one more")
    elif change == "reset":
        backend.reset_branch(MAIN, old, expected=newest)
    else:
        {
            "tag": backend.create_tag,
            "branch": backend.create_branch,
            "delete tag": lambda name, _: None,
        }[change]("new", newest)
        if change == "delete tag":
            backend.delete_tag("old")
    killed(Path(backend.location))
    again = IcechunkBackend(backend.location)
    assert list(again.examine()) == []
    assert again.branches() == backend.branches()
    assert again.tags() == backend.tags()
    changes = again.begin()
    changes.write("a", 0, values(1, seed=5))
    changes.commit("life goes on")
    assert list(again.examine()) == []


@pytest.mark.parametrize("version", ["../../outside", "\ud800", "", "a" * 20])
def test_what_is_no_id_of_a_version_is_damage_of_the_ledger(
    backend: IcechunkBackend, version: str
) -> None:
    ledger = Ledger(Path(backend.location) / "kpstore" / "ledger")
    sound = len(ledger.read().content.splitlines())
    ledger.write([{"tag": "old", "is": [version]}, {"version": version, "parent": None}])
    ledger.write([{"files": {f"snapshots/{version}": "0"}}])
    assert list(backend.examine()) == [
        f"kpstore/ledger is damaged: line {sound + n} is not what was written" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize(("change", "name"), [("delete_tag", "old"), ("delete_branch", "try")])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_a_name_is_deleted_is_no_damage(
    backend: IcechunkBackend,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    name: str,
    after: bool,
) -> None:
    backend.create_branch("try", backend.branches()[MAIN])
    real = getattr(icechunk.Repository, change)

    def killed(*given: object) -> None:
        if after:
            real(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(icechunk.Repository, change, killed)
        with pytest.raises(KeyboardInterrupt):
            getattr(backend, change)(name)
    again = IcechunkBackend(backend.location)
    assert list(again.examine()) == []
    assert (name in {**again.branches(), **again.tags()}) is not after


def test_a_store_works_without_its_ledger_and_begins_another(
    backend: IcechunkBackend, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Path(backend.location) / "kpstore" / "ledger"
    ledger.unlink()
    assert list(backend.examine()) == []
    assert (
        "has no kpstore/ledger: names and descriptions of versions cannot be checked" in caplog.text
    )
    read(backend)
    backend.create_tag("new", backend.tags()["old"])
    assert list(backend.examine()) == []
    (Path(backend.location) / "refs" / "tag.old" / "ref.json").unlink()
    flip(Path(backend.location) / "snapshots" / backend.tags()["new"])
    assert len(list(backend.examine())) == 2


def test_a_moved_copied_store_keeps_a_valid_ledger(backend: IcechunkBackend) -> None:
    shutil.copytree(backend.location, backend.location + ".copy")
    shutil.move(backend.location, backend.location + ".moved")
    for name in (".copy", ".moved"):
        assert list(IcechunkBackend(backend.location + name).examine()) == []


def test_other_software_may_commit_and_its_versions_are_taken_over(
    backend: IcechunkBackend,
) -> None:
    for n in range(2):
        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(backend.location))
        session = repository.writable_session(MAIN)
        zarr.open_group(session.store, mode="r+").attrs["n"] = n
        theirs = session.commit("by plain Icechunk")
    assert list(backend.examine()) == []
    changes = IcechunkBackend(backend.location).begin()
    changes.set_attrs({"mine": 1})
    changes.commit("on top")
    flip(Path(backend.location) / "snapshots" / theirs)
    assert [line for line in backend.examine() if f"snapshots/{theirs}" in line]


@pytest.mark.parametrize("kind", ["snapshots", "manifests", "transactions", "refs", "kpstore"])
@pytest.mark.parametrize("how", ["flip", "cut", "zero", "missing", "swapped"])
def test_whatever_becomes_of_a_file_that_describes_versions_is_found(
    backend: IcechunkBackend, kind: str, how: str
) -> None:
    root = Path(backend.location)
    files = sorted(
        path
        for path in (root / kind).rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != "last-chunks"
    )
    if how == "missing":
        files = [path for path in files if path.name != "ledger"]  # which may be deleted
    for number, path in enumerate(files):
        other = files[number - 1]
        kept = path.read_bytes(), other.read_bytes()
        if kept[0] == kept[1] and how == "swapped":
            continue  # names of one version
        {
            "flip": lambda path=path: flip(path, 20),
            "cut": lambda path=path: path.write_bytes(path.read_bytes()[:10]),
            "zero": lambda path=path: path.write_bytes(bytes(len(path.read_bytes()))),
            "missing": lambda path=path: path.unlink(),
            "swapped": lambda path=path, other=other: swap(path, other),
        }[how]()
        lines = list(IcechunkBackend(backend.location).examine())
        assert lines, path
        assert all("\n" not in line for line in lines)
        named = {
            str(file.relative_to(root)) for file in (path, other if how == "swapped" else path)
        }
        assert any(file in line for file in named for line in lines), (path, lines)
        path.write_bytes(kept[0])
        other.write_bytes(kept[1])
    assert list(IcechunkBackend(backend.location).examine()) == []


def test_a_version_whose_description_was_changed_is_not_opened_or_built_upon(
    backend: IcechunkBackend,
) -> None:
    newest = backend.branches()[MAIN]
    path = Path(backend.location) / "snapshots" / newest
    shutil.copy(Path(backend.location) / "snapshots" / backend.tags()["old"], path)
    again = IcechunkBackend(backend.location)
    for call in (lambda: again.session(newest), again.begin):
        with pytest.raises(
            CorruptError, match=f"snapshots/{newest} does not hold what was written"
        ):
            call()
    np.testing.assert_array_equal(read(backend, backend.tags()["old"]), values())


def test_a_conflict_leaves_no_checksums_behind(backend: IcechunkBackend) -> None:
    one, two = backend.begin(), backend.begin()
    one.write("a", 0, values(1, seed=4))
    two.write("a", 1, values(1, seed=5))
    one.commit("first")
    with pytest.raises(ConflictError):
        two.commit("second")
    read(backend)
    assert list(backend.examine()) == []
