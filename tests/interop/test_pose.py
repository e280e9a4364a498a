"""``.pose`` files: everything comes back, points are found by name, and torn files are one line."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pose_format import Pose, PoseHeader
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeaderComponent, PoseHeaderDimensions

import kpstore
from kpstore.errors import ExistsError, InvalidError, MismatchError, NotFoundError
from kpstore.inspect.verify import verify
from kpstore.interop.pose import POSE
from kpstore.interop.pose.layout import describe
from kpstore.interop.pose.read import PoseImport
from kpstore.interop.pose.write import PoseExport, _Component
from kpstore.interop.transfer import import_document, import_file
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import FACE_LISTS, PART_SLICES, PARTS, FaceList, keypoints_spec
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.interop.test_npz import keypoint_rows

HAND = ("WRIST", "THUMB_CMC", "THUMB_MCP")


def component(name: str, points: Sequence[str], form: str = "XYZC") -> PoseHeaderComponent:
    # Ours, as pose-format's own cuts names that are not ASCII; it reads them all.
    return _Component(name, list(points), [(0, len(points) - 1)], [(1, 2, 3)], form)


HOLISTIC = [
    component("POSE_LANDMARKS", ["LEFT_WRIST", "NOSE"]),
    component("FACE_LANDMARKS", [str(n) for n in range(468)]),
    component("RIGHT_HAND_LANDMARKS", HAND),
    component("POSE_WORLD_LANDMARKS", ["NOSE"]),
]


def write(
    path: Path,
    values: Any,
    confidence: Any,
    components: Sequence[PoseHeaderComponent] = HOLISTIC,
    size: tuple[int, int, int] = (200, 100, 7),
    fps: float = 25.0,
) -> Path:
    """Write values (frames, people, points, dims) and confidence (frames, people, points)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = NumPyPoseBody(
        fps, np.ma.masked_array(np.asarray(values, np.float32)), np.asarray(confidence, np.float32)
    )
    with path.open("wb") as file:
        Pose(PoseHeader(0.2, PoseHeaderDimensions(*size), list(components)), body).write(file)
    return path


def random_pose(path: Path, n_frames: int, people: int = 1, seed: int = 0, **more: Any) -> Path:
    """Random points; some are missing, and some of those have numbers all the same."""
    rng = np.random.default_rng(seed)
    components = more.get("components", HOLISTIC)
    points = sum(len(c.points) for c in components)
    dims = max(len(c.format) for c in components) - 1
    values = rng.standard_normal((n_frames, people, points, dims)) * 100
    confidence = rng.random((n_frames, people, points)) * rng.integers(
        0, 2, (n_frames, people, points)
    )
    values[(confidence == 0) & (rng.random(confidence.shape) < 0.8)] = 0
    return write(path, values, confidence, **more)


def store_of(path: Path, location: str = "", **options: Any) -> kpstore.Store:
    location = location or memory_location()
    import_document(PoseImport(**options).open(path), backend_for(location), source=str(path))
    return kpstore.open(location)


def as_version(path: Path, version: float, target: Path) -> Path:
    """Rewrite a file of version 0.2 as 0.1, or as 0.0 with a person in every other frame."""
    pose = Pose.read(path.read_bytes())
    rest = 10 + pose.body.data.size * 4 + pose.body.confidence.size * 4
    head = struct.pack("<f", version) + path.read_bytes()[4:-rest]
    frames, people = pose.body.confidence.shape[:2]
    if version == 0.1:
        numbers = pose.body.data.data.tobytes() + pose.body.confidence.tobytes()
        target.write_bytes(head + struct.pack("<HHH", int(pose.body.fps), frames, people) + numbers)
        return target
    body = struct.pack("<HH", int(pose.body.fps), frames)
    for frame in range(frames):
        count = frame % 3
        rows = np.concatenate(
            [pose.body.data.data[frame, 0], pose.body.confidence[frame, 0, :, None]], axis=1
        )
        body += (
            struct.pack("<H", count) + (struct.pack("<h", 9) + rows.astype("<f4").tobytes()) * count
        )
    target.write_bytes(head + body)
    return target


# -- round trips -----------------------------------------------------------------------------------


@COSTLY
@given(
    n_frames=st.integers(0, 4),
    people=st.integers(0, 3),
    seed=st.integers(0, 99),
    size=st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535)),
    fps=st.floats(width=32),
    form=st.sampled_from(["XYC", "XYZC", "XYZKC"]),
    names=st.lists(st.text(max_size=5), min_size=1, max_size=4),
)
def test_any_file_comes_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory,
    n_frames: int,
    people: int,
    seed: int,
    size: tuple[int, int, int],
    fps: float,
    form: str,
    names: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("pose")
    components = [
        component("LEFT_HAND_LANDMARKS", [*names, "WRIST"], form),
        component("other", ["a", "a"], "XC"),
    ]
    path = random_pose(
        folder / "é x" / "a.b.pose",
        n_frames,
        people,
        seed,
        components=components,
        size=size,
        fps=fps,
    )
    store = store_of(folder)
    assert store.index.ids.tolist() == (
        ["é x/a.b"] if people < 2 else [f"é x/a.b#{p + 1}" for p in range(people)]
    )
    PoseExport().export(store, folder / "out")
    assert (folder / "out" / "é x" / "a.b.pose").read_bytes() == path.read_bytes()


@COSTLY
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    face_list=st.sampled_from(
        [*FACE_LISTS.values(), FaceList("means", tuple((n, n + 1) for n in range(68)))]
    ),
)
def test_keypoints_come_back(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, face_list: FaceList
) -> None:
    folder = tmp_path_factory.mktemp("pose")
    store = kpstore.create(memory_location())
    rng = np.random.default_rng(seed)
    with store.transaction("fill") as tx:
        tx.add_feature(keypoints_spec(face_list))
        for number, n in enumerate(lengths):
            # Powers of two: then pixels and fractions turn into each other without a rounding.
            tx.add_videos(
                [VideoRecord(f"ü/{number}", "", tuple(map(str, range(n))), 29.97, 256, 128)]
            )
            rows = keypoint_rows(n, seed) if n > 1 else keypoints_spec().empty_rows(n)
            indices = [
                face_list.points.index(point) for point in face_list.points
            ]  # a point named twice is one
            rows.values[:, PART_SLICES["face"]] = rows.values[:, indices]
            visible = rng.random((n, 33)).astype(np.float32) * np.float32(0.99) + np.float32(0.01)
            visible[~rows.companions["detected"][:, PARTS.index("pose")]] = np.nan
            tx.write(
                "keypoints",
                f"ü/{number}",
                FeatureRows(rows.values, {**rows.companions, "visibility": visible}),
            )
    PoseExport().export(store.at(), folder / "out")
    again = store_of(folder / "out", keep="keypoints", face_list=face_list)
    assert again.index.ids.tolist() == store.at().index.ids.tolist()
    assert again.feature("keypoints") == store.at().feature("keypoints")
    for name in ("keypoints", "keypoints_detected", "keypoints_visibility", "width", "height"):
        np.testing.assert_array_equal(again[name][:], store.at()[name][:])
    np.testing.assert_array_equal(again["fps"][:], np.float32(29.97))


def test_keypoints_of_any_size_come_back_within_a_rounding(tmp_path: Path) -> None:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos([VideoRecord("a", "", tuple("12345"), 25, 210, 260)])
        tx.add_feature(keypoints_spec())
        tx.write("keypoints", "a", keypoint_rows(5, 1))
    report = PoseExport().export(store.at(), tmp_path / "a.pose")
    assert report.notes == ["1 videos have a pose without visibility: its confidence is 1"]
    again = store_of(tmp_path / "a.pose", keep="keypoints")
    face = PART_SLICES["face"].stop  # points that the list names twice differ here
    np.testing.assert_allclose(
        again["keypoints"][:, face:], keypoint_rows(5, 1).values[:, face:], rtol=2e-7
    )


@pytest.mark.parametrize("version", [0.1, 0.0])
def test_older_versions_are_read(tmp_path: Path, version: float) -> None:
    path = as_version(
        random_pose(tmp_path / "new.pose", 6, seed=3),
        version,
        tmp_path / "a.pose",
    )
    document = PoseImport().open(path)
    assert [("several people" in note) for note in document.notes if "version" in note] == (
        [True] if version == 0 else []
    )
    PoseExport().export(store_of(path), tmp_path / "b.pose")
    old, new = Pose.read(path.read_bytes()), Pose.read((tmp_path / "b.pose").read_bytes())
    np.testing.assert_array_equal(np.float32(old.body.data.data), new.body.data.data)
    np.testing.assert_array_equal(np.float32(old.body.confidence), new.body.confidence)
    assert describe(old.header.components) == describe(new.header.components)
    assert old.body.fps == new.body.fps


# -- what is read ----------------------------------------------------------------------------------


def test_confidences_on_another_scale_are_no_visibility_and_are_told(tmp_path: Path) -> None:
    values, confidence = np.ones((2, 1, 474, 3)), np.ones((2, 1, 474))
    confidence[0, 0, 0], confidence[1, 0, 0] = 95, 1.00001  # LEFT_WRIST
    path = write(tmp_path / "a.pose", values, confidence)
    report = import_file(path, tmp_path / "a.kps", "pose")
    store = kpstore.open(tmp_path / "a.kps")
    assert verify(store).problems == []
    visibility = store["keypoints_visibility"][:, 15]
    assert np.isnan(visibility[0])
    assert visibility[1] == 1
    assert store["pose_points_confidence"][0, 0] == 95
    assert any("1 confidences of the pose are not between 0 and 1" in note for note in report.notes)


def test_points_are_found_by_name(tmp_path: Path) -> None:
    values = np.zeros((2, 1, 474, 3))
    values[0, 0, 0] = 100, 25, -0.5  # LEFT_WRIST, the first point of this file
    values[0, 0, 2 + 338] = 20, 10, 3  # mesh point 338 is the second of the list
    confidence = np.zeros((2, 1, 474))
    confidence[0, 0, 0], confidence[0, 0, 2:470] = 0.75, 1
    store = store_of(write(tmp_path / "a.pose", values, confidence))
    video = store.video("a")
    assert (video.fps, video.width, video.height, video.image_paths[1]) == (
        25.0,
        200,
        100,
        "a.pose#1",
    )
    wrist = 110 + 15
    assert video["keypoints"][0, wrist].tolist() == [0.5, 0.25, -0.5]
    np.testing.assert_allclose(video["keypoints"][0, 1], [0.1, 0.1, 3])
    assert video["keypoints_detected"].tolist() == [[True, False, False, True], [False] * 4]
    assert video["keypoints_visibility"][0, 15] == 0.75
    assert video["keypoints_visibility"][0, 0] == 0  # NOSE: in the file, but with confidence 0
    assert np.isnan(video["keypoints"][1]).all()
    assert np.isnan(video["keypoints"][0, 68:110]).all()
    labels = store.feature("pose_points").labels["pose_points_point"]
    assert (labels[0], labels[1 + 339], labels[-1]) == (
        "POSE_LANDMARKS.LEFT_WRIST",
        "FACE_LANDMARKS.338",
        "POSE_WORLD_LANDMARKS.NOSE",
    )


def test_means_of_points_are_taken(tmp_path: Path) -> None:
    face_list = FaceList("means", ((5, 6), *range(67)))
    values, confidence = np.ones((1, 1, 474, 3)), np.ones((1, 1, 474))
    values[0, 0, 2 + 5], values[0, 0, 2 + 6] = (100, 0, 0), (50, 50, 1)
    store = store_of(write(tmp_path / "a.pose", values, confidence), face_list=face_list)
    assert store["keypoints"][0, 0].tolist() == [0.375, 0.25, 0.5]


def test_parts_of_components_are_said(tmp_path: Path) -> None:
    notes = PoseImport().open(random_pose(tmp_path / "a.pose", 1)).notes
    assert notes == [
        "31 of 33 points of pose are not in 1 of 1 files, and NaN in keypoints",
        "18 of 21 points of right_hand are not in 1 of 1 files, and NaN in keypoints",
    ]


def test_other_points_are_kept_alone(tmp_path: Path) -> None:
    path = random_pose(
        tmp_path / "a.pose", 3, components=[component("pose_keypoints_2d", ["Nose", "Neck"], "XYC")]
    )
    store = store_of(path)
    assert sorted(store.features) == ["pose_points", "pose_points_header"]
    with pytest.raises(InvalidError, match=r"a\.pose has no points of FACE_LANDMARKS.*--keep all"):
        PoseImport(keep="keypoints").open(path)
    random_pose(tmp_path / "b.pose", 2)
    document = PoseImport(keep="keypoints").open(tmp_path)
    assert f"{path}: no keypoints, as it has pose_keypoints_2d (2 XYC)" in document.notes
    assert [sorted(video.rows) for video in document.videos()] == [[], ["keypoints"]]


def test_files_of_other_components_are_told_apart(tmp_path: Path) -> None:
    random_pose(tmp_path / "in" / "a.pose", 3)
    other = random_pose(tmp_path / "in" / "b.pose", 2, components=HOLISTIC[:3])
    with pytest.raises(
        InvalidError, match=r"b\.pose has POSE_LANDMARKS \(2 XYZC\).*but .*a\.pose has .*--feature"
    ):
        PoseImport().open(tmp_path / "in")
    assert store_of(tmp_path / "in", keep="keypoints").states("keypoints").tolist() == [1, 1]
    store = store_of(tmp_path / "in" / "a.pose")
    with pytest.raises(MismatchError, match="pose_points"):
        store_of(other, store.location)
    store = store_of(
        other, store_of(tmp_path / "in" / "a.pose", keep="keypoints").location, feature="few"
    )
    assert sorted(store.features) == ["few", "few_header", "keypoints"]
    PoseExport().export(store, tmp_path / "out")
    assert (tmp_path / "out" / "b.pose").read_bytes() == other.read_bytes()
    assert [
        c.name for c in Pose.read((tmp_path / "out" / "a.pose").read_bytes()).header.components
    ][1:] == [
        "FACE_LANDMARKS",
        "LEFT_HAND_LANDMARKS",
        "RIGHT_HAND_LANDMARKS",
    ]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-4], "bytes follow the header, but 3 frames"),
        (lambda data: data + b"\0", "the file is torn"),
        (lambda data: data[:50], "no .pose file, or only a part of one"),
        (lambda data: b"", "no .pose file"),
        (lambda data: struct.pack("<f", 0.3) + data[4:], "version 0.3, but pose-format reads"),
        (lambda data: b"\x89PNG" + data[4:], "version"),
        (lambda data: struct.pack("<f", 0.1) + data[4:], "bytes follow the header"),
    ],
)
def test_torn_files_are_one_line(tmp_path: Path, spoil: Any, message: str) -> None:
    random_pose(tmp_path / "in" / "a.pose", 3)
    torn = tmp_path / "in" / "z.pose"
    torn.write_bytes(spoil((tmp_path / "in" / "a.pose").read_bytes()))
    location = tmp_path / "s.kps"
    with pytest.raises(InvalidError, match=message) as error:
        store_of(tmp_path / "in", str(location))
    assert "z.pose" in str(error.value)
    assert "\n" not in str(error.value)
    assert not location.exists()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        PoseImport().open(tmp_path / "x")
    with pytest.raises(NotFoundError, match=r"no \.pose file in"):
        PoseImport().open(tmp_path)
    with pytest.raises(NotFoundError, match="'mine' not found; there are: ibug, phoenix"):
        PoseImport(face_list="mine")


def test_files_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    path = random_pose(tmp_path / "in" / "a.pose", 1)
    assert POSE.recognises(path)
    assert POSE.recognises(tmp_path)
    (tmp_path / "b.pose").write_bytes(b"pk")
    (tmp_path / "c.pose").write_bytes(struct.pack("<f", float("nan")))
    assert not any(
        POSE.recognises(tmp_path / name) for name in ("b.pose", "c.pose", "nothing.pose")
    )


# -- what is written -------------------------------------------------------------------------------


def small_store(**video: Any) -> kpstore.Store:
    store = kpstore.create(memory_location())
    with store.transaction("fill") as tx:
        tx.add_videos([VideoRecord(**{"id": "a", "split": "", "frame_paths": ("1", "2"), **video})])
        tx.add_feature(keypoints_spec())
        tx.write("keypoints", video.get("id", "a"), keypoint_rows(2, 1), failed_frames={1: "torn"})
    return store.at()


def test_unknown_size_and_rate(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"'a' has no frame rate.*--fps 25"):
        PoseExport().export(small_store(), tmp_path / "a.pose")
    assert list(tmp_path.iterdir()) == []
    report = PoseExport(fps=12.5).export(small_store(), tmp_path / "a.pose")
    assert any("no frame size: the header says 1 x 1" in note for note in report.notes)
    assert any(note.startswith("1 frames failed or are pending") for note in report.notes)
    pose = Pose.read((tmp_path / "a.pose").read_bytes())
    assert (pose.body.fps, pose.header.dimensions.width) == (12.5, 1)
    assert not pose.body.confidence[1].any()
    assert not pose.body.data.data[1].any()


def test_nothing_of_others_is_touched(tmp_path: Path) -> None:
    store = small_store(fps=25)
    (tmp_path / "mine").write_text("!")
    PoseExport().export(store, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pose", "mine"]
    with pytest.raises(ExistsError, match=r"a\.pose exists? already"):
        PoseExport().export(store, tmp_path)
    PoseExport().export(store, tmp_path, overwrite=True)
    with pytest.raises(ExistsError, match="mine exists already and is not a folder"):
        PoseExport().export(store, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine").read_text() == "!"


def test_ids_never_lead_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="it would lead elsewhere"):
        PoseExport().export(small_store(id="../a", fps=25), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_one_file_holds_one_video(tmp_path: Path) -> None:
    random_pose(tmp_path / "in" / "a.pose", 2)
    random_pose(tmp_path / "in" / "b.pose", 2)
    with pytest.raises(InvalidError, match="can hold one video, but there are 2"):
        PoseExport().export(store_of(tmp_path / "in"), tmp_path / "x.pose")


def test_features_without_names_are_refused(tmp_path: Path) -> None:
    random_pose(tmp_path / "a.pose", 2)
    with pytest.raises(
        InvalidError, match=r"'pose_points_header'.*has no points that .pose files have names for"
    ):
        PoseExport(feature="pose_points_header").export(
            store_of(tmp_path / "a.pose"), tmp_path / "out"
        )


def test_files_that_begin_with_a_dot_are_left_out(tmp_path: Path) -> None:
    random_pose(tmp_path / "in" / "a.pose", 2)
    (tmp_path / "in" / "._a.pose").write_bytes(b"left by another system")
    document = PoseImport().open(tmp_path / "in")
    assert document.notes[0] == "1 files whose names begin with a dot were left out"
    assert [video.record.id for video in document.videos()] == ["a"]
    (tmp_path / "in" / "a.pose").unlink()
    assert not POSE.recognises(tmp_path / "in")
    with pytest.raises(NotFoundError, match=r"no \.pose file in"):
        PoseImport().open(tmp_path / "in")


def test_videos_larger_than_a_header_can_say_are_refused(tmp_path: Path) -> None:
    store = small_store(width=65_536, height=7, fps=25.0)
    with pytest.raises(
        InvalidError, match=r"65536 x 7 pixels; a \.pose file holds 65535 in each direction"
    ):
        PoseExport().export(store, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    random_pose(tmp_path / "in" / "deep" / "er" / "a.pose", 2)
    store = store_of(tmp_path / "in")
    (tmp_path / "elsewhere" / "er").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for folder in ("out", "link"):
        with pytest.raises(InvalidError, match="deep is a link, which may lead out of"):
            PoseExport().export(store, tmp_path / folder, overwrite=True)
    assert list((tmp_path / "elsewhere" / "er").iterdir()) == []
    (tmp_path / "out" / "deep").unlink()
    PoseExport().export(store, tmp_path / "link")
    assert (tmp_path / "out" / "deep" / "er" / "a.pose").is_file()
