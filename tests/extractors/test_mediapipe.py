"""Both MediaPipe recipes, on real pictures."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError, UnsupportedError
from kpstore.extractors import mediapipe as shared
from kpstore.extractors.handedness import Hand, assign_hands
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.mediapipe import load_face_list, quiet_start, select_face
from kpstore.extractors.parts import PartsExtractor
from kpstore.schema.layout import FACE_LISTS, FaceList

pytest.importorskip("mediapipe")
RECIPES = [HolisticExtractor, PartsExtractor]
BLACK = np.zeros((120, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def portrait():
    data = pytest.importorskip("skimage.data")
    return np.asarray(Image.fromarray(data.astronaut()).resize((210, 260)))


@pytest.fixture(scope="module")
def panned(portrait):
    """Three frames of the portrait moving to the side."""
    return [np.ascontiguousarray(np.roll(portrait, 4 * shift, axis=1)) for shift in range(3)]


@pytest.fixture(scope="module")
def opened():
    """One opened extractor for each set of options, which starts a video at each request."""
    extractors = {}

    def get(recipe, **options):
        key = (recipe, *options.items())
        if key not in extractors:
            extractors[key] = recipe(**options)
            extractors[key].open()
        extractors[key].start_video()
        return extractors[key]

    yield get
    for extractor in extractors.values():
        extractor.close()


def values(extractor, images):
    return np.concatenate([extractor.rows([image]).values for image in images])


@pytest.mark.parametrize("recipe", RECIPES)
def test_portrait_has_face_and_pose_but_no_hands(opened, portrait, recipe):
    extractor = opened(recipe)
    rows = extractor.rows([portrait]).check(extractor.spec)
    assert rows.companions["detected"].tolist() == [[True, False, False, True]]
    assert np.isfinite(rows.values[0, :68]).all()
    assert np.isnan(rows.values[0, 68:110]).all()
    assert rows.values.dtype == np.float32
    visibility = rows.companions["visibility"][0]
    assert ((visibility >= 0) & (visibility <= 1)).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_left_is_the_subjects_left(opened, portrait, recipe):
    row = opened(recipe).rows([portrait]).values[0]
    right_shoulder, left_shoulder = row[110 + 12, 0], row[110 + 11, 0]
    right_eye, left_eye = row[36:42, 0].mean(), row[42:48, 0].mean()
    assert right_shoulder < left_shoulder
    assert right_eye < left_eye


@pytest.mark.parametrize("recipe", RECIPES)
def test_black_frame_is_all_missing(opened, recipe):
    rows = opened(recipe).rows([BLACK])
    assert np.isnan(rows.values).all()
    assert not rows.companions["detected"].any()
    assert np.isnan(rows.companions["visibility"]).all()


@pytest.mark.parametrize("mode", ["image", "video"])
def test_holistic_equals_a_plain_loop_and_every_video_starts_afresh(opened, panned, mode):
    with (
        shared.quiet_calls(),
        shared.load_solutions().holistic.Holistic(static_image_mode=mode == "image") as plain,
    ):
        results = [plain.process(image) for image in panned]
        mesh = np.array(
            [[(p.x, p.y, p.z) for p in r.face_landmarks.landmark] for r in results],
            dtype=np.float32,
        )
        pose = np.array(
            [[(p.x, p.y, p.z) for p in r.pose_landmarks.landmark] for r in results],
            dtype=np.float32,
        )
    extractor = opened(HolisticExtractor, mode=mode)
    extractor.rows(panned[::-1])
    extractor.start_video()
    rows = extractor.rows(panned)
    np.testing.assert_array_equal(rows.values[:, :68], mesh[:, FACE_LISTS["phoenix"].points])
    np.testing.assert_array_equal(rows.values[:, 110:], pose)
    extractor.start_video()
    np.testing.assert_array_equal(values(extractor, panned), rows.values)


def test_plain_holistic_depends_on_the_order_and_independent_frames_do_not(opened, panned):
    stateful, independent = (
        opened(HolisticExtractor),
        opened(HolisticExtractor, independent_frames=True),
    )
    assert not np.array_equal(
        values(stateful, panned)[-1], values(opened(HolisticExtractor), panned[::-1])[0], True
    )
    np.testing.assert_array_equal(
        values(independent, panned), values(independent, panned[::-1])[::-1]
    )


def test_parts_does_not_depend_on_the_order(opened, panned):
    extractor = opened(PartsExtractor)
    np.testing.assert_array_equal(values(extractor, panned), values(extractor, panned[::-1])[::-1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_own_face_list_takes_means_and_changes_nothing_else(opened, portrait, tmp_path, recipe):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([[10, 338], *FACE_LISTS["phoenix"].points[1:]]))
    usual, mine = (
        opened(recipe).rows([portrait]).values[0],
        opened(recipe, face_list=path).rows([portrait]).values[0],
    )
    np.testing.assert_allclose(mine[0], usual[:2].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(mine[1:], usual[1:])


@pytest.mark.parametrize("recipe", RECIPES)
def test_odd_frames_are_fine_or_refused(opened, portrait, recipe):
    extractor = opened(recipe)
    strided = np.repeat(portrait, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(
        extractor.rows([strided]).values, opened(recipe).rows([portrait]).values
    )
    assert len(extractor.rows([BLACK[:1, :1]])) == 1
    assert len(extractor.rows([])) == 0
    for wrong in (BLACK[:, :, 0], BLACK[:, :, :2], BLACK[:0], BLACK.astype(float)):
        with pytest.raises(InvalidError, match="convert it"):
            extractor.rows([wrong])
    with pytest.raises(InvalidError, match="found list"):
        extractor.rows([[1]])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_graph_that_failed_is_built_anew(portrait, recipe):
    extractor = recipe()
    extractor.open()
    expected = extractor.rows([portrait])
    extractor._engine._solutions[0].close()
    with pytest.raises(ValueError, match="_graph is None"):
        extractor.rows([portrait])
    np.testing.assert_array_equal(extractor.rows([portrait]).values, expected.values)
    extractor.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_closed_or_unopened_says_so(recipe):
    extractor = recipe()
    with pytest.raises(InvalidError, match="not open"):
        extractor.rows([BLACK])
    with pytest.raises(InvalidError, match="not open"):
        extractor.start_video()
    extractor.open("cuda:0")
    extractor.close()
    extractor.close()
    with pytest.raises(InvalidError, match="not open"):
        extractor.rows([BLACK])


@pytest.mark.parametrize("recipe", RECIPES)
def test_pickles_unopened_with_its_face_list(tmp_path, recipe):
    path = tmp_path / "mine.txt"
    path.write_text(" ".join(map(str, range(68))))
    extractor = recipe(face_list=path, min_detection_confidence=0.3)
    extractor.open()
    path.unlink()
    again = pickle.loads(pickle.dumps(extractor))
    extractor.close()
    assert again == extractor
    assert again.spec == extractor.spec
    assert again.recipe == extractor.recipe
    with pytest.raises(InvalidError, match="not open"):
        again.rows([BLACK])


@pytest.mark.parametrize("recipe", RECIPES)
def test_provenance_is_json_and_holds_versions_hashes_and_parameters(recipe):
    provenance = json.loads(json.dumps(recipe(face_list="ibug").recipe))
    assert sorted(provenance) == [
        "extractor",
        "face_list",
        "mediapipe",
        "models",
        "parameters",
        "recipe",
    ]
    assert provenance["face_list"] == {"name": "ibug", "sha256": FACE_LISTS["ibug"].sha256}
    assert len(provenance["models"]) == 6
    assert all(len(sha256) == 64 for sha256 in provenance["models"].values())
    assert provenance["parameters"]["min_detection_confidence"] == 0.5


def test_every_option_changes_the_provenance():
    holistic = [
        {},
        {"mode": "video"},
        {"independent_frames": True},
        {"min_tracking_confidence": 0.4},
    ]
    parts = [{}, {"handedness": "legacy"}, {"min_detection_confidence": 0.4}, {"face_list": "ibug"}]
    made = [HolisticExtractor(**options) for options in holistic] + [
        PartsExtractor(**options) for options in parts
    ]
    assert len({json.dumps(extractor.recipe) for extractor in made}) == len(made)


def test_spec_and_provenance_leave_mediapipe_unimported_and_opening_it_is_quiet():
    code = (
        "import sys; from kpstore.extractors.parts import PartsExtractor as P; p = P(); p.spec; "
        "p.recipe\nassert not {'mediapipe', 'cv2', 'jax'} & set(sys.modules)\nimport time, "
        "skimage.data as d; from kpstore.extractors.holistic import HolisticExtractor as H\nfor e "
        "in (p, H()):\n    e.open(); time.sleep(0.2); e.start_video(); e.rows([d.astronaut()]); "
        "e.start_video(); e.close()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_quiet_start_lets_other_lines_through(capfd):
    with quiet_start():
        os.write(
            2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nthe disk is on fire\n"
        )
    assert capfd.readouterr().err == "the disk is on fire\n"


def test_quiet_calls_lets_other_warnings_through():
    with shared.quiet_calls():
        warnings.warn(
            "SymbolDatabase.GetPrototype() is deprecated. Please use", UserWarning, stacklevel=1
        )
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", UserWarning, stacklevel=1)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("complexity", [0, 2])
def test_a_pose_model_that_is_not_there_is_said_before_any_download(
    monkeypatch, recipe, complexity
):
    try:
        shared.model_hashes([shared.pose_model(complexity)])
    except UnsupportedError:
        pass
    else:
        pytest.skip("this MediaPipe holds the model")
    monkeypatch.setattr(shared, "load_solutions", lambda: pytest.fail("reached MediaPipe"))
    extractor = recipe(model_complexity=complexity)
    with pytest.raises(
        UnsupportedError,
        match=f"pose_landmark_{('lite', '', 'heavy')[complexity]}.tflite.*complexity=1",
    ):
        extractor.open()


def test_missing_mediapipe_names_the_extra(monkeypatch):
    def not_installed(name):
        raise shared.PackageNotFoundError(name)

    monkeypatch.setattr(shared, "version", not_installed)
    for act in (lambda: HolisticExtractor().recipe, shared.load_solutions):
        with pytest.raises(MissingExtraError, match=r"kpstore\[mediapipe\]"):
            act()


def test_mediapipe_without_solutions_is_refused(monkeypatch):
    monkeypatch.setattr(shared.importlib, "import_module", lambda name: object())
    with pytest.raises(UnsupportedError, match="has no 'solutions'"):
        shared.load_solutions()


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (HolisticExtractor, {"mode": "tracking"}, "mode is 'image' or 'video', found 'tracking'"),
        (HolisticExtractor, {"mode": "video", "independent_frames": True}, "needs mode='image'"),
        (HolisticExtractor, {"independent_frames": "no"}, "found 'no'"),
        (
            HolisticExtractor,
            {"min_detection_confidence": 2, "min_tracking_confidence": "x", "model_complexity": 3},
            "model_complexity=3.*|min_detection_confidence=2.*min_tracking_confidence='x'",
        ),
        (PartsExtractor, {"handedness": "mirrored"}, "found 'mirrored'"),
        (
            PartsExtractor,
            {"min_detection_confidence": float("nan")},
            "nan is not a number from 0 to 1",
        ),
        (
            HolisticExtractor,
            {"face_list": FaceList("iris", (477, *range(67)))},
            "mesh point 477.*has 468",
        ),
    ],
)
def test_bad_options_are_refused_at_construction(recipe, options, message):
    with pytest.raises(InvalidError, match=message):
        recipe(**options)


def test_parts_may_use_iris_points():
    assert (
        PartsExtractor(face_list=FaceList("iris", (477, *range(67)))).spec.attrs["face_list"][
            "name"
        ]
        == "iris"
    )


@pytest.mark.parametrize("text", ["{}", "1, 2\n3 4", "\ufeff{}"])
def test_face_list_files(tmp_path, text):
    points = [*range(68)]
    forms = {
        "{}": json.dumps(points),
        "1, 2\n3 4": "\n".join(f"{p}, " for p in points),
        "\ufeff{}": f"\ufeff{points}",
    }
    path = tmp_path / "mine.list"
    path.write_text(forms[text].rstrip(", "), encoding="utf-8")
    face_list = load_face_list(path)
    assert (face_list.name, face_list.points) == ("mine", tuple(points))
    assert load_face_list(str(path)) == face_list
    assert load_face_list(face_list) is face_list


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2", "could not be read"),
        (b"1 2 x", "could not be read"),
        (b"1 2", "has 2 entries"),
        (b"", "could not"),
        (b"\xff\xfe", "could not be read"),
        (b'[{"a": 1}]', "entry 0"),
    ],
)
def test_face_list_files_that_do_not_fit_are_refused(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidError, match=message):
        load_face_list(path)


def test_unknown_face_list_names_the_known_ones():
    with pytest.raises(
        NotFoundError, match=r"'dlib' is neither a known name \(ibug, phoenix\) nor a file"
    ):
        HolisticExtractor(face_list="dlib")


def test_single_mesh_points_keep_every_bit():
    mesh = np.random.default_rng(3).normal(size=(478, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        select_face(mesh, FACE_LISTS["ibug"]), mesh[list(FACE_LISTS["ibug"].points)]
    )


@pytest.mark.parametrize(
    ("found", "subject", "legacy"),
    [
        ("", (None, None), (None, None)),
        ("R.9", (0, None), (None, 0)),
        ("L.9", (None, 0), (None, 0)),
        ("L.9 R.8", (1, 0), (1, 0)),
        ("R.9 L.8", (0, 1), (1, 0)),
        ("R.8 R.9", (1, 0), (1, 0)),
        ("R.9 R.8", (0, 1), (1, 0)),
        ("L.7 L.7", (1, 0), (1, 0)),
        ("L.8 L.9", (0, 1), (1, 0)),
    ],
)
def test_hands_go_to_the_subjects_sides(found, subject, legacy):
    hands = [
        Hand({"R": "Right", "L": "Left"}[text[0]], float(text[1:]), number)
        for number, text in enumerate(found.split())
    ]
    assert assign_hands(hands, "subject") == subject
    assert assign_hands(hands, "legacy") == legacy
