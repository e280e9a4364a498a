"""MediaPipe in an ingest: the numbers of a plain loop, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kpstore
from kpstore.errors import NotFoundError
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.mediapipe import load_solutions, quiet_calls
from kpstore.extractors.parts import PartsExtractor
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import State
from kpstore.schema.layout import FACE_LISTS, PART_SLICES
from kpstore.sources.demo import HEIGHT, WIDTH, write_demo_dataset
from kpstore.sources.phoenix import FRAMES, PhoenixSource
from tests.conftest import memory_location

ARRAYS = ("keypoints", "keypoints_detected", "keypoints_visibility", "keypoints_status")
LANDMARKS = {
    "face": "face_landmarks",
    "left_hand": "left_hand_landmarks",
    "right_hand": "right_hand_landmarks",
    "pose": "pose_landmarks",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of four frames or more.

    The last frame of the first is black, so nothing is found there.
    """
    root = write_demo_dataset(tmp_path_factory.mktemp("mediapipe") / "data", videos=1, frames=4)
    last = sorted((root / FRAMES / "train").rglob("*.png"))[-1]
    Image.new("RGB", (WIDTH, HEIGHT)).save(last)
    return root


@pytest.fixture(scope="module")
def plain(dataset: Path) -> dict[str, np.ndarray]:
    """What a script without kpstore gets, video by video in the order of the store."""
    points, found, visibility = [], [], []
    with (
        quiet_calls(),
        load_solutions().holistic.Holistic(static_image_mode=True, model_complexity=1) as model,
    ):
        for split in ("train", "dev", "test"):
            for folder in sorted((dataset / FRAMES / split).iterdir()):
                model.reset()
                for path in sorted(folder.glob("*.png")):
                    result = model.process(np.asarray(Image.open(path).convert("RGB")))
                    row = np.full((143, 3), np.nan, dtype=np.float32)
                    seen = dict.fromkeys(PART_SLICES, False)
                    for part, name in LANDMARKS.items():
                        landmarks = getattr(result, name)
                        if landmarks is not None:
                            xyz = np.array(
                                [(p.x, p.y, p.z) for p in landmarks.landmark], dtype=np.float32
                            )
                            row[PART_SLICES[part]] = (
                                xyz[list(FACE_LISTS["phoenix"].points)] if part == "face" else xyz
                            )
                            seen[part] = True
                    pose = result.pose_landmarks
                    points.append(row)
                    found.append(list(seen.values()))
                    visibility.append(
                        [p.visibility for p in pose.landmark] if pose else [np.nan] * 33
                    )
    return {
        "keypoints": np.array(points),
        "keypoints_detected": np.array(found),
        "keypoints_visibility": np.array(visibility, dtype=np.float32),
        "keypoints_status": np.full(len(points), State.DONE, dtype=np.uint8),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_equal_to_a_plain_loop_bit_for_bit(
    dataset: Path, plain: dict[str, np.ndarray], tmp_path: Path, workers: int
) -> None:
    options = Options(workers=workers, task_frames=4)
    report = run_ingest(PhoenixSource(dataset), tmp_path / "s.kps", HolisticExtractor(), options)
    store = kpstore.open(tmp_path / "s.kps")
    assert (report.frames_failed, len(store.index)) == (0, 3)
    for name in ARRAYS:
        assert store[name][:].dtype == plain[name].dtype
        assert store[name][:].tobytes() == plain[name].tobytes(), name
    assert plain["keypoints_detected"].any(axis=1).sum() == len(plain["keypoints"]) - 1


def test_a_feature_made_by_one_recipe_takes_no_rows_of_another(dataset: Path) -> None:
    location = memory_location()
    dev, everything = PhoenixSource(dataset, splits=("dev",)), PhoenixSource(dataset)
    run_ingest(dev, location, HolisticExtractor(), Options(workers=0))
    before = kpstore.open(location)
    for other in (
        PartsExtractor(),
        HolisticExtractor(independent_frames=True),
        HolisticExtractor(face_list="ibug"),
    ):
        with pytest.raises(kpstore.KpstoreError, match=r"was made with|is stored with"):
            run_ingest(everything, location, other, Options(workers=0))
    assert kpstore.open(location).snapshot == before.snapshot


def test_a_face_list_that_is_not_there_makes_no_store(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        run_ingest(
            PhoenixSource(dataset), tmp_path / "s.kps", HolisticExtractor(face_list="nowhere")
        )
    assert not (tmp_path / "s.kps").exists()
