"""Holistic in torch beside MediaPipe's: stage by stage, as a whole, and in batches of any kind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError
from kpstore.extractors import mediapipe
from kpstore.extractors import mediapipe_regions as regions
from kpstore.extractors.holistic_torch import HolisticTorch
from kpstore.extractors.mediapipe import models_folder
from kpstore.extractors.mediapipe_crops import Frames, crop_matrices, pixel_regions, take_crops
from kpstore.extractors.mediapipe_models import HandRecropModel, HolisticModels
from kpstore.extractors.mediapipe_points import projected, projected_keypoints, without_padding
from kpstore.extractors.mediapipe_torch import WHOLE
from tests.extractors.mediapipe_oracles import POINTS, SIZE, Opened, moving_clip

pytest.importorskip("mediapipe")
pytest.importorskip("insightface")

N_FRAMES = 8
PARTS = ("face", "left_hand", "right_hand", "pose")
"""In the order of ``present``."""


@pytest.fixture(scope="module")
def clip():
    return moving_clip(N_FRAMES)


@pytest.fixture(scope="module")
def oracle(clip):
    opened = Opened()
    try:
        yield [opened.frame(image) for image in clip]
    finally:
        opened.close()


@pytest.fixture(scope="module")
def models():
    return HolisticModels()


@pytest.fixture(scope="module")
def found(models, clip):
    """The clip alone, one frame after another."""
    return steps(HolisticTorch(models, rows=1), [clip])[0]


def steps(holistic, clips):
    """The rows of each clip, in lockstep; those that have ended have no frame."""
    made = [[] for _ in clips]
    for t in range(max(map(len, clips))):
        images = [clip[t] if t < len(clip) else None for clip in clips]
        rows = holistic.step(images)
        for number, clip in enumerate(clips):
            if t < len(clip):
                made[number].append(row_of(rows, number))
    return made


def row_of(rows, number):
    names = (*PARTS, "visibility", "present")
    return {name: getattr(rows, name)[number] for name in names}


def assert_same_bits(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], name)


# -- stage by stage --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looked(models, clip):
    """What a model finds in a rect of a frame: points, score, region and padding."""
    models.eval()

    def look(name, number, rect):
        model, frames = getattr(models, name), Frames.of([clip[number]])
        rects, sizes = torch.from_numpy(np.float32([rect])), frames.sizes.float()
        pixels, padding = pixel_regions(rects, sizes, model.kind)
        matrices = crop_matrices(pixels, rects[:, 4], model.kind.side)
        with torch.inference_mode():
            points, score = model(take_crops(frames, torch.tensor([0]), matrices, model.kind))
        return points, score, (rects, sizes, pixels, padding)

    return look


def pixels_between(found, wanted):
    return np.abs((found.numpy()[0, :, :2] - wanted[:, :2]) * SIZE).max()


def test_the_person_is_found_where_mediapipe_finds_it(looked, oracle):
    for number, one in enumerate(oracle):
        points, score, (_, sizes, _, padding) = looked("pose_detector", number, WHOLE)
        rect = regions.pose_region(without_padding(points[:, 0, 2:], padding), sizes)
        assert score.item() >= 0.5
        assert np.abs(rect.numpy()[0] - one["roi_from_detection"]).max() * max(SIZE) < 2e-3


@pytest.mark.parametrize(
    ("name", "part", "region", "limit"),
    [
        ("pose", "pose", "roi_from_detection", 0.02),
        ("face", "face", "face_tracking_roi", 2e-3),
        ("hand", "left_hand", "left_hand_tracking_roi", 2e-3),
        ("hand", "right_hand", "right_hand_tracking_roi", 2e-3),
    ],
)
def test_points_in_mediapipes_own_regions_are_mediapipes(looked, oracle, name, part, region, limit):
    compared = 0
    for number, one in enumerate(oracle):
        if one[region] is None:
            continue
        points, score, (rects, _, _, padding) = looked(name, number, one[region])
        assert (score.item() > 0.5) == (one[part] is not None)
        if one[part] is None:
            continue
        points = projected(without_padding(points, padding), rects)
        assert pixels_between(points, one[part]) < limit
        if name == "pose":
            visibility = points.numpy()[0, :, 3]
            assert np.abs(visibility - one[part][:, 3]).max() < 1e-3
        compared += 1
    assert compared > 2


def test_faces_and_hands_are_found_where_mediapipe_finds_them(looked, oracle):
    for number, one in enumerate(oracle):
        points, _, (rects, sizes, pixels, _) = looked(
            "face_detector", number, one["face_roi_from_pose"]
        )
        keypoints = projected_keypoints(points[:, 0, 2:], pixels, rects[:, 4], sizes)
        rect = regions.face_region_of_detection(keypoints, sizes)
        assert np.abs(rect.numpy()[0] - one["face_roi_from_detection"]).max() * max(SIZE) < 2e-3
        for side in ("left", "right"):
            if one[f"{side}_hand_roi_from_pose"] is None:
                continue
            points, _, (rects, sizes, _, padding) = looked(
                "hand_recrop", number, one[f"{side}_hand_roi_from_pose"]
            )
            points = projected(without_padding(points, padding), rects)
            rect = regions.hand_region_of_recrop(points, sizes)
            wanted = one[f"{side}_hand_roi_from_recrop"]
            assert np.abs(rect.numpy()[0] - wanted).max() * max(SIZE) < 2e-3


# -- as a whole ------------------------------------------------------------------------------------


def test_a_clip_agrees_with_mediapipe(found, oracle):
    """Percentiles, since 1e-7 in a network moves one sample of a crop in a thousand."""
    for number, part in enumerate(PARTS):
        there = [
            (bool(one["present"][number]), other[part] is not None)
            for one, other in zip(found, oracle, strict=True)
        ]
        differ = sum(mine != theirs for mine, theirs in there)
        # A hand of which little is seen may be found in one frame more or less.
        assert differ <= ("hand" in part)
        distances = [
            np.linalg.norm((one[part][:, :2] - other[part][:, :2]) * SIZE, axis=1)
            for one, other, (mine, theirs) in zip(found, oracle, there, strict=True)
            if mine and theirs
        ]
        assert len(distances) > 2
        median, most = np.quantile(np.concatenate(distances), [0.5, 0.99])
        # Hands are small here, and blurred: MediaPipe itself moves them as much.
        assert median < (0.5 if "hand" in part else 0.1)
        assert most < (4 if "hand" in part else 1)


def test_results_say_what_is_missing(models):
    holistic = HolisticTorch(models, rows=2)
    black = np.zeros((90, 70, 3), dtype=np.uint8)
    for images in ([black, None], [None, None]):
        rows = holistic.step(images)
        assert rows.present.tolist() == [[False] * 4] * 2
        for part in PARTS:
            assert getattr(rows, part).shape == (2, POINTS[part], 3)
            assert getattr(rows, part).dtype == np.float32
            assert np.isnan(getattr(rows, part)).all()
        assert rows.visibility.shape == (2, 33)


# -- batches ---------------------------------------------------------------------------------------


def test_bits_depend_neither_on_the_batch_nor_on_the_order(models, clip, found):
    mirrored = [np.ascontiguousarray(image[:300, ::-1]) for image in clip[:3]]
    black = [np.zeros((96, 96, 3), dtype=np.uint8)] * 5
    clips = [mirrored, clip, black, clip[4:6]]
    together = steps(HolisticTorch(models, rows=4), clips)
    assert_same_bits(together[1], found)
    turned = steps(HolisticTorch(models, rows=4), clips[::-1])[::-1]
    for one, other in zip(together, turned, strict=True):
        assert_same_bits(one, other)
    alone = steps(HolisticTorch(models, rows=1), [mirrored])[0]
    assert_same_bits(together[0], alone)


def test_computing_all_rows_in_larger_calls_gives_the_same_bits_in_any_place(models, clip):
    images = [clip[0], clip[5], None, np.zeros((50, 60, 3), dtype=np.uint8)]
    options = {"rows": 4, "rows_per_call": 3}
    present = HolisticTorch(HolisticModels(), **options).step(images)
    every = HolisticTorch(HolisticModels(), **options, computed="all").step(images[::-1])
    assert present.present.any(1).tolist() == [True, True, False, False]
    for number in range(4):
        assert_same_bits([row_of(every, 3 - number)], [row_of(present, number)])


def test_a_row_that_starts_a_video_has_forgotten_the_last(models, clip, found):
    holistic = HolisticTorch(models, rows=2)
    for image in clip[2:0:-1]:
        holistic.step([image, image])
    holistic.start_video(0)
    rows = holistic.step([clip[0], clip[0]])
    assert_same_bits([row_of(rows, 0)], found[:1])
    # The other row continues: its face is looked for where the last one was.
    assert not np.array_equal(rows.face[1], found[0]["face"])


def test_a_row_without_a_frame_keeps_its_memory(models, clip, found):
    holistic = HolisticTorch(models, rows=1)
    made = []
    for image in clip[:3]:
        holistic.step([None])
        made.append(row_of(holistic.step([image]), 0))
    assert_same_bits(made, found[:3])


def test_independent_frames_are_each_the_first_of_a_video(models, clip, found):
    holistic = HolisticTorch(models, rows=2)
    holistic.step([clip[5], None])
    rows = holistic.independent(clip[:3])
    assert len(rows) == 3
    assert_same_bits([row_of(rows, 0)], found[:1])
    assert not np.array_equal(rows.face[1], found[1]["face"])
    assert_same_bits([row_of(rows, 1)], steps(HolisticTorch(models, rows=1), [clip[1:2]])[0])


def test_bits_do_not_depend_on_the_number_of_threads(clip, found):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        made = steps(HolisticTorch(HolisticModels(), rows=1), [clip[:2]])[0]
    finally:
        torch.set_num_threads(before)
    assert_same_bits(made, found[:2])


def test_settings_of_torch_are_as_before(models, clip):
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    HolisticTorch(models, rows=1).step([clip[0]])
    assert before == (torch.get_num_threads(), torch.get_float32_matmul_precision())
    assert flags == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


# -- mistakes --------------------------------------------------------------------------------------


def test_a_wrong_number_of_rows_or_images_is_refused(models, clip):
    holistic = HolisticTorch(models, rows=2)
    with pytest.raises(InvalidError, match="1 images were given for 2 rows"):
        holistic.step([clip[0]])
    with pytest.raises(InvalidError, match="row 2 was started, there are 2, from 0 on"):
        holistic.start_video(2)
    with pytest.raises(InvalidError, match="both must be at least 1"):
        HolisticTorch(models, rows=0)
    with pytest.raises(InvalidError, match=r"shape \(height, width, 3\)"):
        holistic.step([clip[0][..., 0], None])


def test_the_folder_of_models_may_be_another(tmp_path):
    with pytest.raises(NotFoundError, match=r"pose_detection\.tflite does not exist"):
        HolisticModels(tmp_path)
    other = models_folder() / "face_detection/face_detection_short_range.tflite"
    target = tmp_path / HandRecropModel.file
    target.parent.mkdir()
    target.write_bytes(other.read_bytes())
    with pytest.raises(InvalidError, match="takes pictures of 128 pixels"):
        HandRecropModel.load(tmp_path)


def test_without_mediapipe_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(mediapipe.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "kpstore\[mediapipe\]"'):
        HolisticModels()


def test_mediapipe_is_not_imported(clip):
    code = (
        "import sys, numpy as np\n"
        "from kpstore.extractors.mediapipe_models import HolisticModels\n"
        "from kpstore.extractors.holistic_torch import HolisticTorch\n"
        "HolisticTorch(HolisticModels(), rows=1).step([np.zeros((60, 60, 3), np.uint8)])\n"
        "assert not {'mediapipe', 'tensorflow', 'cv2', 'google.protobuf'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
