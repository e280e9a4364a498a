"""Extractors of several features, of frames and videos, and those that take whole videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kpstore
from kpstore.errors import InvalidError, MismatchError
from kpstore.extractors.base import Extracted
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify
from kpstore.schema.feature import State
from tests.conftest import memory_location
from tests.fakes import FakeSource, record
from tests.ingest.models import Clips, Deadly, Faces, Fragile, Portraits

LENGTHS = {f"v{n}": 3 + 4 * (n % 3) for n in range(9)} | {"none": 0}


def ingested(path: Path | str, source: FakeSource, extractor: Any, **options: Any) -> kpstore.Store:
    run_ingest(source, path, extractor, Options(**{"workers": 0, "task_frames": 12, **options}))
    return kpstore.open(path)


def expected(source: FakeSource, video_id: str) -> NDArray[np.float32]:
    frames = source.read_frames(record(video_id, LENGTHS[video_id]))
    return np.stack([frame.mean(axis=(0, 1), dtype=np.float32) for frame in frames])


@pytest.mark.parametrize("suffix", ["kps", "h5"])
def test_all_features_of_a_run_stand_together(tmp_path: Path, suffix: str) -> None:
    source = Portraits(LENGTHS, broken={"v3": [1]}, torn=["v5"])
    store = ingested(tmp_path / f"s.{suffix}", source, Faces(dark=20))
    assert list(store.features) == ["mean", "from_reference", "reference"]
    for video_id in ("v0", "v4", "v8"):
        video, wanted = store.video(video_id), expected(source, video_id)
        kept = ~np.isnan(video["mean"]).any(axis=1)
        np.testing.assert_array_equal(video["mean"][kept], wanted[kept])
        np.testing.assert_allclose(
            video["from_reference"][kept], wanted[kept].mean(axis=1) - 2, atol=1e-4
        )
    reasons = {(f.video_id, f.reason) for f in store.failures("mean")}
    assert ("v3", "truncated") in reasons
    assert ("v5", "InvalidError: the reference picture: truncated") in reasons
    assert {reason for _, reason in reasons} >= {"too dark"}
    assert store.failures("from_reference") == store.failures("mean")
    states = store.states("reference")
    assert [store.index.ids[p] for p in np.flatnonzero(states == State.FAILED)] == ["v5"]
    position = store.index.position("v5")
    assert np.isnan(store["reference"][position]).all()
    np.testing.assert_array_equal(store["reference"][store.index.position("v4")], [2, 2, 2])
    assert verify(store).problems == []


def test_any_number_of_workers_gives_the_same_rows(tmp_path: Path) -> None:
    source = Portraits(LENGTHS, broken={"v3": [1]})
    serial = ingested(tmp_path / "serial.kps", source, Faces(dark=20))
    others = ingested(tmp_path / "many.kps", source, Faces(dark=20), workers=2, task_frames=7)
    assert not kpstore.diff(serial, others)
    assert others.failures("mean") == serial.failures("mean")


def test_a_run_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "s.kps"
    some = dict(list(LENGTHS.items())[:4])
    ingested(path, Portraits(some), Faces())
    whole = ingested(path, Portraits(LENGTHS), Faces())
    assert len(whole.index) == len(LENGTHS)
    assert all((whole.states(name) == State.DONE).all() for name in whole.features)
    version = whole.snapshot
    assert ingested(path, Portraits(LENGTHS), Faces()).snapshot == version
    with pytest.raises(MismatchError, match=r"'mean' was made with scale 1\.0, this run has 2\.0"):
        ingested(path, Portraits(LENGTHS), Faces(scale=2.0))
    again = ingested(path, Portraits(LENGTHS), Faces(scale=2.0), overwrite=True)
    assert again.provenance("reference")["scale"] == 2.0


def test_features_that_are_there_in_part_are_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "s.kps"
    store = ingested(path, Portraits(LENGTHS), Faces())
    with kpstore.open(path, mode="a").transaction("drop") as tx:
        tx.remove_feature("from_reference")
    with pytest.raises(
        InvalidError, match=r"'v0' has some features in .* but no from_reference; overwrite=True"
    ):
        ingested(path, Portraits(LENGTHS), Faces())
    again = ingested(path, Portraits(LENGTHS), Faces(), overwrite=True)
    assert not kpstore.diff(store, again)


def test_an_extractor_that_forgets_a_feature_is_told(tmp_path: Path) -> None:
    class Forgetful(Faces):
        def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
            return Extracted({"mean": super().extract(images).rows["mean"]})

    store = ingested(tmp_path / "s.kps", Portraits({"a": 2}), Forgetful())
    assert "gave no 'from_reference', which it says it makes" in store.failures("mean")[0].reason


class FailedFaces(Faces):
    """Gives infinite numbers for the second image, and says that it failed."""

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        rows = super().extract(images).rows
        rows["mean"].values[1] = np.inf
        return Extracted(rows, {1: "no face in it"})


class FailedClips(Clips):
    """The same, of whole videos."""

    def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
        (made,) = super().extract_videos(videos)
        made.rows["clip"].values[1] = np.inf
        return [Extracted(made.rows, {1: "no face in it"})]


@pytest.mark.parametrize(
    ("extractor", "feature"), [(FailedFaces(), "mean"), (FailedClips(), "clip")]
)
def test_a_frame_that_failed_keeps_its_own_reason_whatever_its_rows_hold(
    tmp_path: Path, extractor: Any, feature: str
) -> None:
    store = ingested(tmp_path / "s.kps", Portraits({"a": 3}), extractor)
    assert [(f.frame, f.reason) for f in store.failures(feature)] == [(1, "no face in it")]
    video = store.video("a")
    assert video[f"{feature}_status"].tolist() == [State.DONE, State.FAILED, State.DONE]
    assert np.isnan(video[feature]).all(axis=1).tolist() == [False, True, False]


def test_a_failed_image_that_the_extractor_was_not_given_is_told(tmp_path: Path) -> None:
    class Confused(Clips):
        def extract_videos(self, videos: Sequence[NDArray[np.uint8]]) -> list[Extracted]:
            return [
                Extracted(made.rows, {-1: "no face in it"})
                for made in super().extract_videos(videos)
            ]

    store = ingested(tmp_path / "s.kps", FakeSource({"a": 3}), Confused())
    (failure,) = store.failures("clip")
    assert (
        failure.reason
        == "InvalidError: the extractor says that image -1 failed; it was given images 0 to 2"
    )


def test_whole_videos_come_by_length_and_rows_are_where_they_belong(tmp_path: Path) -> None:
    source, clips = FakeSource(LENGTHS, broken={"v3": [1]}, unreadable=["v6"]), Clips()
    store = ingested(tmp_path / "s.kps", source, clips, task_frames=1000)
    for video_id in ("v0", "v8", "v2"):
        frames = np.stack(list(source.read_frames(record(video_id, LENGTHS[video_id]))))
        means = frames.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(store.video(video_id)["clip"][:, 0], means, rtol=1e-6)
        np.testing.assert_allclose(store.video(video_id)["clip"][:, 1], means.mean(), rtol=1e-6)
    reasons = {f.video_id: f.reason for f in store.failures("clip")}
    assert reasons == {
        "v3": "InvalidError: frame 1: truncated",
        "v6": "OSError: v6: the disk said no",
    }
    assert store.states("clip")[store.index.position("none")] == State.DONE
    assert max(n for n, _ in clips.calls) > 1
    assert all(n == 1 or n * length <= 20 for n, length in clips.calls)
    many = ingested(tmp_path / "many.kps", source, Clips(), workers=2, task_frames=9)
    assert not kpstore.diff(store, many)


def test_one_video_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    source = FakeSource(dict.fromkeys("abcdef", 4))
    first = next(source.read_frames(record("c", 4)))[0, 0, 0]
    store = ingested(tmp_path / "s.kps", source, Clips(fail=[first]), task_frames=1000)
    assert [(f.video_id, f.reason) for f in store.failures("clip")] == [
        ("c", "ValueError: not this one")
    ]


def test_a_video_that_kills_its_worker_is_named() -> None:
    store = ingested(
        memory_location(),
        FakeSource({"a": 4, "b": 5, "c": 4}),
        Deadly(),
        workers=1,
        task_frames=1000,
    )
    assert [(f.video_id, f.reason) for f in store.failures("clip")] == [
        ("b", "the worker process died on this video (SIGKILL)")
    ]


def test_a_picture_that_kills_its_worker_costs_no_other_and_no_reference() -> None:
    source = Portraits({"a": 4, "b": 5, "c": 4})
    poison = int(list(source.read_frames(record("b", 5)))[2][0, 0, 0])
    sound = ingested(memory_location(), source, Fragile())
    fragile = Fragile(poison=poison)
    store = ingested(memory_location(), source, fragile, workers=1, task_frames=1000)
    assert [(f.image_path, f.reason) for f in store.failures("mean")] == [
        ("b/0002.png", "the worker process died on this frame (SIGKILL)")
    ]
    np.testing.assert_array_equal(store["reference"][:], sound["reference"][:])
    for name in ("mean", "from_reference"):
        np.testing.assert_array_equal(
            np.delete(store[name][:], 6, 0), np.delete(sound[name][:], 6, 0)
        )
        assert np.isnan(store[name][6]).all()
