"""A video or a feature that is removed is gone, and nothing else is."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kpstore
from kpstore.backends.base import Codec
from kpstore.errors import (
    BusyError,
    ConflictError,
    CorruptError,
    InvalidError,
    KpstoreError,
    NotFoundError,
    ReadOnlyError,
    UnsupportedError,
)
from kpstore.inspect.contents import compare
from kpstore.inspect.verify import verify_all
from kpstore.interop.convert import convert
from kpstore.interop.plain_values import from_json, to_json
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.store import copying
from kpstore.store import format as fmt
from kpstore.store.cache import DecodedCache
from tests.conftest import location_of, memory_location
from tests.fakes import fake_spec, record
from tests.interop.formats import same
from tests.processes import finish
from tests.store.data import LENGTHS, copy_store, format_1, rows_of
from tests.store.killed import killer

SECRET = "SECRET"
NUMBER = np.float32(1.2345678e17)
"""In all values of the video that is removed."""
N = {"a": 37, "gone": 50, "c": 21, "none": 0, "d": 33}
DISK_KINDS = ["icechunk", "hdf5"]
EVERY = {".kps": 35, ".h5": 45}
"""Of the steps at which a removal is killed, 70 to 150, one in so many is tried; 1 tries all."""


def marked(n_frames: int) -> FeatureRows:
    values = np.full((n_frames, 5, 3), NUMBER)
    return FeatureRows(values, {"detected": np.ones((n_frames, 2), dtype=bool)})


def video(name: str) -> VideoRecord:
    text = SECRET if name == "gone" else name.upper()
    paths = tuple(f"{text}/{n:04d}.png" for n in range(N[name]))
    return VideoRecord(
        name, "test" if name == "gone" else "train", paths, 25.0, annotations={"gloss": text}
    )


def build(location: str, *, without: str = "") -> kpstore.Store:
    """Three versions: videos with rows, a second feature, other rows of ``a``.

    The tag ``v1`` names the first one, and where there are branches ``side`` begins there, too.
    """
    store = kpstore.create(location)
    names = [name for name in N if name != without]
    with store.transaction("fill") as tx:
        tx.add_videos([video(name) for name in names])
        document = {"renamed": {n: n.upper() for n in names}, "listed": names, "kind": "made up"}
        about = {"extractor": "imported", "format": "pickle", "document": document}
        tx.add_feature(replace(fake_spec(32), compression="raw"), about)
        tx.write("points", "a", rows_of("a", N["a"]))
        tx.write("points", "d", rows_of("d", N["d"]), failed_frames={4: "blurred"})
        if "gone" in names:
            tx.write("points", "gone", marked(N["gone"]), failed_frames={3: f"{SECRET}: no light"})
    store = store.at()
    store.tag("v1")
    if store.backend.capabilities.branches:
        store.branch("side")
    with store.transaction("more") as tx:
        spec = kpstore.FeatureSpec("mood", (2,), ("mood_dim",), axis="video")
        tx.add_feature(spec, {"extractor": "fake", "source": "points"})
        tx.add_feature(replace(fake_spec(32), name="other"), {"extractor": "fake"})
        tx.fail("other", "c", "no film")
        if "gone" in names:
            tx.write_video_feature("mood", "gone", np.full(2, NUMBER))
            tx.fail("other", "gone", SECRET)
    with store.transaction("again") as tx:
        tx.write("points", "a", rows_of("a", N["a"], seed=1))
    return store.at()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stores of :func:`build`, by kind, which tests copy."""
    folder = tmp_path_factory.mktemp("built")
    return {kind: build(location_of(kind, folder)).location for kind in DISK_KINDS}


@pytest.fixture(params=["memory", *DISK_KINDS])
def store(request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, str]) -> kpstore.Store:
    if request.param == "memory":
        return build(memory_location())
    return kpstore.open(copy_store(built[request.param], tmp_path), mode="a")


@pytest.fixture(params=DISK_KINDS)
def on_disk(request: pytest.FixtureRequest, tmp_path: Path, built: dict[str, str]) -> kpstore.Store:
    return kpstore.open(copy_store(built[request.param], tmp_path), mode="a")


@pytest.fixture
def on_icechunk(tmp_path: Path, built: dict[str, str]) -> kpstore.Store:
    return kpstore.open(copy_store(built["icechunk"], tmp_path), mode="a")


def arrays(store: kpstore.Store) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(store[name][:]) for name in store}


def check_same_but_for(
    before: kpstore.Store, after: kpstore.Store, gone: str = "gone", but: tuple[str, ...] = ()
) -> None:
    """Compare every array of two versions, to the bit, leaving out one video."""
    index = before.index
    stays = {"video": index.ids != gone}
    stays["frame"] = np.repeat(stays["video"], index.n_frames)
    assert [name for name in before if name not in but] == list(after)
    for name, values in arrays(after).items():
        rows = np.asarray(before[name][:])[stays.get(before[name].dims[0], slice(None))]
        if values.dtype == object:
            assert rows.tolist() == values.tolist(), name
        else:
            assert (rows.dtype, rows.shape) == (values.dtype, values.shape), name
            assert rows.tobytes() == values.tobytes(), name
        assert dict(before[name].attrs) == dict(after[name].attrs), name


def traces(location: str) -> list[str]:
    """Files of a store, or beside it, that hold what the removed video alone has."""
    path = Path(location)
    beside = [file for file in path.parent.rglob("*") if file.is_file()]
    wanted = (SECRET.encode(), np.full(4, NUMBER).tobytes())
    return [str(file) for file in beside if any(what in file.read_bytes() for what in wanted)]


def size_of(location: str) -> int:
    path = Path(location)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum({file.stat().st_ino: file.stat().st_size for file in files}.values())


def decoded_traces(store: kpstore.Store) -> list[str]:
    """Arrays of all versions that hold it, whatever the codec."""
    found = []
    for version in {*store.branches.values(), *store.tags.values()}:
        for commit in store.at(version).history():
            at = store.at(commit.id)
            found += [
                f"{name} at {commit.id}"
                for name, values in arrays(at).items()
                if (SECRET in str(values.tolist()) if values.dtype == object else NUMBER in values)
            ]
            if SECRET in str(dict(at.session.attrs())) + str(commit):
                found.append(commit.id)
    return found


# -- from the newest version -----------------------------------------------------------------------


def test_nothing_of_a_video_is_left_in_the_newest_version_and_all_else_is(
    store: kpstore.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BLOCK_BYTES", 2000)  # several blocks of rows
    done = store.remove(videos=["gone"])
    after = store.at()
    assert (done.snapshot, done.former) == (after.snapshot, store.snapshot)
    check_same_but_for(store, after)
    assert SECRET not in str(dict(after.session.attrs()))
    assert after.provenance("points")["document"] == {
        "renamed": {name: name.upper() for name in N if name != "gone"},
        "listed": [name for name in N if name != "gone"],
        "kind": "made up",
    }
    assert [failure.video_id for failure in after.failures("other")] == ["c"]
    copy = str(tmp_path / "copy.kps")
    convert(store.location, copy)
    assert not [file for file in traces(copy) if file.startswith(copy)]
    assert verify_all(copy).problems == []
    if Path(store.location).exists():
        assert verify_all(store.location).problems == []


def test_what_is_left_is_as_if_the_video_had_never_been_there(store: kpstore.Store) -> None:
    store.remove(videos=["gone"])
    other = build(memory_location(), without="gone")
    assert not compare(store.at(), other)
    stats = store.at().statistics("points", split="train")
    np.testing.assert_array_equal(stats.mean, other.statistics("points", split="train").mean)
    assert store.at().splits == ["train"]
    frames, expected = store.at().frames("points"), other.frames("points")
    assert len(frames) == len(expected)
    with store.at().transaction("goes on") as tx:
        tx.write("points", "c", rows_of("c", N["c"]))
        tx.add_videos([record("new", 5)])
    assert store.at().video("new").n_frames == 5


def test_what_a_document_says_of_a_video_goes_and_the_rest_stays_readable(
    memory_store: kpstore.Store,
) -> None:
    def said_of(*names: str) -> dict[str, Any]:
        return {
            "array": np.array(["a", "c"]),
            "tuple": tuple(names),
            "set": set(names),
            "numbers": {(name, 1): name.upper() for name in names},
            "by number": {ord(name[0]): [*names] for name in "ac"},
            "records": [{"who": name, "age": 33} for name in names],
            "rows": [(name, 33) for name in names],
            "paths": [f"E:\\data\\{name}\\0001.png" for name in names],
            "files": [f"{name}.mp4" for name in names],
            "others": ["gone-too", "ungone", "gone-too.mp4", "gone-too/0001.png"],
            "frames": ["a/0001.png"],
        }

    store = memory_store
    everything = said_of("a", "gone", "c") | {
        "both": np.array(["a", "gone"]),
        "bytes": b"gone",
        "note": "light failed for gone.",
        "gone": {"age": 33},
        "frames": ["a/0001.png", f"E:\\data\\{SECRET}\\0001.png"],
    }
    document = {key: to_json(value, key) for key, value in everything.items()}
    with store.transaction("fill") as tx:
        tx.add_videos([video("a"), video("gone"), video("c"), record("gone-too", 2)])
        tx.add_feature(fake_spec(16), {"extractor": "imported", "document": document})
    store.remove(videos=["gone"])
    left = from_json(store.at().provenance("points")["document"])
    assert same(left, said_of("a", "c"))


def test_removed_videos_are_on_record_with_time_and_frames(store: kpstore.Store) -> None:
    store.remove(videos=["gone", "none", "gone"])
    after = store.at()
    assert {name: one.rows for name, one in after.removed.videos.items()} == {"gone": 50, "none": 0}
    commit = after.history()[0]
    assert commit.message == "remove 2 videos ('gone', 'none'): 50 frames"
    assert commit.metadata["removed"]["videos"]["gone"]["rows"] == 50
    assert after.removed.videos["gone"].time.tzinfo is not None


def test_a_rollback_undoes_it(store: kpstore.Store) -> None:
    done = store.remove(videos=["gone"])
    store.rollback(done.former)
    check_same_but_for(store, store.at(), gone="")
    assert not store.at().removed


def test_a_rollback_to_a_version_before_it_does_not_let_it_in(tmp_path: Path) -> None:
    for kind in ("memory", *DISK_KINDS):
        store = build(location_of(kind, tmp_path), without="gone")
        clean, values = store.snapshot, arrays(store)
        with store.transaction("there") as tx:
            tx.add_videos([video("gone")])
        store.remove(videos=["gone"])
        store.rollback(clean)
        store = store.at()
        assert [commit.id for commit in store.history()][1] == clean
        for name, rows in arrays(store).items():
            np.testing.assert_array_equal(rows, values[name])
        with pytest.raises(InvalidError, match="stays out"):
            store.transaction("again").add_videos([video("gone")])


def test_all_videos_can_be_removed(store: kpstore.Store) -> None:
    store.remove(videos=list(N))
    after = store.at()
    assert (len(after.index), after.index.total_frames) == (0, 0)
    assert list(after) == list(store)
    with after.transaction("new") as tx:
        tx.add_videos([record("new", 20)])
        tx.write("points", "new", rows_of("new", 20))
    np.testing.assert_array_equal(after.at()["points"][:], rows_of("new", 20).values)


@pytest.mark.parametrize(
    ("what", "error", "told"),
    [
        ({"videos": ["gome"]}, NotFoundError, r"video 'gome' not found .*did you mean 'gone'"),
        ({"videos": ["a", "nobody"]}, NotFoundError, "'nobody' not found .*nothing was removed"),
        ({"features": ["pints"]}, NotFoundError, r"feature 'pints' not found .*'points'"),
        ({"videos": "gone"}, InvalidError, r"one name; give a list: \['gone'\]"),
        ({}, InvalidError, "neither were given"),
        ({"videos": ["a"], "features": ["points"]}, InvalidError, "both were given"),
    ],
)
def test_what_cannot_be_removed_is_one_line_and_changes_nothing(
    on_icechunk: kpstore.Store, what: Any, error: type[KpstoreError], told: str
) -> None:
    store = on_icechunk
    for call in (store.remove, store.remove_everywhere):
        with pytest.raises(error, match=rf"^[^\n]*{told.replace('not found .*', 'not found .*')}"):
            call(**what)
    assert store.at().snapshot == store.snapshot
    with pytest.raises(ReadOnlyError):
        kpstore.open(store.location).remove(videos=["a"])


def test_what_was_removed_before_is_said(store: kpstore.Store) -> None:
    store.remove(videos=["gone"])
    with pytest.raises(NotFoundError, match=r"'gone' was removed .* already, .*--everywhere"):
        store.remove(videos=["gone"])


def test_a_transaction_begun_before_does_not_commit_rows_to_other_videos(
    store: kpstore.Store,
) -> None:
    rows, videos, features = (store.transaction(name) for name in ("rows", "videos", "features"))
    rows.write("points", "d", rows_of("d", N["d"], seed=7))
    videos.add_videos([record("late", 3)])
    features.add_feature(replace(fake_spec(16), name="late"), {"extractor": "fake"})
    store.remove(videos=["gone"])
    for late in (rows, videos, features):
        with pytest.raises(ConflictError):
            late.commit()
    check_same_but_for(store, store.at())


def test_damage_in_rows_that_stay_stops_it(on_icechunk: kpstore.Store) -> None:
    store = on_icechunk
    file = Path(store.location) / store.session.place("points", 0)
    file.write_bytes(file.read_bytes()[:-9] + b"123456789")
    with pytest.raises(CorruptError, match="'points'"):
        store.remove(videos=["gone"])
    assert store.at().snapshot == store.snapshot


def test_a_record_that_strangers_wrote_is_read_with_care(disk_store: kpstore.Store) -> None:
    late = {"a": {"rows": 1, "time": "9999-12-31T23:59:59-12:00"}}
    for number, odd in enumerate(
        [[], {"videos": {"a": 3}, "features": {}}, {"videos": {}}, {"videos": late, "features": {}}]
    ):
        with disk_store.transaction(f"odd {number}") as tx:
            attrs = dict(tx.session.attrs())
            about = {**attrs[fmt.ROOT], fmt.REMOVED: odd}
            tx.session.set_attrs({**attrs, fmt.ROOT: about})
        with pytest.raises(CorruptError, match="record of what was removed cannot be read"):
            disk_store.at().removed  # noqa: B018


# -- staying out -----------------------------------------------------------------------------------


def test_a_removed_video_stays_out_until_it_is_taken_back(store: kpstore.Store) -> None:
    store.remove(videos=["gone", "c"])
    with (
        pytest.raises(InvalidError, match=r"'gone' was removed .*stays out; .*--take-back"),
        store.transaction("again") as tx,
    ):
        tx.add_videos([record("new", 3), record("gone", 3)])
    with pytest.raises(NotFoundError, match="'a' is not on record as removed"):
        store.take_back(["gone", "a"])
    store.take_back(["gone"])
    assert list(store.at().removed.videos) == ["c"]
    with store.transaction("again") as tx:
        tx.add_videos([record("gone", 3)])
    assert store.at().video("gone").n_frames == 3


# -- features --------------------------------------------------------------------------------------


def test_a_feature_goes_with_all_its_arrays_and_what_was_made_of_it_is_told(
    store: kpstore.Store,
) -> None:
    done = store.remove(features=["points"])
    arrays_of = fmt.feature_arrays(store.feature("points"))
    check_same_but_for(store, store.at(), gone="", but=arrays_of)
    assert done.derived == ("mood",)
    assert store.at().removed.features["points"].rows == sum(N.values())
    with store.transaction("made anew") as tx:
        tx.add_feature(fake_spec(16), {"extractor": "another"})
    store.remove(features=["points"])


# -- everywhere ------------------------------------------------------------------------------------


def test_the_bytes_of_a_video_are_gone_from_every_version(on_disk: kpstore.Store) -> None:
    store = on_disk
    assert traces(store.location)
    before = {name: store.at(name) for name in ("v1", "main")}
    names = [*store.branches, *store.tags]
    kept_open = {name: arrays(at) for name, at in before.items()}
    done = store.remove_everywhere(videos=["gone"], apply=True)
    assert traces(store.location) == []
    assert decoded_traces(store) == []
    assert [*store.branches, *store.tags] == names
    assert set(before[n].snapshot for n in before) <= set(done.versions)
    for name, at in before.items():
        now = store.at(name)
        assert "gone" not in now.index
        stays = at.index.ids != "gone"
        for array, values in arrays(now).items():
            rows = kept_open[name][array]
            axis = now[array].dims[0]
            if axis in ("video", "frame"):
                rows = rows[stays if axis == "video" else np.repeat(stays, at.index.n_frames)]
            np.testing.assert_array_equal(values, rows, err_msg=array)
        assert now.removed.videos["gone"].rows == N["gone"]
        assert now.history()[0].message == "remove video 'gone': 50 frames"
    assert verify_all(store.location).problems == []
    again = store.remove_everywhere(videos=["gone"], apply=True)
    assert (again.versions, again.branches, again.tags) == ((), (), ())


def test_a_dry_run_tells_what_would_go_and_changes_nothing(on_disk: kpstore.Store) -> None:
    store = on_disk
    told = store.remove_everywhere(videos=["gone"])
    assert store.at().snapshot == store.snapshot
    assert len(store.history()) == 4
    done = store.remove_everywhere(videos=["gone"], apply=True)
    for field in ("removed", "branches", "tags", "versions", "kept"):
        if field == "removed":
            assert told.removed.videos.keys() == done.removed.videos.keys()
        else:
            assert getattr(told, field) == getattr(done, field), field
    present = {
        commit.id for name in (*store.branches, *store.tags) for commit in store.at(name).history()
    }
    assert len(present) == done.kept
    assert not present & {*done.versions}


def test_versions_younger_than_its_removal_stay(on_disk: kpstore.Store) -> None:
    store = on_disk
    first = store.remove(videos=["gone"]).snapshot
    for seed in (3, 4):
        with store.transaction(f"seed {seed}") as tx:
            tx.write("points", "a", rows_of("a", N["a"], seed=seed))
    ids = [commit.id for commit in store.at().history()]
    store.remove_everywhere(videos=["gone"], apply=True)
    assert [commit.id for commit in store.at().history()][:3] == ids[:3]
    assert ids[2] == first
    with pytest.raises(NotFoundError):
        store.at(ids[3])
    assert traces(store.location) == []
    assert verify_all(store.location).problems == []


def test_a_tag_that_never_led_to_it_stays_as_it_is(on_disk: kpstore.Store) -> None:
    store = on_disk
    with store.transaction("later") as tx:
        tx.add_videos([VideoRecord("late", "train", (f"{SECRET}/late.png",))])
    store.remove_everywhere(videos=["late"], apply=True)
    assert store.at("v1").history()[0].message == "fill"
    assert "gone" in store.at().index
    assert verify_all(store.location).problems == []


@pytest.mark.parametrize("kind", DISK_KINDS)
def test_nothing_of_it_stays_behind_the_rows_of_versions_before_it(
    kind: str, tmp_path: Path
) -> None:
    store = build(location_of(kind, tmp_path), without="gone")
    store.tag("before")
    rows = arrays(store)
    with store.transaction("more rows") as tx:
        tx.add_videos([video("gone")])
        tx.write("points", "gone", marked(N["gone"]), failed_frames={3: f"{SECRET}: no light"})
    assert traces(store.location)
    done = store.remove_everywhere(videos=["gone"], apply=True)
    assert done.tags == ()
    assert traces(store.location) == []
    for name, values in arrays(store.at("before")).items():
        assert values.tobytes() == rows[name].tobytes() or values.tolist() == rows[name].tolist()
    assert verify_all(store.location).problems == []


@pytest.mark.parametrize(("kind", "codec"), [("hdf5", "raw"), ("icechunk", "zstd")])
def test_names_do_not_multiply_the_rows_that_stay(kind: str, codec: Codec, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def wide(n_frames: int) -> NDArray[np.float32]:
        return rng.standard_normal((n_frames, 300)).astype(np.float32)

    store = kpstore.create(location_of(kind, tmp_path))
    with store.transaction("fill") as tx:
        spec = kpstore.FeatureSpec("wide", (300,), ("x",), chunk_rows=60, compression=codec)
        tx.add_feature(spec, {"extractor": "fake"})
        tx.add_videos([record("a", 600), record("gone", 10)])
        tx.write("wide", "a", wide(600))
        tx.write("wide", "gone", wide(10))
    for number in range(3):
        store.at().tag(f"v{number}")
        with store.transaction("more") as tx:
            tx.add_videos([record(f"more-{number}", 2)])
            tx.write("wide", f"more-{number}", wide(2))
    before, wanted = size_of(store.location), store.at("v2")["wide"][:600].copy()
    store.remove_everywhere(videos=["gone"], apply=True)
    assert size_of(store.location) < 1.5 * before
    np.testing.assert_array_equal(store.at("v2")["wide"][:600], wanted)
    assert verify_all(store.location).problems == []


def test_a_feature_goes_from_every_version(on_disk: kpstore.Store) -> None:
    store = on_disk
    store.remove_everywhere(features=["points"], apply=True)
    for name in (*store.branches, *store.tags):
        assert "points" not in store.at(name).features
        assert "gone" in store.at(name).index
    assert "other" in store.at().features
    wanted = np.full(12, NUMBER).tobytes()
    files = [file for file in Path(store.location).parent.rglob("*") if file.is_file()]
    assert not [file for file in files if wanted in file.read_bytes()]
    assert verify_all(store.location).problems == []


@pytest.mark.parametrize("ending", [".kps", ".h5"])
def test_it_works_in_stores_of_format_1(tmp_path: Path, ending: str) -> None:
    store = kpstore.open(format_1(tmp_path, ending), mode="a")
    if store.backend.capabilities.branches:  # names that nothing is removed beside
        store.delete_branch("seite-ö")
        store.delete_tag("版本1")
    before = {name: arrays(store.at(name)) for name in (*store.branches, *store.tags)}
    start = LENGTHS["a"] + LENGTHS["b"]
    store.remove_everywhere(videos=["d"], apply=True)
    assert len(before) > 1
    for name, old in before.items():
        assert store.at(name).index.ids.tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(store.at(name)["points"][:], old["points"][:start])
    assert verify_all(store.location).problems == []


def test_decoded_copies_go_too(on_disk: kpstore.Store) -> None:
    store = on_disk
    kpstore.open(store.location, "v1").reader.cache("points")
    DecodedCache().folder.joinpath("elsewhere").mkdir(exist_ok=True)
    held = {entry.snapshot for entry in DecodedCache().entries()}
    assert store.tags["v1"] in held
    old = store.tags["v1"]
    store.remove_everywhere(videos=["gone"])
    assert old in {entry.snapshot for entry in DecodedCache().entries()}
    store.remove_everywhere(videos=["gone"], apply=True)
    assert old not in {entry.snapshot for entry in DecodedCache().entries()}


def test_what_killed_processes_and_deleted_names_have_left_goes_too(
    on_disk: kpstore.Store,
) -> None:
    store = on_disk
    if store.backend.capabilities.branches:
        with store.transaction("lost", branch="side") as tx:
            tx.write("points", "gone", marked(N["gone"]))
        store.delete_branch("side")
    copy = (
        "import pathlib, shutil, sys; from kpstore.backends.asides import aside_of; "
        "path = pathlib.Path(sys.argv[1]).resolve(); "
        "copy = shutil.copytree if path.is_dir() else shutil.copyfile; "
        "copy(path, aside_of(path, 'building')); "
        "path.is_file() and copy(path, aside_of(path, 'writing'))"
    )
    assert finish([sys.executable, "-c", copy, store.location]).returncode == 0
    n_before = len(list(Path(store.location).parent.iterdir()))
    store.remove_everywhere(videos=["gone"], apply=True)
    assert len(list(Path(store.location).parent.iterdir())) < n_before
    assert traces(store.location) == []


def test_a_copy_that_another_machine_may_be_making_is_named(
    on_disk: kpstore.Store, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(on_disk.location)
    theirs = path.with_name(f".writing-elsewhere-12-abcdef.{path.name}")
    theirs.write_bytes(b"of another machine")
    on_disk.remove_everywhere(videos=["gone"], apply=True)
    assert theirs.exists()
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{theirs} may hold what was removed" in line


def test_the_clock_of_its_files_does_not_keep_it(on_disk: kpstore.Store) -> None:
    for file in Path(on_disk.location).parent.rglob("*"):
        os.utime(file, (4e9, 4e9))
    store = kpstore.open(on_disk.location, mode="a")
    store.remove_everywhere(videos=["gone"], apply=True)
    assert traces(store.location) == []


def test_the_branch_that_a_removal_makes_is_nobody_elses(on_icechunk: kpstore.Store) -> None:
    store = on_icechunk
    with pytest.raises(InvalidError, match="makes one of that name, and deletes it; choose"):
        store.branch("kpstore-removal")


def test_an_open_transaction_keeps_it_away(on_disk: kpstore.Store) -> None:
    tx = on_disk.transaction("slow")
    for apply in (False, True):
        with pytest.raises(BusyError, match="not committed yet"):
            on_disk.remove_everywhere(videos=["gone"], apply=apply)
    assert on_disk.at().snapshot == on_disk.snapshot
    tx.session.discard()
    with on_disk.backend.exclusive("an ingest"):
        for call in (on_disk.remove, on_disk.remove_everywhere):
            with pytest.raises(BusyError, match="an ingest, process"):
                call(videos=["gone"])


def test_a_name_that_somebody_gives_meanwhile_is_noticed(
    on_icechunk: kpstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = on_icechunk

    def clear(cache: DecodedCache, snapshots: object) -> int:
        store.branch("late")  # at the version that this object reads
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(DecodedCache, "clear", clear)
        with pytest.raises(ConflictError, match=r"changed meanwhile, .*; repeat it"):
            store.remove_everywhere(videos=["gone"], apply=True)
    assert verify_all(store.location).problems == []
    store.remove_everywhere(videos=["gone"], apply=True)
    assert traces(store.location) == []
    assert "gone" not in store.at("late").index


def test_a_video_of_a_branch_alone_is_found_and_stays_out_of_all(
    on_icechunk: kpstore.Store,
) -> None:
    store = on_icechunk
    with store.transaction("there", branch="side") as tx:
        tx.add_videos([record("late", 4, gloss=SECRET)])
    done = store.remove_everywhere(videos=["late"], apply=True)
    assert set(done.branches) == {"main", "side"}
    assert "late" not in store.at("side").index
    for branch in ("main", "side"):
        with pytest.raises(InvalidError, match="stays out"):
            store.transaction("again", branch=branch).add_videos([record("late", 4)])
    assert "record of videos" in store.at().history()[0].message


def test_names_of_one_version_name_one_version_afterwards(on_disk: kpstore.Store) -> None:
    store = on_disk
    store.tag("same")
    if store.backend.capabilities.branches:
        store.branch("twin")
    store.remove_everywhere(videos=["gone"], apply=True)
    names = {**store.branches, **store.tags}
    assert {names[name] for name in ("same", "twin") if name in names} == {names["main"]}
    assert verify_all(store.location).problems == []


def test_what_a_backend_cannot_remove_is_said_before_anything_is(
    memory_store: kpstore.Store,
) -> None:
    store = build(memory_location())
    with pytest.raises(UnsupportedError, match="cannot remove versions"):
        store.remove_everywhere(videos=["gone"])
    assert store.at().snapshot == store.snapshot


@pytest.mark.slow
def test_after_a_kill_the_store_is_sound_and_the_same_call_ends_it(
    on_disk: kpstore.Store, tmp_path: Path
) -> None:
    at_all = {name: arrays(on_disk.at(name)) for name in ("main", "v1")}
    with killer() as killed:
        for number in itertools.count(1, EVERY[Path(on_disk.location).suffix]):
            folder = tmp_path / f"try-{number}"
            folder.mkdir()
            copy = copy_store(on_disk.location, folder)
            code = killed(copy, number, "gone")
            again = kpstore.open(copy, mode="a")
            assert verify_all(copy).problems == [], number
            for name, before in at_all.items():
                rows = again.at(name).video("a")["points"]
                np.testing.assert_array_equal(rows, before["points"][: N["a"]])
            again.remove_everywhere(videos=["gone"], apply=True)
            assert traces(copy) == [], number
            assert decoded_traces(again) == []
            assert "kpstore-removal" not in again.branches
            assert verify_all(copy).problems == [], number
            shutil.rmtree(folder)
            if code == 0:
                break
            assert code == -signal.SIGKILL
    assert number > 3
