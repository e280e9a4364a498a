"""A sound store passes; every rule that is broken is named with its place."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import kpstore
from kpstore.backends.base import ArrayMeta, WriteSession
from kpstore.errors import CorruptError
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.against_source import compare_with_source
from kpstore.inspect.verify import verify, verify_all
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.layout import PART_SLICES, PARTS, keypoints_spec
from kpstore.store.chunk_checks import Verification
from tests.conftest import location_of, memory_location
from tests.fakes import FakeExtractor, FakeSource, fake_spec, record
from tests.store.data import copy_store, fill, format_1, rows_of

N = {"a": 5, "b": 0, "c": 9}


def keypoints(n: int, seed: int) -> FeatureRows:
    rng = np.random.default_rng(seed)
    values, detected = rng.random((n, 143, 3), dtype=np.float32), rng.random((n, 4)) < 0.6
    for column, part in enumerate(PARTS):
        values[~detected[:, column], PART_SLICES[part]] = np.nan
    return FeatureRows(
        values, {"detected": detected, "visibility": rng.random((n, 33), dtype=np.float32)}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sound stores on the disk, by kind."""
    folder = tmp_path_factory.mktemp("built")
    return {kind: build(location_of(kind, folder)).location for kind in ("icechunk", "hdf5")}


@pytest.fixture(params=["memory", "icechunk", "hdf5"])
def sound(request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, str]) -> kpstore.Store:
    if request.param == "memory":
        return build(memory_location())
    return kpstore.open(copy_store(built[request.param], tmp_path), mode="a")


def build(location: str) -> kpstore.Store:
    store = kpstore.create(location)
    with store.transaction("fill") as tx:
        tx.add_videos([record(v, n, gloss="G") for v, n in N.items()])
        tx.add_feature(keypoints_spec(), {"extractor": "made up"})
        tx.add_feature(FeatureSpec("person", (2,), ("x",), axis="video"), {"extractor": "made up"})
        tx.add_feature(
            FeatureSpec("count", (1,), ("number",), dtype="int64"), {"extractor": "made up"}
        )
        tx.write("keypoints", "a", keypoints(5, 1), failed_frames={2: "torn"})
        tx.write("keypoints", "b", keypoints(0, 2))
        tx.write_video_feature("person", "a", np.array([1, 2], np.float32))
    return store.at()


def test_sound_stores_pass(sound: kpstore.Store) -> None:
    seen: list[int] = []
    found = verify(sound, on_rows=seen.append)
    assert (found.problems, found.notes) == ([], [])
    assert sum(seen) == found.rows
    assert found.size_bytes > 14 * 143 * 12
    assert json.loads(json.dumps(found.to_json()))["sound"]
    assert verify(kpstore.create(location_of("memory", Path()))).problems == []


DOUBLES = ArrayMeta((14, 143, 3), "float64", 1024, ("frame", "keypoint", "space"))
BROKEN: dict[str, tuple[Callable[[WriteSession], Any], str, str, str]] = {
    "infinite": (
        lambda v: v.write("keypoints", 0, np.full((1, 143, 3), np.inf, np.float32)),
        "keypoints",
        "is infinite",
        "video 'a', frame 0",
    ),
    "mask without values": (
        lambda v: v.write("keypoints_detected", 1, np.ones((1, 4), bool)),
        "keypoints_detected",
        "is there, but values are missing",
        "video 'a', frame 1",
    ),
    "values without mask": (
        lambda v: v.write("keypoints_detected", 1, np.zeros((1, 4), bool)),
        "keypoints_detected",
        "is missing, but values are there",
        "video 'a', frame 1",
    ),
    "values of a pending video": (
        lambda v: v.write("keypoints", 5, np.zeros((1, 143, 3), np.float32)),
        "keypoints",
        "has values, but is not done",
        "video 'c', frame 0",
    ),
    "whole numbers of a pending video": (
        lambda v: v.write("count", 5, np.full((1, 1), 3)),
        "count",
        "has values, but is not done",
        "video 'c', frame 0",
    ),
    "a companion of a frame that failed": (
        lambda v: v.write("keypoints_visibility", 2, np.full((1, 33), 0.5, np.float32)),
        "keypoints_visibility",
        "has values, but is not done",
        "video 'a', frame 2",
    ),
    "other labels": (
        lambda v: v.write("space", 0, np.array(["x", "z", "y"], object)),
        "space",
        "names other points than its feature",
        "labels",
    ),
    "visibility": (
        lambda v: v.write("keypoints_visibility", 0, np.full((1, 33), 1.5, np.float32)),
        "keypoints_visibility",
        "is outside 0 to 1",
        "video 'a', frame 0",
    ),
    "a state that is none": (
        lambda v: v.write("keypoints_status", 1, np.array([9], np.uint8)),
        "keypoints",
        "has an unknown state",
        "video 'a', frame 1",
    ),
    "a frame that did not fail": (
        lambda v: v.write("keypoints_status", 2, np.array([State.DONE], np.uint8)),
        "keypoints_status",
        "does not agree with the state of its video",
        "video 'a'",
    ),
    "a ledger that is no JSON": (
        lambda v: v.write("keypoints_failure", 0, np.array(["{"], object)),
        "keypoints_failure",
        "is not JSON",
        "video 'a'",
    ),
    "a video that failed without a reason": (
        lambda v: v.write("keypoints_state", 2, np.array([State.FAILED], np.uint8)),
        "keypoints_state",
        "does not agree with the reason",
        "video 'c'",
    ),
    "an array of another length": (
        lambda v: v.resize("keypoints", 20),
        "keypoints",
        "has 20 rows, the index says 14",
        "the array",
    ),
    "an array that is missing": (
        lambda v: v.delete("keypoints_detected"),
        "keypoints_detected",
        "is missing",
        "feature",
    ),
    "a column that is missing": (lambda v: v.delete("fps"), "fps", "is missing", "the index"),
    "a frame rate that is none": (
        lambda v: v.write("fps", 1, np.array([-3.0])),
        "fps",
        "is not a sensible value",
        "video 'b'",
    ),
    "an array of another type": (
        lambda v: (
            v.delete("keypoints"),
            v.create("keypoints", ArrayMeta((14, 143, 3), "float64", 1024, ("f", "k", "s"))),
        ),
        "keypoints",
        "has rows of float64 (143, 3), not of float32 (143, 3)",
        "the array",
    ),
    "frames that are done without being written": (
        lambda v: (
            v.delete("keypoints_status"),
            v.create("keypoints_status", ArrayMeta((14,), "uint8", 1024, ("frame",), fill=1)),
        ),
        "keypoints_status",
        "is not pending where nobody wrote",
        "the array",
    ),
    "an id twice": (
        lambda v: v.write("video_id", 1, np.array(["a"], object)),
        "video_id",
        "the same id twice",
        "the index",
    ),
}


@pytest.mark.parametrize(
    ("where", "is_sound"),
    [
        ((slice(3, 9), slice(None)), True),
        ((slice(None), 2), True),
        ((4, 0), False),
        ((slice(None), slice(None)), False),
    ],
    ids=["points", "depth", "one coordinate", "the whole part"],
)
def test_a_part_may_lack_points_or_depth_as_in_files_of_other_tools(
    where: tuple[Any, Any], is_sound: bool
) -> None:
    store = kpstore.create(location_of("memory", Path()))
    values = np.ones((2, 143, 3), np.float32)
    values[1, PART_SLICES["face"]][where] = np.nan
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", 2)])
        tx.add_feature(keypoints_spec(), {"extractor": "imported"})
        tx.write("keypoints", "a", np.ones((2, 143, 3), np.float32))
        tx.session.write("keypoints", 0, values)
    found = verify(store.at())
    said = [(p.array, p.what, p.first) for p in (found.notes if is_sound else found.problems)]
    broken = (
        "keypoints_detected",
        "says face is there, but values are missing",
        "video 'a', frame 1",
    )
    fewer = ("keypoints", "lacks some points or coordinates of face", "video 'a', frame 1")
    assert said == [fewer if is_sound else broken]
    assert bool(found.problems) != is_sound


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_rule_is_named_with_its_place(sound: kpstore.Store, kind: str) -> None:
    change, array, what, first = BROKEN[kind]
    changes = sound.backend.begin()
    change(changes)
    changes.commit("broken")
    problems = verify(kpstore.open(sound.location)).problems
    assert any(
        p.array == array and what in p.what and p.first.startswith(first) for p in problems
    ), problems


def test_what_is_worth_a_look_is_no_problem(sound: kpstore.Store) -> None:
    with sound.transaction("odd") as tx:
        video = record("odd", 2)
        tx.add_videos([type(video)("odd", "", ("same.png", "same.png"))])
        tx.add_feature(FeatureSpec("loose", (2,), ("y",)))
        rows = keypoints(2, 5)
        rows.values[:, PART_SLICES["pose"]] *= 1000
        tx.write("keypoints", "odd", rows)
    found = verify(sound.at())
    assert found.problems == []
    told = {(p.array, p.what) for p in found.notes}
    assert ("image_path", "occurs more than once") in told
    assert ("loose", "does not say how it was made") in told
    assert ("keypoints", "is more than 100 pictures away") in told


@pytest.mark.parametrize("kind", ["icechunk", "hdf5"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, kind: str) -> None:
    store = fill(kpstore.create(location_of(kind, tmp_path)), chunk_rows=16)
    values = rows_of("a", 5).values.tobytes()  # not read: HDF5 keeps chunks of files that stay open
    files = [
        path for path in tmp_path.rglob("*") if path.is_file() and values[:64] in path.read_bytes()
    ]
    assert files
    for path in files:  # a chunk that was written twice in one transaction is there twice
        content = bytearray(path.read_bytes())
        content[content.index(values[:64]) + 20] ^= 1
        path.write_bytes(bytes(content))
    (problem,) = verify(kpstore.open(store.location)).problems
    assert problem.array == "points"
    assert problem.what.startswith("cannot be read")
    assert ("checksum" if kind == "icechunk" else "filter returned failure") in problem.what


@pytest.mark.parametrize("kind", ["icechunk", "hdf5"])
def test_chunks_that_are_looked_at_together_are_told_apart(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(fake_spec(16), compression="raw")
    store = kpstore.create(location_of(kind, tmp_path))
    rows = rows_of("a", 160)
    rows.values[:, 0, 0] = np.arange(160) + 1000.5
    with store.transaction("ten chunks") as tx:
        tx.add_videos([record("a", 160)])
        tx.add_feature(spec, {"extractor": "fake"})
        tx.write("points", "a", rows)
    changes = store.at().backend.begin()
    for row in (33, 120):
        changes.write("points", row, np.full((1, 5, 3), np.inf, "f4"))
    changes.commit("infinite")
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for row in (40, 88):  # in the third chunk and the sixth, the third beside what is infinite
            written = rows.values[row, :, 0].tobytes()[:4]
            if path.stat().st_size < 4 or written not in content:
                continue
            content = content.replace(written, b"\0\0\0\0")
            path.write_bytes(content)
    together = verify(kpstore.open(store.location))
    monkeypatch.setattr("kpstore.store.chunk_checks._TOGETHER_BYTES", 1)
    alone = verify(kpstore.open(store.location))
    assert together == alone
    damaged = [problem.chunk for problem in alone.problems if problem.chunk is not None]
    assert damaged == [2, 5]
    assert any("is infinite" in problem.what for problem in alone.problems)


def test_a_store_of_format_1_says_what_cannot_be_found_in_it(tmp_path: Path) -> None:
    for ending in (".kps", ".h5"):
        found = verify(kpstore.open(format_1(tmp_path, ending)))
        assert found.problems == []
        assert "no checksums by place" in found.lacks
        assert verify_all(format_1(tmp_path, ending)).problems == []


def test_a_store_that_lost_its_table_of_checksums_is_not_sound(tmp_path: Path) -> None:
    store = fill(kpstore.create(tmp_path / "s.kps"))
    session = icechunk.Repository.open(
        icechunk.local_filesystem_storage(store.location)
    ).writable_session("main")
    del zarr.open_group(session.store, mode="r+")["chunk_checksums"]
    session.commit("by other software")
    found = verify(kpstore.open(store.location)).problems
    assert {problem.what for problem in found} == {"has no checksums by place"}
    assert {"points", "points_state", "video_id"} <= {problem.array for problem in found}


# -- rows that nobody wrote ---------------------------------------------------------------------


def claiming(location: str, n_frames: int) -> kpstore.Store:
    """A store whose last video claims any number of frames, of which a few are written."""
    store = fill(kpstore.create(location), chunk_rows=16)
    changes = store.backend.begin()
    changes.write("n_frames", 3, np.array([n_frames]))
    n_rows = 14 + n_frames
    for name in ("image_path", "points", "points_detected", "points_status"):
        changes.resize(name, n_rows)
    changes.write("points", n_rows - 40, np.ones((1, 5, 3), np.float32))
    # Fill that looks like values: every row of it is a problem, or worth a look.
    meta = ArrayMeta((n_rows, 5, 3), "float32", 16, ("frame", "point", "space"), fill=np.inf)
    changes.create("loud", meta)
    changes.create("loud_status", ArrayMeta((n_rows,), "uint8", 64, ("frame",)))
    changes.create("loud_state", ArrayMeta((4,), "uint8", 4, ("video",)))
    changes.create("loud_failure", ArrayMeta((4,), "str", 4, ("video",)))
    root = changes.attrs()
    features = root["kpstore"]["features"]
    spec = replace(FeatureSpec("loud", (5, 3), ("point", "space")), labels={"space": tuple("xyz")})
    features["loud"] = {"spec": spec.to_json(), "provenance": {"extractor": "made up"}}
    changes.set_attrs(root)
    changes.commit("claims")
    return kpstore.open(location)


def checked(store: kpstore.Store, monkeypatch: pytest.MonkeyPatch) -> tuple[Verification, int]:
    """What is found, and how many chunks were read for it."""
    chunks: list[int] = []
    session = store.session
    read = session.read

    def noted(name: str, start: int, stop: int) -> NDArray[Any]:
        chunks.extend(session.meta(name).chunks_of(start, stop))
        return read(name, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(session, "read", noted)
        return verify(store), len(chunks)


@pytest.mark.parametrize("kind", ["icechunk", "hdf5"])
def test_rows_that_nobody_wrote_are_checked_without_reading_them(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = claiming(location_of(kind, tmp_path), 5000)
    found, n_reads = checked(store, monkeypatch)
    every = {
        name: np.ones(store.session.meta(name).n_chunks, bool) for name in store.session.names()
    }
    with monkeypatch.context() as patch:
        patch.setattr(store.session, "stored", every.__getitem__)
        wanted, n_all = checked(store, monkeypatch)
    assert (found.problems, found.notes) == (wanted.problems, wanted.notes)
    assert (found.rows, found.arrays) == (wanted.rows, wanted.arrays)
    told = {(problem.array, problem.what): problem.count for problem in found.problems}
    assert told["loud", "has values, but is not done"] == 5014
    assert told["points", "has values, but is not done"] == 1
    assert n_reads < n_all / 10
    (tmp_path / "more").mkdir()
    more, n_more = checked(claiming(location_of(kind, tmp_path / "more"), 5_000_000), monkeypatch)
    assert n_more <= n_reads + 4  # where chunks begin depends on the number of rows
    assert more.rows > 10_000_000
    assert verify_all(store.location).rows > found.rows


@pytest.mark.parametrize(("spare", "ahead"), [(2**28, True), (2**10, False)])
def test_chunks_that_are_large_are_read_one_after_another(
    sound: kpstore.Store, monkeypatch: pytest.MonkeyPatch, spare: int, ahead: bool
) -> None:
    monkeypatch.setattr("kpstore.store.in_order.usable_cores", lambda: 8)
    monkeypatch.setattr("kpstore.store.in_order.SPARE_BYTES", spare)
    read, threads = sound.session.read, set[threading.Thread]()

    def noted(*given: Any) -> NDArray[Any]:
        threads.add(threading.current_thread())
        return read(*given)

    monkeypatch.setattr(sound.session, "read", noted)
    assert verify(sound).problems == []
    assert (threads != {threading.main_thread()}) is ahead


# -- compared with the data set -----------------------------------------------------------------


def test_a_store_beside_its_data_set(tmp_path: Path) -> None:
    lengths = {f"v{n}": n + 1 for n in range(6)}
    source = FakeSource(lengths, broken={"v1": [0]})
    run_ingest(source, tmp_path / "s.kps", FakeExtractor(), Options(workers=0))
    store = kpstore.open(tmp_path / "s.kps")
    found = compare_with_source(store, source)
    assert found.splits["dev"].failed == {"points": 1}
    whole = compare_with_source(store, FakeSource(lengths))
    assert (whole.splits["train"].source_frames, whole.splits["train"].store_frames) == (
        1 + 4,
        1 + 4,
    )
    other = {**lengths, "v3": 9, "new": 2}
    del other["v5"]
    found = compare_with_source(store, FakeSource(other))
    assert found.differs
    assert found.splits["train"].other_length == {"v3": (9, 4)}
    assert [v for s in found.splits.values() for v in s.missing] == ["new"]
    assert [v for s in found.splits.values() for v in s.extra] == ["v5"]
    assert json.loads(json.dumps(found.to_json()))["differs"]


def test_what_failed_and_what_is_pending_counts_for_features_of_videos_too(
    sound: kpstore.Store,
) -> None:
    found = compare_with_source(sound, FakeSource(N))
    assert sum(split.pending.get("person", 0) for split in found.splits.values()) == 2


def test_text_that_was_changed_in_the_file_is_found(tmp_path: Path) -> None:
    store = fill(kpstore.create(tmp_path / "s.h5"))
    with store.transaction("more") as tx:
        tx.fail("points", "d", "no film")
    store.at().tag("before")
    with store.transaction("another reason") as tx:
        tx.fail("points", "d", "grey film")
    assert verify(store.at()).problems == []
    assert verify(store.at("before")).problems == []
    content = (tmp_path / "s.h5").read_bytes()
    assert content.count(b"b/0003.png") == 1
    (tmp_path / "damaged.h5").write_bytes(content.replace(b"b/0003.png", b"b/0008.png"))
    (problem,) = verify(kpstore.open(tmp_path / "damaged.h5")).problems
    assert (problem.array, problem.chunk, problem.videos) == ("image_path", 0, ["a", "b", "d"])
    assert "checksum" in problem.what


def test_nothing_is_committed_on_top_of_damaged_text(tmp_path: Path) -> None:
    fill(kpstore.create(tmp_path / "s.h5"))
    content = (tmp_path / "s.h5").read_bytes()
    (tmp_path / "damaged.h5").write_bytes(content.replace(b"b/0003.png", b"b/0008.png"))
    store = kpstore.open(tmp_path / "damaged.h5", mode="a")
    damaged = pytest.raises(
        CorruptError, match=r"'image_path' in .*damaged.h5 cannot be read: .*checksum"
    )
    with damaged, store.transaction("more") as tx:
        tx.add_videos([record("new", 2)])
    assert len(kpstore.open(tmp_path / "damaged.h5").history()) == len(store.history())
