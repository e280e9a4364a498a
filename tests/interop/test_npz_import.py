"""Npz files into stores and back: those of kpstore to the byte, those of scripts to the value."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpstore
from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.npz import NPZ
from kpstore.interop.npz import read as npz_read
from kpstore.interop.npz.read import NpzImport, recognises
from kpstore.interop.npz.write import NpzExport
from kpstore.interop.transfer import ImportReport, import_document
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.layout import PART_SLICES, PARTS
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.interop.test_npz import filled, keypoint_rows


def import_npz(path: Path, **options: Any) -> tuple[kpstore.Store, ImportReport]:
    location = memory_location()
    report = import_document(
        NpzImport(**options).open(path), backend_for(location), source=str(path)
    )
    return kpstore.open(location), report


def write_npz(path: Path, ids: list[str], *, text: Any = np.str_, **arrays: Any) -> Path:
    """Write what users' scripts write: random keypoints, zeros for a missing part."""
    values = np.nan_to_num(
        np.concatenate(
            [np.empty((0, 143, 3)), *(keypoint_rows(2, i).values[:1] for i in range(len(ids)))]
        )
    )
    paths = [f"{video_id}/{n}.png" for n, video_id in enumerate(ids)]
    made = {"keypoints": values.astype(np.float32), "image_paths": np.array(paths, dtype=text)}
    np.savez_compressed(path, **{**made, "video_ids": np.array(ids, dtype=text), **arrays})
    return path


videos = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5),
        st.sampled_from(["train", "dev", "", "ü"]),
        st.lists(st.integers(0, 15), max_size=4),
        st.booleans(),
    ),
    max_size=5,
    unique_by=lambda video: video[0],
)


def made_store(drawn: list[Any]) -> kpstore.Store:
    """A store of videos whose frames have the parts that the bits of a number say.

    Some videos are pending.
    """
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        records = [
            kpstore.VideoRecord(v, s, tuple(f"{v}/{n}.png" for n in range(len(f))))
            for v, s, f, _ in drawn
        ]
        if records:
            tx.add_videos(records)
        tx.add_feature("keypoints")
        for video_id, _, frames, done in drawn:
            if done:
                detected = np.array(
                    [[bool(bits >> n & 1) for n in range(4)] for bits in frames], bool
                ).reshape(-1, 4)
                rows = keypoint_rows(max(2, len(frames)), len(video_id))[: len(frames)]
                values = np.where(np.isnan(rows.values), np.float32(0.5), rows.values)
                for column, part in enumerate(PARTS):
                    values[~detected[:, column], PART_SLICES[part]] = np.nan
                tx.write("keypoints", video_id, kpstore.FeatureRows(values, {"detected": detected}))
    return store.at()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@COSTLY
@given(videos, st.sampled_from([{}, {"empty": "keep"}, {"empty": "keep", "missing": "nan"}]))
def test_files_of_kpstore_come_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], options: Any
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    store = made_store(drawn)
    held = [s for s in store.splits if any(d[1] == s and d[3] and any(d[2]) for d in drawn)]
    if not held:
        return
    NpzExport(splits=held, **options).export(store, folder / "first")
    again, report = import_npz(folder / "first")
    assert report.notes == ()
    NpzExport(**options).export(again, folder / "second")
    assert contents(folder / "second") == contents(folder / "first")
    for video_id in again.index.ids:
        assert again.video(video_id).split == store.video(video_id).split


@COSTLY
@given(st.lists(st.integers(0, 15), min_size=1, max_size=6), st.integers(1, 3))
def test_stores_come_back_equal(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int], n_videos: int
) -> None:
    folder = tmp_path_factory.mktemp("npz")
    store = made_store([(f"ü/{n}", "train", frames, True) for n in range(n_videos)])
    NpzExport(empty="keep").export(store, folder)
    again, _ = import_npz(folder)
    for array in (
        "keypoints",
        "keypoints_detected",
        "keypoints_status",
        "image_path",
        "video_id",
        "split",
        "n_frames",
    ):
        np.testing.assert_array_equal(again[array][:], store[array][:])


@pytest.mark.parametrize("text", [np.str_, object, "S9"])
@pytest.mark.parametrize("fortran", [False, True])
def test_files_of_numpy_come_back_value_for_value(tmp_path: Path, text: Any, fortran: bool) -> None:
    source = write_npz(tmp_path / "train_keypoints.npz", ["a", "a", "b"], text=text)
    with np.load(source, allow_pickle=True) as file:
        arrays = dict(file)
    if fortran:
        np.savez_compressed(
            source, **{**arrays, "keypoints": np.asfortranarray(arrays["keypoints"])}
        )
    store, _ = import_npz(source)
    NpzExport().export(store, tmp_path / "out")
    with np.load(tmp_path / "out" / "train_keypoints.npz") as found:
        np.testing.assert_array_equal(found["keypoints"], arrays["keypoints"])
        assert found["video_ids"].tolist() == ["a", "a", "b"]
        assert found["image_paths"].tolist() == ["a/0.png", "a/1.png", "b/2.png"]


def test_zeros_are_missing_or_values(tmp_path: Path) -> None:
    values = np.ones((2, 143, 3), np.float32)
    values[0, :68], values[1, 68:89] = 0, np.nan
    path = write_npz(tmp_path / "x.npz", ["a", "a"], keypoints=values)
    missing, report = import_npz(path)
    assert report.frames == 2
    assert missing["keypoints_detected"][:].tolist() == [
        [False, True, True, True],
        [True, False, True, True],
    ]
    assert np.isnan(missing["keypoints"][0, :68]).all()
    plain, _ = import_npz(path, zeros="values")
    assert plain["keypoints_detected"][:].tolist() == [[True] * 4, [True, False, True, True]]
    np.testing.assert_array_equal(plain["keypoints"][:], values)


def test_rows_of_a_video_that_lie_apart_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz_read, "BLOCK_BYTES", 8)
    path = write_npz(tmp_path / "train_keypoints.npz", ["a", "b", "a", "b", "b"])
    store, report = import_npz(path)
    with np.load(path) as file:
        np.testing.assert_array_equal(
            np.nan_to_num(store["keypoints"][:]), file["keypoints"][[0, 2, 1, 3, 4]]
        )
    assert store["image_path"][:].tolist() == [
        "a/0.png",
        "a/2.png",
        "b/1.png",
        "b/3.png",
        "b/4.png",
    ]
    assert "the rows of 2 videos do not follow each other" in report.notes[0]


def test_other_arrays_are_features_of_their_name(tmp_path: Path) -> None:
    store = filled(kpstore.create(memory_location()))
    with store.transaction("more") as tx:
        tx.add_feature(FeatureSpec("dinov2_vits14", (4,), ("feature",)))
        tx.write("dinov2_vits14", "a", np.arange(24, dtype=np.float32).reshape(6, 4))
    NpzExport("dinov2_vits14", ["train"]).export(store.at(), tmp_path)
    found, report = import_npz(tmp_path, feature="dinov2_vits14")
    assert found["dinov2_vits14"][:].tolist() == np.arange(24.0).reshape(6, 4).tolist()
    assert report.notes == ()
    faces = write_npz(tmp_path / "faces.npz", ["a"], keypoints=np.ones((1, 68, 3), np.float64))
    with pytest.raises(InvalidError, match=r"rows of \(68, 3\) float64, .* --feature keypoints"):
        import_npz(faces)
    store, _ = import_npz(faces, feature="keypoints")
    assert (store["keypoints"].shape, store["keypoints"].dtype) == ((1, 68, 3), np.float64)


def test_what_an_export_leaves_behind_is_said(tmp_path: Path) -> None:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos([kpstore.VideoRecord("a", "train", ("x",), annotations={"gloss": "WETTER"})])
        tx.add_feature("keypoints")
        tx.add_feature(FeatureSpec("other", (2,), ("axis",)))
        tx.write("keypoints", "a", keypoint_rows(2, 1)[:1])
    notes = NpzExport().export(store.at(), tmp_path).notes
    assert notes == [
        "other features: other",
        "companions of keypoints: visibility",
        "annotations: gloss",
    ]


def test_stats_are_compared(tmp_path: Path) -> None:
    NpzExport().export(filled(kpstore.create(memory_location())), tmp_path)
    stats = json.loads((tmp_path / "dev_stats.json").read_text())
    (tmp_path / "dev_stats.json").write_text(
        json.dumps({**stats, "pose_detected": 99, "num_videos": 7, "extra": 1})
    )
    (tmp_path / "train_stats.json").write_text("{")
    _, report = import_npz(tmp_path)
    notes = " | ".join(report.notes)
    assert "dev_stats.json says num_videos=7, found 1" in notes
    assert "says pose_detected=99, found" in notes
    assert "dev_stats.json: 'extra' is not stored" in notes
    assert "train_stats.json: cannot be read" in notes
    assert len(report.notes) == 4


def test_arrays_that_are_not_stored_are_said(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", ["a", "b"], scores=np.ones(2), more=np.ones(1))
    _, report = import_npz(path)
    assert "x.npz: 2 further arrays, such as 'scores', are not stored" in report.notes


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", ["a", "b"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("keypoints.npy", archive.read("keypoints.npy"))
    with pytest.raises(InvalidError, match=r"x.npz: array 'keypoints' is in it twice; save it"):
        import_npz(path)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "length": (
        {"video_ids": np.array(["a"])},
        "differ in length: 2 keypoints, 2 image_paths, 1 video_ids",
    ),
    "shape": ({"keypoints": np.zeros((2, 143), np.float32)}, r"rows of \(143,\) float32"),
    "scalar": ({"keypoints": np.float32(1)}, r"'keypoints' is \(\) of float32"),
    "nan": (
        {"keypoints": np.where(np.arange(858) == 500, np.nan, 1).reshape(2, 143, 3)},
        "frame 1 of video 'a' has NaN",
    ),
    "pickle": ({"video_ids": np.array([Evil(), "a"], object)}, "asks for 'builtins.print'"),
    "objects": ({"video_ids": np.array([1, "a"], object)}, "other than text"),
    "numbers": ({"video_ids": np.array([1, 2])}, "one text a row"),
    "keypoints": ({"keypoints": np.array(["x", "y"])}, "'keypoints' is of <U1; numbers"),
    "empty id": ({"video_ids": np.array(["", "a"])}, "row 0 has an empty video id"),
    "surrogate": ({"image_paths": np.array(["\ud800", "a"])}, "not Unicode"),
    "latin": ({"image_paths": np.array([b"\xff", b"a"])}, "not Unicode"),
}


@pytest.mark.parametrize(("arrays", "message"), BAD.values(), ids=BAD)
def test_bad_arrays_are_one_line(
    tmp_path: Path, capsys: Any, arrays: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "train_keypoints.npz", ["a", "a"], **arrays)
    with pytest.raises(InvalidError, match=message) as caught:
        import_npz(path)
    assert "train_keypoints.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("cut", [0, 1, 50, 1000, -1, -30])
def test_torn_files_are_one_line(tmp_path: Path, cut: int) -> None:
    path = write_npz(tmp_path / "x.npz", ["a", "a"])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InvalidError, match=r"x.npz is not an npz file, or is cut short"):
        import_npz(path)


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=30)
def test_damage_is_said_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int
) -> None:
    path = write_npz(tmp_path_factory.mktemp("npz") / "x.npz", ["a", "b"])
    whole, _ = import_npz(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    path.write_bytes(data)
    try:
        store, _ = import_npz(path)
    except InvalidError as error:
        assert "x.npz" in str(error)  # noqa: PT017 - damage in an unused byte is no error
    else:
        np.testing.assert_array_equal(store["keypoints"][:], whole["keypoints"][:])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"(9999, 1,3)", r"says it has the shape \(9999, 1, 3\) of float32, but holds 3432 bytes"),
        (b"(2, 143, (3", "'keypoints' is not an array that numpy wrote"),
        (b"(-2, 143,3)", r"'keypoints' is \(-2, 143, 3\) of float32; rows"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, header: bytes, message: str) -> None:
    path = write_npz(tmp_path / "x.npz", ["a", "a"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["keypoints.npy"] = members["keypoints.npy"].replace(b"(2, 143, 3)", header)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(InvalidError, match=message):
        import_npz(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no file \*_keypoints.npz in the folder"):
        import_npz(tmp_path)
    with pytest.raises(NotFoundError, match="no npz file at"):
        import_npz(tmp_path / "x.npz")
    write_npz(tmp_path / "train_keypoints.npz", ["a"])
    with pytest.raises(
        InvalidError, match=r"no array 'lips' in it; it has keypoints, image_paths, video_ids"
    ):
        import_npz(tmp_path / "train_keypoints.npz", feature="lips")
    write_npz(tmp_path / "dev_keypoints.npz", ["a"])
    with pytest.raises(
        InvalidError, match=r"video 'a' is in .*train_keypoints.npz and in .*dev_keypoints.npz"
    ):
        import_npz(tmp_path)
    with pytest.raises(InvalidError, match="zeros='none'"):
        NpzImport(zeros="none")  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="face_list='dlib'"):
        NpzImport(face_list="dlib")


def test_it_is_recognised(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "train_keypoints.npz", ["a"])
    np.savez(tmp_path / "other.npz", x=np.ones(1))
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:99])
    assert NPZ.recognises(path)
    assert NPZ.recognises(tmp_path)
    assert not any(
        NPZ.recognises(tmp_path / name) for name in ("other.npz", "torn.npz", "none.npz", "none")
    )


def test_files_that_begin_with_a_dot_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "._train_keypoints.npz").write_bytes(b"left by another system")
    assert not recognises(tmp_path)
    with pytest.raises(NotFoundError, match=r"no file \*_keypoints\.npz"):
        import_npz(tmp_path)
    write_npz(tmp_path / "train_keypoints.npz", ["a"], keypoints=np.ones((1, 143, 3), "f4"))
    assert recognises(tmp_path)
    assert import_npz(tmp_path)[0].index.ids.tolist() == ["a"]
