"""What is damaged is made again, just that, with the same bits.

What cannot be made again is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import kpstore
from kpstore.backends import memory
from kpstore.backends.base import ReadSession, WriteSession
from kpstore.errors import CorruptError, NotFoundError
from kpstore.extractors.base import AnyExtractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify, verify_all
from kpstore.schema.feature import FeatureSpec, State
from kpstore.sources.base import Source
from kpstore.store.repair import repair
from tests.conftest import location_of, memory_location
from tests.fakes import FakeExtractor, FakeSource
from tests.ingest.models import Faces, Portraits
from tests.store.damage import damaged_copy
from tests.store.data import copy_store, fill, rows_of

DISK_KINDS = ["icechunk", "hdf5"]

LENGTHS = {"a": 5, "b": 9, "none": 0, "c": 20, "d": 3, "e": 7, "f": 11}
SOURCE = FakeSource(LENGTHS, broken={"b": [2], "e": [0]}, unreadable=("d",))
SERIAL = Options(workers=0)


class Disk:
    """Damaged chunks of a store in memory: only writing all of one makes it readable again."""

    def __init__(self) -> None:
        self.damaged: set[tuple[str, int]] = set()

    def check(self, session: ReadSession, name: str, start: int, stop: int) -> None:
        rows = session.meta(name).chunk_rows
        for chunk in range(start // rows, -(-stop // rows)):
            if (name, chunk) in self.damaged:
                raise CorruptError(
                    f"rows {start}:{stop} of {name!r} in memory cannot be read: wrong checksum"
                )

    def write(self, session: WriteSession, name: str, start: int, n_rows: int) -> None:
        meta = session.meta(name)
        stop = start + n_rows
        for chunk in range(start // meta.chunk_rows, -(-stop // meta.chunk_rows)):
            first, last = chunk * meta.chunk_rows, min((chunk + 1) * meta.chunk_rows, meta.n_rows)
            if start <= first and last <= stop:
                self.damaged.discard((name, chunk))
            else:
                self.check(session, name, max(start, first), min(stop, last))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, read, write = Disk(), memory._Session.read, memory._WriteSession.write

    def checked_read(session: Any, name: str, start: int, stop: int) -> NDArray[Any]:
        disk.check(session, name, start, stop)
        return read(session, name, start, stop)

    def checked_write(session: Any, name: str, start: int, values: NDArray[Any]) -> None:
        disk.write(session, name, start, len(values))
        write(session, name, start, values)

    monkeypatch.setattr(memory._Session, "read", checked_read)
    monkeypatch.setattr(memory._WriteSession, "write", checked_write)
    return disk


def contents(location: str) -> dict[str, Any]:
    session = kpstore.open(location).session
    blocks = {name: session.read(name, 0, session.meta(name).n_rows) for name in session.names()}
    return {
        name: block.tolist() if block.dtype == object else block.tobytes()
        for name, block in blocks.items()
    }


def ingest(location: str, source: Source = SOURCE, extractor: AnyExtractor | None = None) -> int:
    return run_ingest(source, location, extractor or FakeExtractor(chunk_rows=8), SERIAL).frames


def n_chunks(location: str, name: str) -> int:
    meta = kpstore.open(location).session.meta(name)
    return -(-meta.n_rows // meta.chunk_rows)


EVERY_FRAME = sum(LENGTHS.values())
LEDGER = ("points_status", "points_state", "points_failure")
CASES: dict[str, list[tuple[str, int]]] = {
    "values": [("points", 2)],
    "the last chunk, which is short": [("points", 6)],
    "neighbours": [("points", 1), ("points", 2), ("points_detected", 3)],
    "a companion": [("points_detected", 0)],
    "states of frames": [("points_status", 1), ("points_status", 4)],
    "states of videos": [("points_state", 0)],
    "reasons": [("points_failure", 0)],
    "states and reasons": [("points_state", 0), ("points_failure", 0)],
    "states of frames and videos": [("points_status", 0), ("points_state", 0)],
    "the whole ledger": [*((name, 0) for name in LEDGER), ("points_status", 3)],
    "values and their states": [("points", 3), ("points_status", 3), ("points_state", 0)],
    "labels": [("space", 0)],
    "everything": [
        ("points", 0),
        ("points_detected", 5),
        ("space", 0),
        *((name, 0) for name in LEDGER),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_ingest_after_repair_has_the_bits_of_an_undisturbed_run(disk: Disk, case: str) -> None:
    location = memory_location()
    assert ingest(location) == EVERY_FRAME
    undisturbed = contents(location)
    disk.damaged = set(CASES[case])
    assert verify(kpstore.open(location)).problems
    done = repair(location)
    assert (done.left, disk.damaged) == ((), set())
    assert done.made == kpstore.open(location).snapshot
    assert verify(kpstore.open(location)).problems == []
    redone = {video_id for feature in done.features for video_id in feature.videos}
    assert ingest(location) == sum(LENGTHS[video_id] for video_id in redone)
    assert contents(location) == undisturbed


def test_what_follows_from_the_rest_is_not_made_again(disk: Disk) -> None:
    location = memory_location()
    ingest(location)
    undisturbed = contents(location)
    for damaged in (
        {("points_status", n) for n in range(n_chunks(location, "points_status"))},
        {("space", 0)},
    ):
        disk.damaged = set(damaged)
        done = repair(location)
        assert [feature.videos for feature in done.features] in ([()], [])
        assert contents(location) == undisturbed
    disk.damaged = {("points_state", 0)}
    (feature,) = repair(location).features
    assert (feature.videos, feature.rebuilt) == (("none",), ("points_state",)), (
        "nothing says that it was done"
    )
    disk.damaged = {("points_failure", 0)}
    (feature,) = repair(location).features
    assert feature.videos == ("b", "d", "e"), "the others had no failure, the states say"


def test_only_videos_in_a_damaged_chunk_are_pending_and_the_commit_says_which(disk: Disk) -> None:
    location = memory_location()
    ingest(location)
    before = kpstore.open(location)
    disk.damaged = {
        ("points", 1)
    }  # rows 8 to 15: the end of b, whose rows are 5 to 13, and the beginning of c
    planned = repair(location, dry_run=True)
    assert (planned.made, kpstore.open(location).snapshot) == (None, before.snapshot)
    done = repair(location)
    assert planned.features == done.features
    (feature,) = done.features
    assert (feature.videos, feature.frames, feature.rebuilt) == (("b", "c"), 29, ())
    store = kpstore.open(location)
    assert [
        store.index.ids[p] for p in np.flatnonzero(store.states("points") == State.PENDING)
    ] == ["b", "c"]
    newest, older, *_ = store.history()
    assert (newest.message, older.id) == (
        "repair: 2 videos of points pending again",
        before.snapshot,
    )
    assert newest.metadata["repair"]["features"] == {
        "points": {"n_videos": 2, "videos": ["b", "c"]}
    }
    (problem,) = done.problems
    assert (problem.videos, problem.frames, problem.rows) == (["b", "c"], [(3, 9), (0, 2)], (8, 16))
    assert json.loads(json.dumps(done.to_json()))["features"][0]["videos"] == ["b", "c"]


def test_nothing_to_repair_makes_no_version(disk: Disk) -> None:
    location = memory_location()
    ingest(location)
    before = kpstore.open(location).snapshot
    done = repair(location)
    assert (done.problems, done.features, done.left, done.made) == ((), (), (), None)
    assert kpstore.open(location).snapshot == before


@pytest.mark.parametrize(
    "damaged", [("mean", 3), ("from_reference", 0), ("reference", 0), ("reference_state", 0)]
)
def test_features_of_one_extractor_become_pending_together(
    disk: Disk, damaged: tuple[str, int]
) -> None:
    source, location = Portraits({"a": 4, "b": 9, "c": 6}, torn=()), memory_location()
    ingest(location, source, Faces(dark=40))
    undisturbed = contents(location)
    disk.damaged = {damaged}
    done = repair(location)
    assert len({feature.videos for feature in done.features}) == (
        1 if done.features[0].videos else len(done.features)
    )
    assert verify(kpstore.open(location)).problems == []
    ingest(location, source, Faces(dark=40))
    assert contents(location) == undisturbed


def test_a_feature_that_no_ingest_makes_says_what_does(disk: Disk) -> None:
    for made_by, way in (
        ("imported", "was imported"),
        ("predict", "kpstore predict"),
        ("", "as they were written"),
    ):
        store = kpstore.create(memory_location())
        with store.transaction("fill") as tx:
            tx.add_videos(FakeSource({"a": 5, "b": 4}).scan().videos)
            tx.add_feature(
                FeatureSpec("points", (5, 3), ("p", "s"), chunk_rows=4), {"extractor": made_by}
            )
            tx.write("points", "a", rows_of("a", 5).values)
            tx.write("points", "b", rows_of("b", 4).values)
        disk.damaged = {("points", 0)}
        (feature,) = repair(store.location).features
        assert feature.videos == ("a",)
        assert way in feature.again


@pytest.mark.parametrize("name", ["image_path", "fps", "gloss"])
def test_what_is_written_nowhere_else_is_left_with_a_way_out(disk: Disk, name: str) -> None:
    store = fill(kpstore.create(memory_location()), done=("a",))
    first = store.snapshot
    disk.damaged = {(name, 0)}
    done = repair(store.location)
    assert done.made is None
    (line,) = done.left
    assert line.startswith(
        f"'{name}' (memory) is stored nowhere else and cannot be repaired; no older version"
    )
    disk.damaged = {(name, 0), ("points", 0)}
    done = repair(store.location)
    assert (len(done.left), done.features[0].videos) == (1, ("a",))
    assert {problem.array for problem in verify(store.at()).problems} == {name}
    assert first in {commit.id for commit in store.at().history()}


def unreadable_checksums(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def checksums(session: Any, name: str) -> None:
        if name in names:
            raise CorruptError(f"the checksums of {name!r} cannot be read: damaged")

    monkeypatch.setattr(memory._Session, "checksums", checksums)


def test_values_whose_checksums_cannot_be_read_are_not_given_up(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(kpstore.create(memory_location()))
    unreadable_checksums(monkeypatch, "points", "fps")
    disk.damaged = {("points_status", 0)}
    found = verify(store.at())
    assert {(p.array, p.chunk) for p in found.problems} == {
        ("points", None),
        ("fps", None),
        ("points_status", 0),
    }
    done = repair(store.location)
    assert (done.made, done.features) == (None, ())
    fps, points, status = done.left
    assert fps.startswith("the checksums of 'fps' cannot be read")
    assert points.startswith(
        "the checksums of 'points' cannot be read, so its values cannot be checked"
    )
    assert (
        "'points_status' (memory) cannot become pending while the checksums of 'points' cannot"
        in status
    )
    every = verify_all(store.location)
    assert [len(p.versions) for p in every.problems if p.array == "points"] == [every.versions - 1]


def test_features_of_one_extractor_wait_for_each_others_checksums(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = memory_location()
    ingest(location, Portraits({"a": 4, "b": 9, "c": 6}, torn=()), Faces(dark=40))
    unreadable_checksums(monkeypatch, "reference")
    disk.damaged = {("mean", 0)}
    done = repair(location)
    assert (done.made, done.features) == (None, ())
    assert [line.split(" cannot")[0] for line in done.left] == [
        "'mean' (memory)",
        "the checksums of 'reference'",
    ]


def test_an_older_version_that_reads_well_is_named(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(kpstore.create(memory_location()), done=("a",))
    with store.transaction("more") as tx:
        tx.write("points", "b", rows_of("b", 9))
    newest, read = store.at().snapshot, memory._Session.read

    def damaged_now(session: Any, name: str, start: int, stop: int) -> NDArray[Any]:
        if session.snapshot == newest and name == "n_frames":
            raise CorruptError("rows 0:4 of 'n_frames' cannot be read: wrong checksum")
        return read(session, name, start, stop)

    monkeypatch.setattr(memory._Session, "read", damaged_now)
    (line,) = repair(store.location).left
    assert f"version {store.snapshot} holds all of it: 'kpstore convert" in line


def test_a_newest_version_that_does_not_open_names_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fill(kpstore.create(memory_location()), done=("a",))
    store.tag("good")
    with store.transaction("more") as tx:
        tx.write("points", "b", rows_of("b", 9))
    newest, attrs = store.at().snapshot, memory._Session.attrs

    def damaged_now(session: Any) -> Any:
        if session.snapshot == newest:
            raise CorruptError("its attributes cannot be read")
        return attrs(session)

    monkeypatch.setattr(memory._Session, "attrs", damaged_now)
    with pytest.raises(
        CorruptError,
        match=r"cannot be opened \(its attr.*version good can: 'kpstore convert .*--to good",
    ):
        repair(store.location)


def test_no_store_is_said_as_ever() -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        repair("memory://nowhere")


# -- on disk ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=DISK_KINDS)
def on_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> kpstore.Store:
    """A store of an older version and a newest one, whose chunks are files or pieces of a file.

    It is for reading and copying.
    """
    location = location_of(request.param, tmp_path_factory.mktemp("on_disk"))
    run_ingest(FakeSource({"a": 5, "b": 9}), location, FakeExtractor(chunk_rows=16), SERIAL)
    kpstore.open(location, mode="a").tag("first")
    run_ingest(
        FakeSource({"a": 5, "b": 9, "c": 60}), location, FakeExtractor(chunk_rows=16), SERIAL
    )
    return kpstore.open(location)


@pytest.mark.parametrize(
    "chunks", [[0], [2], [0, 1, 4]], ids=["first", "middle", "several and the short last"]
)
def test_a_damaged_store_is_mended_by_repair_and_ingest(
    on_disk: kpstore.Store, tmp_path: Path, chunks: list[int]
) -> None:
    target = tmp_path / f"damaged{Path(on_disk.location).suffix}"
    bad = damaged_copy(on_disk, [("points", chunk) for chunk in chunks], target)
    found = verify(kpstore.open(bad))
    assert sorted((p.array, p.chunk) for p in found.problems) == [
        ("points", chunk) for chunk in chunks
    ]
    assert all(problem.videos and problem.files for problem in found.problems)
    with pytest.raises(
        CorruptError, match=r"'points' of .* is damaged: rows .* \(video.*; 'kpstore verify"
    ):
        kpstore.open(bad)["points"][:]
    if 0 in chunks:
        with (
            pytest.raises(CorruptError, match="points"),
            kpstore.open(bad, mode="a").transaction("on top") as tx,
        ):
            tx.write("points", "b", rows_of("b", 9))
    repair(bad)
    assert verify(kpstore.open(bad)).problems == []
    run_ingest(FakeSource({"a": 5, "b": 9, "c": 60}), bad, FakeExtractor(chunk_rows=16), SERIAL)
    assert contents(bad) == contents(on_disk.location)
    every = verify_all(bad)
    assert every.problems, "older versions keep their damage"
    assert all(every.snapshot not in problem.versions for problem in every.problems)


def test_a_damaged_table_of_checksums_is_one_problem_and_labels_are_written_again(
    tmp_path: Path,
) -> None:
    location = location_of("icechunk", tmp_path)
    ingest(location)
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(location)
    ).writable_session("main")
    table = zarr.open_array(session.store, path="chunk_checksums", mode="r+")
    for name in ("points", "space"):
        row = table.attrs["arrays"].index(name)
        table[row, :2] = np.array([5, 6], dtype=np.uint64)
    session.commit("wrong checksums, and no seals")
    found = verify(kpstore.open(location))
    assert {(p.array, p.chunk) for p in found.problems} == {("points", None), ("space", None)}
    done = repair(location)
    assert (done.labels, done.features, len(done.left)) == (("space",), (), 1)
    assert [p.array for p in verify(kpstore.open(location)).problems] == ["points"]


def test_damage_is_named_by_the_videos_of_the_version_that_has_it(
    on_disk: kpstore.Store, tmp_path: Path
) -> None:
    own = kpstore.open(copy_store(on_disk.location, tmp_path), mode="a")
    own.remove(videos=["a"])
    old = own.at("first")
    bad = damaged_copy(old, [("points", 0)], tmp_path / f"damaged{Path(on_disk.location).suffix}")
    named = [p.videos[:2] for p in verify_all(bad).problems if old.snapshot in p.versions]
    assert named == [["a", "b"]]


def test_a_sound_store_is_sound_in_every_version(on_disk: kpstore.Store) -> None:
    found = verify_all(on_disk.location)
    assert (found.problems, found.lacks, found.snapshot) == ([], "", on_disk.snapshot)
    assert found.versions == len(on_disk.history())


def test_damage_in_an_older_version_alone_is_found(on_disk: kpstore.Store, tmp_path: Path) -> None:
    old = on_disk.at("first")
    bad = damaged_copy(old, [("points", 0)], tmp_path / f"damaged{Path(on_disk.location).suffix}")
    if on_disk.session.place("points", 0) != old.session.place("points", 0):
        assert verify(kpstore.open(bad)).problems == []
    (problem,) = verify_all(bad).problems
    assert (problem.array, problem.chunk, problem.videos[:2]) == ("points", 0, ["a", "b"])
    assert old.snapshot in problem.versions
