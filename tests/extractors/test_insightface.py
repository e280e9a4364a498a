"""Faces through InsightFace's FaceAnalysis and transformers' DINOv2, with tiny models."""

from __future__ import annotations

import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kpstore import plugins
from kpstore.errors import (
    ExtractorError,
    InvalidError,
    KpstoreError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.extractors import insightface_models
from kpstore.extractors.dinov2 import Dinov2Extractor
from kpstore.extractors.dinov2_models import Architecture, register_model
from kpstore.extractors.face_geometry import FacePoints, landmarks_to_3d, spherical_angles
from kpstore.extractors.insightface import Face, FacesExtractor, choose_face
from kpstore.extractors.registry import make_extractor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
insightface_app = pytest.importorskip("insightface.app")
write_pack = pytest.importorskip("tests.extractors.tiny_insightface").write_pack

MODEL = "dinov2_tiny"
SIZE = 128
register_model(MODEL, Architecture(32, 2, 2))
if "faces" not in plugins.names(
    "kpstore.extractors"
):  # a checkout that is newer than what is installed
    plugins.register("kpstore.extractors", "faces", FacesExtractor)

FRAME = (
    MODEL,
    "landmarks_2d",
    "landmarks_3d",
    "box",
    "detection_score",
    "spherical_angles",
    "avg_angle",
)
FACE = tuple(f"face_{name}" for name in FRAME[:5])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pack ``tiny`` and weights of a small DINOv2, ``dinov2``."""
    folder = tmp_path_factory.mktemp("models")
    write_pack(folder / "tiny")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.Dinov2Model(config).save_pretrained(folder / "dinov2")
    transformers.utils.logging.enable_progress_bar()
    return folder


def faces(home: Path, **options: Any) -> FacesExtractor:
    given = {
        "model_pack": home / "tiny",
        "weights": home / "dinov2",
        "model": MODEL,
        "det_size": SIZE,
    }
    return FacesExtractor(**(given | options))


@pytest.fixture(scope="module")
def shared(home: Path) -> FacesExtractor:
    """One that is open already; tests that use it start a video of their own."""
    extractor = faces(home)
    extractor.open()
    return extractor


def picture(*squares: tuple[int, int, int, int], size: int = SIZE) -> np.ndarray:
    """A black picture with cells (row, column) of (red, green): a face's size and score."""
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[..., 2] = 77  # blue changes nothing, unless it is taken for red
    cell = size * 32 // SIZE
    for row, column, red, green in squares:
        image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell, :2] = red, green
    return image


def black(size: int = SIZE) -> np.ndarray:
    return np.zeros((size, size, 3), dtype=np.uint8)


FRONTAL = picture((2, 2, 40, 240))


# -- numbers ---------------------------------------------------------------------------------------


def test_numbers_are_those_of_face_analysis_and_of_dinov2(
    home: Path, shared: FacesExtractor
) -> None:
    app = insightface_app.FaceAnalysis(
        name=str(home / "tiny"), allowed_modules=["detection"], providers=["CPUExecutionProvider"]
    )
    app.prepare(ctx_id=-1, det_thresh=0.5, det_size=(SIZE, SIZE))
    dinov2 = Dinov2Extractor(model=MODEL, weights=home / "dinov2")
    dinov2.open()
    frames = [
        picture((1, 2, 90, 200)),
        picture((2, 1, 0, 250)),
        picture((1, 1, 200, 180), size=2 * SIZE),
    ]
    found = [app.get(np.ascontiguousarray(image[..., ::-1])) for image in [FRONTAL, *frames]]
    assert [len(each) for each in found] == [1] * 4
    reference, *others = [FacePoints(each[0].kps, each[0].bbox) for each in found]

    of_video = shared.start_video(FRONTAL)
    got = shared.extract(frames)
    assert got.failed == {}
    assert tuple(of_video) == FACE
    assert tuple(got.rows) == FRAME
    np.testing.assert_array_equal(of_video["face_landmarks_2d"].values[0], reference.landmarks)
    np.testing.assert_array_equal(of_video["face_box"].values[0], reference.box)
    np.testing.assert_array_equal(
        of_video[f"face_{MODEL}"].values, dinov2.extract([FRONTAL]).rows[MODEL].values
    )
    np.testing.assert_array_equal(got.rows[MODEL].values, dinov2.extract(frames).rows[MODEL].values)
    for number, (face, (raw,)) in enumerate(zip(others, found[1:], strict=True)):
        angles = spherical_angles(reference, face)
        wanted = (
            face.landmarks,
            landmarks_to_3d(face),
            face.box,
            raw.det_score,
            angles,
            angles.mean(),
        )
        for name, value in zip(FRAME[1:], wanted, strict=True):
            np.testing.assert_array_equal(
                got.rows[name].values[number], np.float32(value), err_msg=name
            )
            assert got.rows[name].values.dtype == np.float32


def test_boxes_are_where_the_squares_are(shared: FacesExtractor) -> None:
    """Written down by hand: red and blue taken for each other would give other boxes.

    A larger picture larger ones.
    """
    shared.start_video(FRONTAL)
    frames = [
        picture((2, 1, 0, 255)),
        picture((2, 1, 255, 255)),
        picture((2, 1, 0, 255), size=2 * SIZE),
    ]
    boxes = shared.extract(frames).rows["box"].values
    np.testing.assert_allclose(
        boxes, [[24, 56, 40, 72], [0, 32, 64, 96], [48, 112, 80, 144]], atol=1e-3
    )


def test_the_reference_is_not_turned_from_itself(home: Path, shared: FacesExtractor) -> None:
    shared.start_video(FRONTAL)
    rows = shared.extract([FRONTAL]).rows
    assert (rows["spherical_angles"].values == 0).all()
    assert rows["avg_angle"].values.tolist() == [0]


def test_angles_are_measured_from_the_last_reference(shared: FacesExtractor) -> None:
    frame = picture((1, 2, 0, 240))
    angles = []
    for reference in (frame, FRONTAL, frame):
        shared.start_video(reference)
        angles.append(shared.extract([frame]).rows["spherical_angles"].values)
    np.testing.assert_array_equal(angles[0], angles[2])
    assert (angles[0] == 0).all()


def test_the_scripts_formula_takes_the_first_face_and_raw_heights(home: Path) -> None:
    extractor = faces(home, formula="json")
    assert extractor.face == "first"
    assert faces(home, formula="json", face="largest").face == "largest"
    extractor.open()
    extractor.start_video(FRONTAL)
    rows = extractor.extract(
        [picture((2, 2, 40, 240)), picture((2, 2, 40, 240), size=2 * SIZE)]
    ).rows
    # The same face in a picture twice as large lies lower down by raw pixels; its angle is 0 up to
    # the scripts' 1e-8.
    angles = rows["spherical_angles"].values
    assert (angles[0] == 0).all()
    np.testing.assert_allclose(angles[1], -0.0115, atol=1e-3)


def test_a_batch_is_as_its_images_alone(shared: FacesExtractor) -> None:
    shared.start_video(FRONTAL)
    frames = [
        picture((1, 2, 90, 200)),
        black(),
        picture((2, 1, 0, 250)),
        picture((1, 1, 200, 180), size=200),
    ]
    together = shared.extract(frames)
    for number, frame in enumerate(frames):
        alone = shared.extract([frame])
        assert (number in together.failed) == (0 in alone.failed)
        for name in FRAME:
            one, all_ = alone.rows[name].values[0], together.rows[name].values[number]
            np.testing.assert_allclose(one, all_, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("choice", "column"), [("largest", 3), ("best", 1), ("first", 1)])
def test_of_two_faces_one_is_chosen_as_stated(home: Path, choice: Any, column: int) -> None:
    """On the left a small sure face, on the right a large one that is less sure.

    ``first`` is InsightFace's order.
    """
    extractor = faces(home, face=choice)
    extractor.open()
    two = picture((2, 1, 0, 250), (2, 3, 120, 180))
    assert extractor.start_video(two)["face_box"].values[0, [0, 2]].mean() == pytest.approx(
        column * 32
    )
    got = extractor.extract([two]).rows
    assert got["box"].values[0, [0, 2]].mean() == pytest.approx(column * 32)
    assert got["detection_score"].values[0] == pytest.approx(
        (180 if choice == "largest" else 250) / 255, abs=1e-6
    )


def a_face(score: float, *box: float) -> Face:
    return Face(FacePoints(np.zeros((5, 2), np.float32), np.array(box, np.float32)), score)


def test_choices_go_by_area_score_and_order_and_pass_over_unusable_faces() -> None:
    flat, small, large, twin = (
        a_face(1, 0, 0, 0, 9),
        a_face(0.7, 0, 0, 2, 9),
        a_face(0.6, 0, 0, 5, 5),
        a_face(0.8, 0, 0, 5, 5),
    )
    found = [flat, small, large, twin]
    assert choose_face(found, "first") is small
    assert choose_face(found, "largest") is large  # the first of two that are equal
    assert choose_face(found, "best") is twin
    with pytest.raises(InvalidError, match="no usable face found: its box is 0 x 9 pixels"):
        choose_face([flat], "first")


# -- images and references without a face ----------------------------------------------------------


def test_images_without_a_face_fail_with_the_reason_and_dinov2_is_not_run(
    shared: FacesExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.start_video(FRONTAL)
    seen: list[int] = []
    extract = shared._dinov2.extract
    monkeypatch.setattr(
        shared._dinov2, "extract", lambda images: seen.append(len(images)) or extract(images)
    )
    thin = np.zeros((SIZE * 2, 1, 3), np.uint8)
    got = shared.extract([black(), picture((2, 1, 0, 250)), thin])
    assert got.failed == {
        0: "no face found",
        2: "no face found: 1 x 256 pixels are too narrow to look for one",
    }
    assert seen == [1]
    for spec in shared.specs[: len(FRAME)]:
        rows = got.rows[spec.name].check(spec).values.reshape(3, -1)
        assert np.isnan(rows[[0, 2]]).all()
        assert np.isfinite(rows[1]).all()
    assert shared.extract([black()]).failed == {0: "no face found"}
    assert seen == [1]
    assert shared.extract([]).failed == {}


@pytest.mark.parametrize(
    ("reach", "reason"),
    [(0.0, "its box is 0 x 0 pixels"), (float("nan"), "its box or landmarks are not finite")],
)
def test_faces_without_usable_numbers_fail(
    home: Path, tmp_path: Path, shared: FacesExtractor, reach: float, reason: str
) -> None:
    extractor = faces(home, model_pack=write_pack(tmp_path / "odd", reach=reach))
    extractor.open()
    with pytest.raises(InvalidError, match=f"no usable face found: {reason}"):
        extractor.start_video(FRONTAL)
    shared.start_video(FRONTAL)
    extractor._reference = shared._reference
    got = extractor.extract([FRONTAL])
    assert list(got.failed) == [0]
    assert reason in got.failed[0]


def test_a_reference_without_a_face_and_none_at_all(shared: FacesExtractor) -> None:
    shared.start_video(FRONTAL)
    with pytest.raises(
        InvalidError, match=r"no frontal reference picture.*give one picture per person"
    ):
        shared.start_video()
    with pytest.raises(
        InvalidError,
        match=r"no usable face \(no face found; 128 x 128 pixels, det_size 128, det_th",
    ):
        shared.start_video(black())
    with pytest.raises(InvalidError, match="start_video"):
        shared.extract([FRONTAL])  # not measured from the video before


def test_what_is_no_image_is_refused(shared: FacesExtractor) -> None:
    shared.start_video(FRONTAL)
    with pytest.raises(InvalidError, match=r"\(128, 128\)"):
        shared.extract([FRONTAL, FRONTAL[..., 0]])
    with pytest.raises(InvalidError, match=r"float"):
        shared.start_video(FRONTAL.astype(float))


def test_a_detector_that_fails_ends_the_run(
    shared: FacesExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.start_video(FRONTAL)

    def fail(image: np.ndarray) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(shared._app, "get", fail)
    with pytest.raises(
        ExtractorError, match=r"\AInsightFace's detector fails: RuntimeError: out of memory\Z"
    ):
        shared.extract([FRONTAL])


def test_closed_or_unopened(home: Path) -> None:
    extractor = faces(home)
    for use in (lambda: extractor.start_video(FRONTAL), lambda: extractor.extract([FRONTAL])):
        with pytest.raises(InvalidError, match="open"):
            use()
    extractor.open()
    extractor.start_video(FRONTAL)
    extractor.close()
    with pytest.raises(InvalidError, match="open"):
        extractor.extract([FRONTAL])


# -- what is recorded ------------------------------------------------------------------------------


def test_features_are_those_of_the_json(home: Path) -> None:
    specs = {spec.name: spec for spec in faces(home, dtype="float16").specs}
    assert tuple(specs) == (*FRAME, *FACE)
    assert {name: spec.axis for name, spec in specs.items()} == dict.fromkeys(
        FRAME, "frame"
    ) | dict.fromkeys(FACE, "video")
    assert specs["spherical_angles"].units == specs["avg_angle"].units == "degree"
    assert specs["avg_angle"].shape == ()
    assert {name for name, spec in specs.items() if spec.dtype == "float16"} == {
        MODEL,
        f"face_{MODEL}",
    }
    assert specs["landmarks_2d"].labels["landmark"][2] == "nose"


def test_provenance_says_everything_that_changes_the_numbers(home: Path) -> None:
    made = faces(home, det_thresh=0.25, formula="json").provenance
    assert set(made) == {*FRAME, *FACE}
    dinov2 = Dinov2Extractor(model=MODEL, weights=home / "dinov2").provenance[MODEL]
    assert made[MODEL] == made[f"face_{MODEL}"] == dinov2
    told = made["avg_angle"]
    assert (told["extractor"], told["model"]) == ("insightface", "tiny")
    assert told["parameters"] == {
        "face": "first",
        "det_size": [128, 128],
        "det_thresh": 0.25,
        "formula": "json",
    }
    assert set(told["weights"]) == {"det_tiny.onnx"}
    assert len(told["weights"]["det_tiny.onnx"]) == 64
    assert set(told["libraries"]) == {"insightface", "onnxruntime", "opencv-python"}


def test_a_pickle_opens_elsewhere_and_gives_the_same(shared: FacesExtractor) -> None:
    assert shared.provenance
    shared.start_video(FRONTAL)
    there = pickle.loads(pickle.dumps(shared))
    there.open()
    frames = [picture((1, 2, 90, 200)), black()]
    there.start_video(FRONTAL)
    for name, rows in there.extract(frames).rows.items():
        np.testing.assert_array_equal(rows.values, shared.extract(frames).rows[name].values)


def test_another_detector_than_the_run_began_with_is_refused(home: Path, tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack")
    extractor = faces(home, model_pack=pack)
    assert extractor.provenance
    shutil.rmtree(pack)
    write_pack(pack, reach=5.0)
    with pytest.raises(InvalidError, match="is not the same here as where the run began"):
        extractor.open()


def test_nothing_is_printed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    extractor = make_extractor(
        "faces", model_pack=str(home / "tiny"), weights=home / "dinov2", model=MODEL, det_size=128
    )
    extractor.open("cpu")
    extractor.start_video(FRONTAL)
    extractor.extract([FRONTAL])
    assert capfd.readouterr() == ("", "")


# -- options, packs, devices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"face": "biggest"}, "face='biggest' is not one of largest, best, first"),
        ({"formula": "old"}, "formula='old' is not one of corrected, json"),
        ({"det_size": 0}, "det_size=0 is not a multiple of 32"),
        ({"det_size": 650}, "det_size=650"),
        ({"det_size": None}, "det_size=None"),
        ({"det_size": (640, 640)}, r"det_size=\(640, 640\)"),
        ({"det_thresh": 1.5}, "det_thresh=1.5 is not between 0 and 1"),
        ({"det_thresh": float("nan")}, "det_thresh=nan"),
        ({"model_pack": ""}, "model_pack=''"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"model": "dinov2_vitx"}, "DINOv2 model 'dinov2_vitx' not found"),
        ({"det_size": 1, "face": "x"}, "face='x'.*det_size=1"),
    ],
)
def test_options_are_checked_when_given(options: dict[str, Any], words: str) -> None:
    with pytest.raises(KpstoreError, match=words) as caught:
        FacesExtractor(**options)
    assert "\n" not in str(caught.value)


def no_network(*args: Any, **kwargs: Any) -> None:
    raise socket.gaierror(-2, "Name or service not known")


def test_a_pack_that_is_not_there_and_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(
        NotFoundError,
        match=r"model pack 'buffalo_l' is not in .*insightface/models.*model_pack=PATH",
    ) as e:
        insightface_models.find_pack("buffalo_l")
    assert "\n" not in str(e.value)
    assert list((tmp_path / ".insightface" / "models").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def release(
    monkeypatch: pytest.MonkeyPatch, fill: Callable[[zipfile.ZipFile], None], *, cut: int = 0
) -> None:
    """Let InsightFace's own download get a zip that the test makes."""
    storage = pytest.importorskip("insightface.utils.storage")

    def give(url: str, path: str, overwrite: bool) -> str:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            fill(file)
        Path(path).write_bytes(Path(path).read_bytes()[: -cut or None])
        print("Downloading", url)
        return path

    monkeypatch.setattr(storage, "download_file", give)


@pytest.mark.parametrize("inside", ["", "tiny2/"])
def test_a_pack_is_loaded_once_by_insightface_itself(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    inside: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    release(
        monkeypatch,
        lambda file: file.write(home / "tiny" / "det_tiny.onnx", f"{inside}det_tiny.onnx"),
    )
    found = insightface_models.find_pack("tiny2")
    assert found.folder == tmp_path / ".insightface" / "models" / "tiny2"
    assert [path.name for path in found.folder.parent.iterdir()] == ["tiny2"]
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert insightface_models.find_pack("tiny2") == found
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "cut"), [("det_tiny.onnx", 30), ("a_recognition.onnx", 0)])
def test_a_pack_that_came_in_part_is_not_kept(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cut: int
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    release(monkeypatch, lambda file: file.write(home / "tiny" / name, name), cut=cut)
    with pytest.raises(NotFoundError, match="model pack 'tiny2' is not in"):
        insightface_models.find_pack("tiny2")
    assert list((tmp_path / ".insightface" / "models").iterdir()) == []


def remove_detector(pack: Path) -> None:
    (pack / "det_tiny.onnx").unlink()


def cut_detector(pack: Path) -> None:
    whole = (pack / "det_tiny.onnx").read_bytes()
    (pack / "det_tiny.onnx").write_bytes(whole[: len(whole) // 2])


def empty(pack: Path) -> None:
    for file in pack.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (remove_detector, "holds a_recognition.onnx, and none of them is one.*remove the folder"),
        (cut_detector, "det_tiny.onnx is not a complete ONNX file.*run again"),
        (empty, "holds no ONNX file"),
        (shutil.rmtree, "no model pack at .*give a folder of ONNX files"),
    ],
)
def test_packs_that_are_not_whole(
    home: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(write_pack(tmp_path / "pack"))
    with pytest.raises(KpstoreError, match=words) as caught:
        faces(home, model_pack=tmp_path / "pack").open()
    assert "\n" not in str(caught.value)


def test_detectors_that_do_not_fit(home: Path, tmp_path: Path) -> None:
    fixed = write_pack(tmp_path / "fixed", size=96)
    with pytest.raises(
        InvalidError,
        match=r"takes 96 x 96 pixels only, det_size=128 was asked for; use det_size=96",
    ):
        faces(home, model_pack=fixed).open()
    faces(home, model_pack=fixed, det_size=96).open()
    with pytest.raises(InvalidError, match="finds faces but no landmarks"):
        faces(home, model_pack=write_pack(tmp_path / "boxes", landmarks=False)).open()


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (
            "cuda:0",
            "'cuda:0' was asked for, but this onnxruntime .* without CUDA: .*pip install "
            "onnxruntime-gpu",
        ),
        ("cuda", "onnxruntime-gpu"),
        ("tpu", "device 'tpu': the recipe 'faces' runs on cpu and cuda"),
    ],
)
def test_devices_that_are_not_there(home: Path, device: str, words: str) -> None:
    import onnxruntime

    if device != "tpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UnsupportedError, match=words):
        faces(home).open(device)


def test_a_gpu_that_onnxruntime_cannot_use_after_all_is_no_cpu(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime goes on with the CPU if CUDA's libraries do not load.

    Nobody would know but by the speed.
    """
    monkeypatch.setattr(insightface_models, "_check_provider", lambda *args: None)
    with pytest.raises(UnsupportedError, match="device 'cuda:0': onnxruntime cannot use it"):
        faces(home).open("cuda:0")


def test_a_library_that_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("kpstore.extractors.libraries.version", missing)
    with pytest.raises(
        MissingExtraError,
        match=r'insightface is not installed.*pip install "kpstore\[insightface\]"',
    ):
        _ = faces(home).provenance


def test_the_photograph_that_comes_with_insightface_goes_through(home: Path) -> None:
    """Plumbing only: tiny models see whatever they see in it."""
    import cv2

    package = Path(insightface_app.__file__).parents[1]
    photo = package / "data" / "images" / "t1.jpg"
    if not photo.is_file():
        pytest.skip("this InsightFace has no sample photograph")
    image = np.ascontiguousarray(cv2.imread(str(photo))[..., ::-1])
    extractor = faces(home, det_thresh=0.3)
    extractor.open()
    extractor.start_video(FRONTAL)
    got = extractor.extract([image, picture((2, 1, 0, 250))])
    assert 1 not in got.failed
    assert np.isfinite(got.rows["box"].values[0]).all() != (0 in got.failed)
