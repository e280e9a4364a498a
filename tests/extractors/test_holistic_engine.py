"""The recipe holistic with the engine torch: which engine is taken, and what is made by it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import kpstore
from kpstore.errors import ExtractorError, InvalidError, MismatchError, NotFoundError
from kpstore.extractors import mediapipe_extractor
from kpstore.extractors.holistic import HolisticExtractor
from kpstore.extractors.holistic_torch import HolisticTorch
from kpstore.extractors.mediapipe_models import HolisticModels
from kpstore.extractors.mediapipe_torch import FoundRows
from kpstore.extractors.torch_engine import TorchEngine, engine_of
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError
from tests.conftest import memory_location
from tests.extractors.mediapipe_oracles import moving_clip
from tests.fakes import FakeSource

pytest.importorskip("mediapipe")
pytest.importorskip("insightface")
pytest.importorskip("tflite")

LENGTHS = {"a": 3, "b": 5, "c": 2}
CLIP = moving_clip(7)


@dataclass(frozen=True)
class Clips(FakeSource):
    """Parts of one clip, each from another of its frames on."""

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Any]:
        begin = list(LENGTHS).index(video.id)
        for number, image in enumerate(CLIP[begin : begin + video.n_frames]):
            is_broken = number in self.broken.get(video.id, ())
            yield FrameError("truncated") if is_broken else image


SOURCE = Clips(LENGTHS, broken={"b": [1]})


def ingested(**options: Any) -> kpstore.Store:
    place = memory_location()
    run_ingest(SOURCE, place, HolisticExtractor(**options), Options(workers=0))
    return kpstore.open(place)


def values(store: kpstore.Store) -> dict[str, NDArray[Any]]:
    arrays = ("keypoints", "keypoints_detected", "keypoints_visibility", "keypoints_status")
    return {name: store[name][:] for name in arrays}


@pytest.fixture(scope="module")
def alone() -> dict[str, NDArray[Any]]:
    """What the engine makes of one video after another, a frame at a time."""
    return values(ingested(engine="torch"))


@pytest.mark.parametrize("at_once", [2, 5])
def test_videos_together_have_the_bits_of_each_alone(
    alone: dict[str, NDArray[Any]], at_once: int
) -> None:
    together = values(ingested(engine="torch", batch_videos=at_once))
    for name, wanted in alone.items():
        np.testing.assert_array_equal(together[name], wanted, name)


def test_a_store_of_one_engine_is_near_that_of_the_other(alone: dict[str, NDArray[Any]]) -> None:
    wanted = values(ingested())
    np.testing.assert_array_equal(alone["keypoints_status"], wanted["keypoints_status"])
    agree = alone["keypoints_detected"] == wanted["keypoints_detected"]
    assert agree[:, 3].all()
    assert agree.mean() > 0.9
    apart = np.abs(alone["keypoints"] - wanted["keypoints"])[..., :2]
    assert np.nanmedian(apart) < 1e-4
    assert np.nanpercentile(apart, 95) < 2e-3


def test_independent_frames_are_those_of_a_new_video_each() -> None:
    one, many = (
        values(ingested(engine="torch", independent_frames=True, batch_videos=n)) for n in (1, 3)
    )
    for name, wanted in one.items():
        np.testing.assert_array_equal(many[name], wanted, name)
    extractor = HolisticExtractor(engine="torch")
    extractor.open()
    for row, image in ((3, CLIP[1]), (9, CLIP[3])):  # the first frame of b, the second of c
        extractor.start_video()
        np.testing.assert_array_equal(extractor.rows([image]).values[0], one["keypoints"][row])


# -- which engine ----------------------------------------------------------------------------------


def test_a_feature_goes_on_with_the_engine_that_began_it() -> None:
    for begun in ("mediapipe", "torch"):
        made = {"keypoints": HolisticExtractor(engine=begun).recipe}
        for device in ("cpu", "cuda"):
            extractor = HolisticExtractor()
            assert extractor.settle(made, device) == ()
            assert extractor.recipe == made["keypoints"]
        other = {"mediapipe": "torch", "torch": "mediapipe"}[begun]
        with pytest.raises(MismatchError, match=f"begun with the engine {begun}, this run asks"):
            HolisticExtractor(engine=other).settle(made, "cpu")


def test_a_new_feature_is_made_in_torch_where_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extractor = HolisticExtractor()
    assert extractor.settle({}, "cpu") == ()
    assert "engine" not in extractor.recipe["parameters"]
    assert (extractor.videos_at_once, extractor.settled) == (1, True)
    assert extractor.settle({}, "cuda") == ()
    assert extractor.recipe["parameters"]["engine"] == "torch"
    assert (extractor.videos_at_once, extractor.settled) == (64, False)
    extractor.keep(16)
    assert extractor.recipe["parameters"]["rows_per_call"] == extractor.videos_at_once == 16
    (note,) = HolisticExtractor(mode="video").settle({}, "cuda")
    assert note.startswith("MediaPipe computes on CPUs, not on the GPUs of this run")
    assert "has mode='image' only" in note
    with pytest.raises(InvalidError, match="has mode='image' only"):
        HolisticExtractor(engine="torch", mode="video")
    monkeypatch.setattr(mediapipe_extractor, "missing_for_torch", lambda: "tflite is not installed")
    (note,) = HolisticExtractor().settle({}, "cuda")
    assert "tflite is not installed" in note


def test_an_extractor_that_was_used_for_another_store_chooses_anew() -> None:
    extractor = HolisticExtractor()
    for device, engine in (("cuda", "torch"), ("cpu", "mediapipe"), ("cuda", "torch")):
        extractor.settle({}, device)
        assert engine_of(extractor.recipe) == engine


def test_options_of_the_other_engine_are_not_ignored_in_silence() -> None:
    with pytest.raises(InvalidError, match=r"of --engine torch alone.*: batch_videos"):
        HolisticExtractor(engine="mediapipe", batch_videos=2)
    (note,) = HolisticExtractor(rows_per_call=2, precision="bf16").settle({}, "cpu")
    assert note == "options of --engine torch have no effect: rows_per_call and precision"


def test_a_wrong_folder_of_models_leaves_no_store(tmp_path: Path) -> None:
    place = memory_location()
    extractor = HolisticExtractor(engine="torch", models=tmp_path)
    with pytest.raises(NotFoundError, match="--models names the folder 'modules' of MediaPipe"):
        run_ingest(SOURCE, place, extractor, Options(workers=0))
    with pytest.raises(NotFoundError):
        kpstore.open(place)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "jax"}, "engine is auto, mediapipe or torch"),
        ({"batch_videos": -1}, "batch_videos=-1 is not a number from 0"),
        ({"rows_per_call": 2.5}, "rows_per_call=2.5 is not a number from 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        HolisticExtractor(**options)


def test_the_provenance_is_of_the_models_that_are_loaded_and_needs_neither_library() -> None:
    made = HolisticExtractor(engine="torch").recipe["models"]
    assert set(made) == {Path(model.file).name for model in HolisticModels().children()}
    code = (
        "import sys\n"
        "from kpstore.extractors.holistic import HolisticExtractor\n"
        "HolisticExtractor(engine='torch').recipe\n"
        "assert not {'mediapipe', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("asked", [0, 4])
def test_lack_of_memory_lowers_rows_of_a_call_or_names_the_videos_at_once(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    sizes = []

    def step(self: HolisticTorch, images: list[Any]) -> FoundRows:
        sizes.append((self.rows, self.rows_per_call))
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory")
        return independent(self, images)

    independent = HolisticTorch.independent
    monkeypatch.setattr(HolisticTorch, "step", step)
    # As on a GPU: several rows of a call by default, which are tried out.
    monkeypatch.setattr(TorchEngine, "default_at_once", {"cpu": 2, "cuda": 2})
    extractor = HolisticExtractor(engine="torch", precision="bf16", batch_videos=asked)
    extractor.settle({}, "cpu")
    extractor._engine._settled = False  # type: ignore[union-attr]
    if asked:
        with pytest.raises(ExtractorError, match=r"give fewer: --set batch_videos=2 \(CUDA out"):
            extractor.open()
        assert sizes == [(4, 2)]
    else:
        monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
        extractor.open()
        assert sizes == [(2, 2), (1, 1)]
        assert extractor.recipe["parameters"]["rows_per_call"] == extractor.videos_at_once == 1


# -- precision -------------------------------------------------------------------------------------


def test_half_precision_is_near_and_in_the_provenance() -> None:
    half = HolisticExtractor(engine="torch", precision="bf16")
    assert half.recipe["parameters"]["precision"] == "bf16"
    found = {}
    for extractor in (half, HolisticExtractor(engine="torch")):
        extractor.open()
        extractor.start_video()
        found[extractor.precision] = extractor.rows(CLIP[:1]).values[0, 110:, :2]
    apart = np.abs(found["bf16"] - found["fp32"])
    assert 0 < np.median(apart) < 0.02


def test_numbers_that_are_not_finite_fail_their_frame_alone() -> None:
    extractor = HolisticExtractor(engine="torch", batch_videos=2)
    extractor.open()
    for row in (0, 1):
        extractor.start_row(row)
    pose = cast("TorchEngine", extractor._engine)._model._models.pose
    meant, calls = pose._meant, []

    def broken(*outputs: Any) -> Any:
        points, scores = meant(*outputs)
        calls.append(1)
        return points * (np.nan if len(calls) == 2 else 1), scores

    pose._meant = broken
    found = extractor.step(CLIP[:2])
    assert list(found.failed) == [1]
    assert "gives no finite numbers in fp32" in found.failed[1]
    assert found.rows["keypoints"].companions["detected"][0].any()
