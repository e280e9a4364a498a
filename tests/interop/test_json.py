"""Face features as JSON: into a store and back, to the byte where json.dump wrote them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kpstore
from kpstore.errors import ExistsError, InvalidError, NotFoundError
from kpstore.interop.json import JSON
from kpstore.interop.json.read import FaceJsonImport
from kpstore.interop.json.write import FaceJsonExport, to_text
from kpstore.interop.transfer import ImportReport, import_document
from kpstore.schema.feature import State
from kpstore.store.store import backend_for
from tests.conftest import COSTLY, memory_location
from tests.interop.test_npz import filled

MODEL = "dinov2_tiny"
D = 3


def numbers(rng: np.random.Generator, *shape: int) -> Any:
    return (rng.standard_normal(shape) * 100).astype(np.float32).tolist()


def shared(rng: np.random.Generator, prefix: str = "") -> dict[str, Any]:
    shapes = {"features": (D,), "landmarks_2d": (5, 2), "landmarks_3d": (5, 3), "box": (4,)}
    return {prefix + name: numbers(rng, *shape) for name, shape in shapes.items()}


def person(seed: int, n_frames: int, **more: Any) -> dict[str, Any]:
    """A record as the filter script writes it."""
    rng = np.random.default_rng(seed)
    frames = [
        {
            "image_path": f"ü/{n}.jpg",
            **shared(rng),
            "spherical_angles": numbers(rng, 5),
            "avg_angle": numbers(rng),
        }
        for n in range(n_frames)
    ]
    return {
        "face_image_path": f"faces/{seed}.jpg",
        **shared(rng, "face_"),
        "video_data": frames,
        **more,
        "feature_dim": D,
        "dinov2_model": MODEL,
    }


def two_persons() -> dict[str, Any]:
    counts = {"total_video_images": 9, "valid_video_images": 3}
    return {"Ada ü": person(1, 3, **counts), "../../Ben": person(2, 1, **counts)}


def write(path: Path, persons: Any) -> Path:
    path.write_text(json.dumps(persons, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def import_json(path: Path, **options: Any) -> tuple[kpstore.Store, ImportReport]:
    location = memory_location()
    report = import_document(
        FaceJsonImport(**options).open(path), backend_for(location), source=str(path)
    )
    return kpstore.open(location, mode="a"), report


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
plain = st.none() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | texts
extras = st.dictionaries(
    texts.filter(lambda key: key not in person(0, 0) and key != "video_images" and "\\" not in key),
    st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=3,
    ),
    max_size=2,
)
paths = texts.filter(lambda t: "\\" not in t)
paths_only = st.builds(
    lambda face, images, more: {"face_image_path": face, "video_images": images, **more},
    paths,
    st.lists(paths, max_size=3),
    extras,
)
with_features = st.builds(
    lambda seed, n_frames, more: person(seed, n_frames, **more),
    st.integers(0, 9),
    st.integers(0, 3),
    extras,
)
persons = st.dictionaries(texts, with_features | paths_only, max_size=4)


@COSTLY
@given(persons, st.booleans())
def test_files_come_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any, double: bool
) -> None:
    folder = tmp_path_factory.mktemp("json")
    if double:
        for record in drawn.values():
            for frame in record.get("video_data", ()):
                frame["avg_angle"] = frame["avg_angle"] / 3
    source = write(folder / "in.json", drawn)
    store, _ = import_json(source)
    FaceJsonExport().export(store, folder / "out.json")
    assert (folder / "out.json").read_text(encoding="utf-8") == source.read_text(encoding="utf-8")


@COSTLY
@given(persons)
def test_stores_come_back_equal(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    folder = tmp_path_factory.mktemp("json")
    store, _ = import_json(write(folder / "in.json", drawn), split="train")
    FaceJsonExport().export(store, folder / "out.json")
    again, _ = import_json(folder / "out.json", split="train")
    assert {n: (f.spec, f.provenance) for n, f in again.features.items()} == {
        n: (f.spec, f.provenance) for n, f in store.features.items()
    }
    for array in store.session.names():
        np.testing.assert_array_equal(again[array][:], store[array][:], err_msg=array)


@COSTLY
@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_are_exact(tmp_path_factory: pytest.TempPathFactory, number: float) -> None:
    persons = {"a": person(1, 1)}
    persons["a"]["video_data"][0]["avg_angle"] = number
    store, _ = import_json(write(tmp_path_factory.mktemp("json") / "in.json", persons))
    assert store["avg_angle"].dtype == np.float32
    assert store["avg_angle"][0].tobytes() == np.float32(number).tobytes()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_text_is_as_json_writes_it(value: Any) -> None:
    if (
        "NaN" not in (wanted := json.dumps(value, indent=2, ensure_ascii=False))
        and "Infinity" not in wanted
    ):
        assert to_text(value) == wanted


def test_an_imported_store_trains_faces(tmp_path: Path) -> None:
    source = two_persons()
    store, report = import_json(write(tmp_path / "in.json", source))
    assert (report.videos, report.frames, report.notes) == (2, 4, ())
    view = store.faces(expect_model=MODEL)
    ada = source["Ada ü"]
    sample = view[1]
    np.testing.assert_array_equal(
        sample["input_features"], np.float32(ada["video_data"][1]["features"])
    )
    np.testing.assert_array_equal(
        sample["position_encoding"], np.float32(ada["video_data"][1]["spherical_angles"])
    )
    np.testing.assert_array_equal(sample["target_features"], np.float32(ada["face_features"]))
    assert (view.input, view.target, len(view)) == (MODEL, f"face_{MODEL}", 4)
    assert store.video("../../Ben").annotations["face_image_path"] == "faces/2.jpg"
    assert store["landmarks_3d"].shape == (4, 5, 3)
    assert store["face_box"].shape == (2, 4)


def test_numbers_with_more_digits_are_kept_rounded_or_refused(tmp_path: Path) -> None:
    source = two_persons()
    source["Ada ü"]["video_data"][0]["spherical_angles"][2] = 0.1
    path = write(tmp_path / "in.json", source)
    store, _ = import_json(path)
    assert {n: f.spec.dtype for n, f in store.features.items() if f.spec.dtype == "float64"} == {
        "spherical_angles": "float64"
    }
    assert store["spherical_angles"][0, 2] == 0.1
    rounded, report = import_json(path, precision="single")
    assert rounded["spherical_angles"][0, 2] == np.float32(0.1)
    assert report.notes == ("1 rows of spherical_angles were rounded to float32",)
    many = {"first": person(3, 100), "late": source["Ada ü"]}
    message = "'late', frame 0: spherical_angles needs more digits than float32.*--precision double"
    with pytest.raises(InvalidError, match=message):
        import_json(write(tmp_path / "late.json", many))
    assert import_json(tmp_path / "late.json", precision="double")[0]["box"].dtype == np.float64


def test_frames_that_are_not_whole_are_left_out(tmp_path: Path) -> None:
    persons = {**two_persons(), "Cem": person(3, 2), "Dan": person(4, 1)}
    store, _ = import_json(write(tmp_path / "in.json", persons))
    with store.transaction("break") as tx:
        rows = {name: store[name][:] for name in (MODEL, "spherical_angles")}
        tx.write(MODEL, "Ada ü", rows[MODEL][:3], failed_frames={1: "torn"})
        angles = rows["spherical_angles"][:3]
        angles[2] = np.nan
        tx.write("spherical_angles", "Ada ü", angles)
        tx.reset_states(MODEL, [2])
        tx.fail("box", "Dan", "no face")
    report = FaceJsonExport().export(store.at(), tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["Ada ü", "../../Ben"]
    assert found["Ada ü"]["video_data"] == persons["Ada ü"]["video_data"][:1]
    assert (found["Ada ü"]["total_video_images"], found["Ada ü"]["valid_video_images"]) == (9, 1)
    assert report.files[0].left_out == {"failed": 2, "pending": 2, "empty": 1}
    assert (report.files[0].frames, report.files[0].videos) == (2, 2)
    assert report.notes == ["persons without a frontal face or any frame: 2"]
    with pytest.raises(ExistsError, match=r"out.json exists? already"):
        FaceJsonExport().export(store, tmp_path / "out.json")


def test_paths_only_are_videos_without_features(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.jpg").touch()
    source = {
        "a": {
            "face_image_path": "faces/a.jpg",
            "video_images": ["../../x.jpg", "/abs/y.jpg", "v\\z.jpg"],
        }
    }
    store, report = import_json(write(tmp_path / "in.json", source), base_dir=tmp_path)
    assert (store.features, report.frames) == ({}, 3)
    assert store["image_path"][:].tolist() == ["../../x.jpg", "/abs/y.jpg", "v/z.jpg"]
    assert report.notes == ("1 paths had backslashes, which are now forward slashes",)
    mixed, _ = import_json(write(tmp_path / "mixed.json", {**source, "b": person(1, 1)}))
    assert mixed.states(MODEL).tolist() == [State.PENDING, State.DONE]
    with pytest.raises(
        NotFoundError, match=r"no image of person 'a' is there, such as .*faces/faces/a.jpg"
    ):
        import_json(tmp_path / "in.json", base_dir=tmp_path / "faces")


def test_angles_of_the_generator_are_features(tmp_path: Path) -> None:
    source = two_persons()
    frames = source["Ada ü"]["video_data"]
    frames[0]["euler_angles"], frames[0]["rotation_matrix"] = [1.0, 2.0, 3.0], np.eye(3).tolist()
    frames[1]["euler_angles"], frames[2]["score"] = [4.0, 5.0, 6.0], 0.1
    store, _ = import_json(write(tmp_path / "in.json", source))
    assert store["euler_angles"][:2].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.isnan(store["rotation_matrix"][1:]).all()
    FaceJsonExport().export(store, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == source


def broken(change: str) -> Any:
    source = copy.deepcopy(two_persons())
    ada, frame = source["Ada ü"], source["Ada ü"]["video_data"][1]
    exec(
        change, {"ada": ada, "frame": frame, "source": source}
    )  # the cases below are short lines of this module
    return source


BROKEN = {
    "del frame['box']": "person 'Ada ü', frame 1: no 'box'",
    "del frame['image_path']": "frame 1: no 'image_path'",
    "del ada['face_features']": "person 'Ada ü': no 'face_features'",
    "del ada['video_data']": "person 'Ada ü': no 'video_data'",
    "del ada['feature_dim']": "person 'Ada ü': no 'feature_dim'",
    "del ada['dinov2_model']": "person 'Ada ü': no 'dinov2_model'.*--model",
    "del ada['face_image_path']": "person 'Ada ü': no 'face_image_path'",
    "frame['features'].pop()": (
        "feature_dim 3, dinov2_model 'dinov2_tiny', face_features 3 and .*of frame 1 2"
    ),
    "ada['feature_dim'] = 512": "feature_dim 512, dinov2_model 'dinov2_tiny', face_features 3",
    "ada['dinov2_model'] = 'dinov2_vitb14'": (
        "feature_dim 3, dinov2_model 'dinov2_vitb14' is 768, face_features 3"
    ),
    "source['../../Ben']['dinov2_model'] = 'dinov2_other'": (
        "person '../../Ben' has features of dinov2_other"
    ),
    "frame['landmarks_2d'].pop()": "frame 1: 'landmarks_2d' is 4x2 numbers; 5x2 numbers needed",
    "frame['landmarks_3d'][0].pop()": "frame 1: 'landmarks_3d' is lists of different lengths; 5x3",
    "frame['spherical_angles'][0] = 'x'": "frame 1: 'spherical_angles' is .* 5 numbers needed",
    "frame['avg_angle'] = None": "frame 1: 'avg_angle' is null; a number needed",
    "frame['avg_angle'] = float('nan')": (
        "'Ada ü', frame 1: not JSON from here on: lexical error.*'NaN"
    ),
    "frame['features'] = []": "frame 1: 'features' is ",
    "ada['video_data'][1] = 7": "frame 1: it is 7; a record, {…} is needed",
    "ada['video_data'] = {}": "'video_data' is a record; a list of frames is needed",
    "ada['face_image_path'] = 7": "'face_image_path' is 7; text is needed",
    "source['Ada ü'] = []": "person 'Ada ü': it is a list; a record",
    "source[''] = source.pop('Ada ü')": "person '' has no name",
}


@pytest.mark.parametrize(("change", "message"), BROKEN.items(), ids=BROKEN)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: str, message: str) -> None:
    path = write(tmp_path / "in.json", broken(change))
    with pytest.raises(InvalidError, match=message) as caught:
        import_json(path)
    assert "\n" not in str(caught.value)
    assert "in.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {}, "a": {}}', "person 'a': no"),
        ("[]", "a list found; persons by name"),
        ("7", "7 found; persons by name"),
        ("", "not JSON from here on"),
        ('{"a": ' + "[" * 5000, "person 'a'.*record"),
        ('{"a": {"x": ' + "[" * 5000, "more than 20 deep"),
        ('{"a": {"x": 1, "x": 2}}', "person 'a': 'x' is there twice"),
        ('{"a": {"face_image_path": "\xff"}}', "not JSON from here on"),
    ],
)
def test_what_is_no_such_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidError, match=message) as caught:
        import_json(tmp_path / "in.json")
    assert "\n" not in str(caught.value)


def test_a_person_that_comes_twice_is_named(tmp_path: Path) -> None:
    one = json.dumps(person(1, 1))
    (tmp_path / "in.json").write_text(f'{{"a": {one}, "a": {one}}}')
    with pytest.raises(InvalidError, match="person 'a' is in the file twice"):
        import_json(tmp_path / "in.json")


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=40)
def test_files_cut_anywhere_are_one_line(
    tmp_path_factory: pytest.TempPathFactory, share: float
) -> None:
    path = write(tmp_path_factory.mktemp("json") / "in.json", two_persons())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InvalidError, match=r"in\.json") as caught:
        import_json(path)
    assert "\n" not in str(caught.value)


def test_options_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "in.json", two_persons())
    with pytest.raises(InvalidError, match="made by 'dinov2_tiny', 'dinov2_vits14' was asked for"):
        import_json(path, model="dinov2_vits14")
    with pytest.raises(InvalidError, match="precision='half'"):
        import_json(path, precision="half")
    with pytest.raises(NotFoundError, match="no JSON file of face features at"):
        import_json(tmp_path)
    store, _ = import_json(path)
    with store.transaction("less") as tx:
        tx.remove_feature("box")
    with pytest.raises(NotFoundError, match="lacks box, which the file needs; it has avg_angle"):
        FaceJsonExport().export(store.at(), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_it_is_recognised(tmp_path: Path) -> None:
    assert JSON.recognises(write(tmp_path / "in.json", two_persons()))
    assert not JSON.recognises(write(tmp_path / "x.json", {"a": 1}))
    assert not JSON.recognises(tmp_path)


@pytest.mark.parametrize("number", [2**63, -(2**80), 10**40])
def test_wide_integers_that_are_carried_along_come_back(tmp_path: Path, number: int) -> None:
    persons = two_persons()
    persons["Ada ü"]["video_data"][1]["hash"] = number
    persons["../../Ben"]["seed"] = [number, 0.1, 7]
    source = write(tmp_path / "in.json", persons)
    store, _ = import_json(source)
    FaceJsonExport().export(store.at(), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text("utf-8")) == persons


@pytest.mark.parametrize("wide", [1, 2**70])
def test_numbers_that_no_float_can_be_are_said(tmp_path: Path, wide: int) -> None:
    text = json.dumps({"Ada": {"wide": wide, **person(1, 1), "more": 12345}}).replace(
        "12345", "1e400"
    )
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(
        InvalidError, match="person 'Ada': a number is larger than a float can be"
    ) as caught:
        import_json(tmp_path / "in.json")
    assert "\n" not in str(caught.value)


def test_stores_without_faces_are_refused(tmp_path: Path, memory_store: kpstore.Store) -> None:
    FaceJsonExport().export(memory_store, tmp_path / "empty.json")
    assert (tmp_path / "empty.json").read_text() == "{}"
    with pytest.raises(NotFoundError, match=r"has no face features to write: .* it has keypoints"):
        FaceJsonExport().export(filled(memory_store), tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
