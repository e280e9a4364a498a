"""Imports: one commit with everything, or nothing at all."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore.backends.asides import aside_of
from kpstore.errors import ExistsError, InvalidError, MismatchError, NotFoundError, UnsupportedError
from kpstore.interop import import_writer
from kpstore.interop.base import Format
from kpstore.interop.files import check_free, folder_written_aside, inside, written_aside
from kpstore.interop.transfer import find_format, import_document, import_file
from kpstore.schema.feature import FeatureRows, State
from kpstore.store.feature_writer import FeatureWriter
from kpstore.store.store import backend_for
from tests.conftest import memory_location
from tests.fakes import record
from tests.interop.formats import MadeUp, points

LENGTHS = {"a": 5, "b": 0, "ü/c": 20, "d": 1}


def store_of(document: Any, location: str) -> kpstore.Store:
    import_document(document, backend_for(location), source="x.bin")
    return kpstore.open(location)


@pytest.mark.parametrize("block_bytes", [1, 200, 10**9])
def test_everything_is_there_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(import_writer, "_BLOCK_BYTES", block_bytes)
    seen: list[int] = []
    report = import_document(
        MadeUp(LENGTHS, failed={"a": {3: "torn"}}),
        backend_for(str(tmp_path / "s.kps")),
        source="x.bin",
        on_progress=seen.append,
    )
    store = kpstore.open(tmp_path / "s.kps")
    assert (report.videos, report.frames, report.failed_frames, report.notes) == (
        4,
        26,
        1,
        ("no notes",),
    )
    assert report.snapshot == store.snapshot
    assert sum(seen) == 26
    assert (store.name, store.history()[0].message) == (
        "made up",
        "import points, person from x.bin",
    )
    for video_id, n in LENGTHS.items():
        wanted, failed = points(video_id, n), [3] if video_id == "a" else []
        wanted.values[failed], wanted.companions["detected"][failed] = np.nan, False
        np.testing.assert_array_equal(store.video(video_id)["points"], wanted.values)
        np.testing.assert_array_equal(
            store.video(video_id)["points_detected"], wanted.companions["detected"]
        )
    assert store["person"][:, 0].tolist() == list(LENGTHS.values())
    assert [(f.video_id, f.frame, f.reason) for f in store.failures("points")] == [("a", 3, "torn")]
    assert store["points_status"][3] == State.FAILED
    assert (store.states("points") == State.DONE).all()
    assert (store.states("person") == State.DONE).all()
    assert len(store.history()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s.kps"]


def test_a_file_that_breaks_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_writer, "_BLOCK_BYTES", 1)
    with pytest.raises(ValueError, match="torn"):
        store_of(MadeUp(LENGTHS, error_at="d"), str(tmp_path / "s.kps"))
    assert list(tmp_path.iterdir()) == []
    before = store_of(MadeUp({"x": 3}), str(tmp_path / "s.kps"))
    with pytest.raises(ValueError, match="torn"):
        store_of(MadeUp(LENGTHS, error_at="d"), str(tmp_path / "s.kps"))
    assert kpstore.open(tmp_path / "s.kps").snapshot == before.snapshot


def test_a_store_grows_by_videos_and_by_features() -> None:
    location = memory_location()
    store_of(MadeUp({"a": 5, "b": 2}, without=("person",)), location)
    store = store_of(MadeUp({"b": 2, "a": 5, "c": 3}, without=("points",)), location)
    assert store.index.ids.tolist() == ["a", "b", "c"]
    assert store["person"][:, 0].tolist() == [5, 2, 3]
    assert store.states("points").tolist() == [State.DONE, State.DONE, State.PENDING]
    store = store_of(MadeUp({"c": 3}, without=("person",), failed={"c": {0: "x"}}), location)
    assert store.states("points").tolist() == [State.DONE] * 3
    assert len(store.failures("points")) == 1


def test_a_feature_of_videos_in_the_store_is_written_in_whole_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[str] = []
    write = FeatureWriter._write_states

    def counted(self: Any, feature: str, *rest: Any) -> None:
        written.append(feature)
        write(self, feature, *rest)

    location, lengths = memory_location(), dict.fromkeys("abcdefgh", 3)
    store_of(MadeUp(lengths, without=("points",)), location)
    monkeypatch.setattr(FeatureWriter, "_write_states", counted)
    store_of(MadeUp(lengths, without=("person",)), location)
    assert written == ["points"]


def test_features_go_to_the_frames_that_their_paths_name() -> None:
    class Shuffled(MadeUp):
        def videos(self) -> Any:
            for video in super().videos():
                order = np.random.default_rng(1).permutation(video.record.n_frames)
                paths = tuple(f"D:\\\\data\\\\{video.record.frame_paths[n]}" for n in order)
                rows = video.rows["points"]
                moved = FeatureRows(
                    rows.values[order], {k: v[order] for k, v in rows.companions.items()}
                )
                failed = {"points": {int(np.flatnonzero(order == 3)[0]): "torn"}}
                yield replace(
                    video,
                    record=replace(video.record, frame_paths=paths),
                    rows={"points": moved},
                    failed_frames=failed,
                )

    location = memory_location()
    store_of(MadeUp({"a": 7}, without=("points",)), location)
    store = store_of(Shuffled({"a": 7}, without=("person",)), location)
    wanted = points("a", 7).values
    wanted[3] = np.nan
    np.testing.assert_array_equal(store.video("a")["points"], wanted)
    assert [f.frame for f in store.failures("points")] == [3]


def test_frames_of_other_paths_are_refused_and_numbers_are_numbers() -> None:
    def renamed(pattern: str) -> Any:
        class Renamed(MadeUp):
            def videos(self) -> Any:
                for video in super().videos():
                    paths = tuple(pattern.format(n=n) for n in range(video.record.n_frames))
                    yield replace(video, record=replace(video.record, frame_paths=paths))

        return Renamed({"a": 3}, without=("person",))

    location = memory_location()
    store_of(MadeUp({"a": 3}, without=("points",)), location)
    with pytest.raises(
        InvalidError,
        match=r"other frames in the store \(a/0000.png\) than in the file \(b/x0.png\)",
    ):
        store_of(renamed("b/x{n}.png"), location)
    store = store_of(renamed("a.pose#{n}"), location)
    np.testing.assert_array_equal(store.video("a")["points"], points("a", 3).values)


def test_what_the_file_says_otherwise_of_known_videos_is_told() -> None:
    class Otherwise(MadeUp):
        def videos(self) -> Any:
            for video in super().videos():
                yield replace(
                    video, record=replace(video.record, split="test", annotations={"gloss": "G"})
                )

    location = memory_location()
    store_of(MadeUp({"a": 3, "b": 2}, without=("points",)), location)
    report = import_document(
        Otherwise({"a": 3, "b": 2}, without=("person",)), backend_for(location), source="x"
    )
    assert report.notes[1:] == (
        "split of 2 videos that were in the store already, 'a' the first: the store keeps its own",
        "gloss of 2 videos that were in the store already, 'a' the first: the store keeps its own",
    )


@pytest.mark.parametrize("target", ["s.kps", "s.kps/out", "other.h5", "other.kps/sub/x"])
def test_exports_never_go_into_a_store_or_replace_one(tmp_path: Path, target: str) -> None:
    store = store_of(MadeUp({"a": 3}), str(tmp_path / "s.kps"))
    for other in ("other.h5", "other.kps"):
        kpstore.create(tmp_path / other)
    with pytest.raises(ExistsError, match="is a store, or lies in one"):
        kpstore.export_file(store, tmp_path / target, "npz", feature="points", overwrite=True)
    assert kpstore.open(tmp_path / "s.kps").snapshot == store.snapshot


def test_a_path_of_bytes_is_named_as_text(tmp_path: Path) -> None:
    store = store_of(MadeUp({"a": 3}), str(tmp_path / "s.kps"))
    kpstore.export_file(store, bytes(tmp_path / "out"), "npz", feature="points")  # type: ignore[arg-type]
    kpstore.import_file(bytes(tmp_path / "out"), tmp_path / "t.h5", "npz", feature="points")  # type: ignore[arg-type]
    assert kpstore.open(tmp_path / "t.h5").history()[0].message == "import points from out"


def test_what_a_killed_import_or_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    dead = int(gone.stdout)
    host = aside_of(tmp_path / "x", "building").name.split("-")[1]
    for name in ("s.kps", "s.h5"):
        left = f".building-{host}-{dead}-0a1b2c3d.{name}"
        kpstore.create(tmp_path / left)
        # Killed in the middle of a commit into what it was building; and before there was anything
        # else.
        beside = [
            f".writing-{host}-{dead}-{n}c3d4e5f.{left if n else left.replace('0a', '1a')}"
            for n in range(2)
        ]
        if name.endswith(".h5"):
            for half in beside:
                (tmp_path / half).write_bytes(b"half")
        other = f".building-otherhost-{dead}-0a1b2c3d.{name}"
        kpstore.create(tmp_path / other)
        store_of(MadeUp({"a": 3}), str(tmp_path / name))
        assert not (tmp_path / left).exists()
        assert not any((tmp_path / half).exists() for half in beside)
        assert (tmp_path / other).exists(), "that machine may still be at work"
    (tmp_path / f".making-{host}-{dead}-0a1b2c3d.file").touch()
    with written_aside(tmp_path / "file") as (aside,):
        aside.write_text("x")
    assert not list(tmp_path.glob(".making-*"))


def test_text_that_cannot_be_stored_is_one_line(memory_store: kpstore.Store) -> None:
    with memory_store.transaction("x") as tx:
        for video_id, gloss in (("\ud800", ""), ("a", "\ud800")):
            with pytest.raises(InvalidError, match="is not valid text"):
                tx.add_videos([record(video_id, 1, gloss=gloss)])


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (MadeUp({"a": 5}), ExistsError, "'a' has 'points' in the store already"),
        (MadeUp({"a": 6}), InvalidError, "'a' has 5 frames in the store and 6 in the file"),
        (MadeUp({"z": 1}, scale=2.0), MismatchError, "scale 1.0, this run has 2.0"),
    ],
)
def test_what_does_not_fit_is_refused(document: Any, error: type[Exception], message: str) -> None:
    location = memory_location()
    before = store_of(MadeUp({"a": 5}), location)
    with pytest.raises(error, match=message):
        store_of(document, location)
    assert kpstore.open(location).snapshot == before.snapshot


def test_a_video_that_comes_twice_is_named() -> None:
    class Twice(MadeUp):
        def videos(self) -> Any:
            yield from super().videos()
            yield from super().videos()

    with pytest.raises(InvalidError, match="'a' is in the file twice"):
        store_of(Twice({"a": 5}), memory_location())


def test_options_and_ways_that_do_not_exist_are_one_line(
    tmp_path: Path, memory_store: kpstore.Store
) -> None:
    with pytest.raises(InvalidError, match=r"format 'npz': .*unexpected keyword argument 'colour'"):
        kpstore.export_file(memory_store, tmp_path, "npz", colour="red")
    with pytest.raises(NotFoundError, match=r"format 'floppy' not found; there are: .*npz"):
        kpstore.export_file(memory_store, tmp_path, "floppy")
    kpstore.plugins.register("kpstore.formats", "nothing", Format("nothing", "Neither way."))
    with pytest.raises(UnsupportedError, match="can be imported only"):
        kpstore.export_file(memory_store, tmp_path, "nothing")
    with pytest.raises(UnsupportedError, match="can be exported only"):
        import_file(tmp_path, memory_location(), "nothing")


def test_a_file_of_no_known_format_says_which_there_are(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"?")
    with pytest.raises(InvalidError, match=r"what format is it.*none of .*npz"):
        find_format(tmp_path / "x.bin")
    with pytest.raises(NotFoundError, match=r"y\.bin does not exist"):
        find_format(tmp_path / "y.bin")


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "", "a\0b", "a\nb", "c:/x", "\\\\server\\x", ".."]
)
def test_names_never_lead_out_of_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="cannot be the name of a file"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b.npz") == tmp_path / "a" / "b.npz"


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    paths = (tmp_path / "new" / "a", tmp_path / "new" / "b")
    with pytest.raises(ValueError, match="torn"), written_aside(*paths) as asides:  # noqa: PT012
        asides[0].write_text("half")
        raise ValueError("torn")
    assert list((tmp_path / "new").iterdir()) == []
    with written_aside(*paths) as asides:
        for aside in asides:
            aside.write_text("whole")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a", "b"]
    with pytest.raises(ExistsError, match=r"a and 1 more exists? already"):
        check_free(paths, overwrite=False)


def test_folders_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("first", "second"):
        with folder_written_aside(out) as aside:
            (aside / "x").write_text(content)
    with pytest.raises(ValueError, match="torn"), folder_written_aside(out) as aside:  # noqa: PT012
        (aside / "x").write_text("half")
        raise ValueError("torn")
    assert (out / "x").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
