"""Missing rows are computed when they are read, as an ingest would, and nothing is stored."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import kpstore
from kpstore.errors import InvalidError, MismatchError, NotFoundError, UnsupportedError
from kpstore.extractors.base import Extracted
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.face_features import FACE_PATH
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.sources.listed import ListedSource
from kpstore.store.records import Records

LENGTHS = {"a": 5, "b": 9, "c": 4, "d": 3}


@dataclass
class Colours:
    """Mean colour of frames, and of a person's picture."""

    scale: float = 1.0
    batch_size: int = 4
    typical_fps: float = 1000.0
    opened: int = 0

    specs = (
        FeatureSpec(
            "colour", (3,), ("channel",), chunk_rows=8, labels={"channel": ("r", "g", "b")}
        ),
        FeatureSpec("face_colour", (3,), ("channel",), axis="video"),
    )

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        return {
            spec.name: {"extractor": "colours", "parameters": {"scale": self.scale}}
            for spec in self.specs
        }

    def open(self, device: str = "cpu") -> None:
        self.opened += 1

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> dict[str, FeatureRows]:
        picture = np.zeros((1, 1, 3)) if reference is None else reference
        return {"face_colour": FeatureRows(self._mean(picture)[None])}

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        dark = {n: "too dark" for n, image in enumerate(images) if image.max() == 0}
        return Extracted(
            {"colour": FeatureRows(np.stack([self._mean(image) for image in images]))}, dark
        )

    def _mean(self, image: NDArray[Any]) -> NDArray[np.float32]:
        return (self.scale * image.mean(axis=(0, 1))).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.fixture
def paths_only(tmp_path: Path) -> kpstore.Store:
    """A store that holds no more than the paths of pictures, which lie beside it."""
    rng = np.random.default_rng(0)
    videos = []
    for video, n_frames in LENGTHS.items():
        (tmp_path / video).mkdir()
        for n in range(n_frames):
            Image.fromarray(rng.integers(1, 255, (6, 8, 3), dtype=np.uint8)).save(
                tmp_path / video / f"{n}.png"
            )
        Image.fromarray(rng.integers(1, 255, (6, 8, 3), dtype=np.uint8)).save(
            tmp_path / f"{video}.png"
        )
        frames = tuple(f"{video}/{n}.png" for n in range(n_frames))
        split = "train" if video < "c" else "dev"
        videos.append(VideoRecord(video, split, frames, annotations={FACE_PATH: f"{video}.png"}))
    store = kpstore.create(tmp_path / "s.kps")
    with store.transaction("paths") as tx:
        tx.add_videos(videos)
    return store.at()


def ingested(store: kpstore.Store, tmp_path: Path, videos: str = "abcd") -> kpstore.Store:
    records = tuple(record for record in Records(store).all() if record.id in videos)
    run_ingest(ListedSource(tmp_path, records), store.location, Colours(), Options(workers=0))
    return kpstore.open(store.location)


def test_numbers_are_those_of_an_ingest_and_nothing_is_stored(
    paths_only: kpstore.Store, tmp_path: Path
) -> None:
    live = paths_only.computed(Colours())
    got = {
        name: live[name][:]
        for name in ("colour", "face_colour", "colour_status", "colour_state", "channel")
    }
    assert kpstore.open(paths_only.location).snapshot == paths_only.snapshot
    whole = ingested(paths_only, tmp_path)
    for name, values in got.items():
        np.testing.assert_array_equal(values, whole[name][:])
    np.testing.assert_array_equal(live.video("b")["colour"], whole.video("b")["colour"])


def test_only_what_is_missing_is_computed(
    paths_only: kpstore.Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = ingested(paths_only, tmp_path, "ac")
    (tmp_path / "a" / "0.png").unlink()  # it is in the store, so nobody looks for it
    with caplog.at_level(logging.WARNING, "kpstore"):
        live = part.computed(Colours())
        view = live.frames("colour", missing="error")
        assert len(view) == 21
        batch = view.batch(np.arange(21))
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 1
    assert "colour, face_colour of 2 videos of" in told[0]
    Image.new("RGB", (8, 6)).save(tmp_path / "a" / "0.png")
    whole = ingested(paths_only, tmp_path)
    np.testing.assert_array_equal(batch["colour"], whole["colour"][:])


def test_views_and_videos_take_it_as_a_policy(paths_only: kpstore.Store, tmp_path: Path) -> None:
    part = ingested(paths_only, tmp_path, "ab")
    how = {"extractor": Colours(), "root": tmp_path}
    frames = part.frames("colour", missing="compute", compute=how, split="dev")
    clips = part.clips("colour", 3, missing="compute", compute=how)
    videos = part.whole_videos("colour", missing="compute", compute=how)
    wanted = ingested(paths_only, tmp_path)
    np.testing.assert_array_equal(frames.batch(range(7))["colour"], wanted["colour"][14:])
    np.testing.assert_array_equal(clips.batch([5])["colour"][0], wanted.video("d")["colour"])
    np.testing.assert_array_equal(videos[2]["colour"], wanted.video("c")["colour"])
    np.testing.assert_array_equal(
        part.video("c", missing="compute", compute=how)["colour"], wanted.video("c")["colour"]
    )
    with pytest.raises(
        InvalidError, match="compute= is for missing='compute', found missing='nan'"
    ):
        part.frames("colour", compute=how)


def test_a_loader_with_processes_computes_too(paths_only: kpstore.Store, tmp_path: Path) -> None:
    view = paths_only.computed(Colours()).frames("colour")
    wanted = ingested(paths_only, tmp_path)["colour"][:]
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(again.batch(range(21))["colour"], wanted)


def test_what_cannot_be_computed_reads_as_failed_and_is_said(
    paths_only: kpstore.Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b" / "3.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 6)).save(tmp_path / "b" / "4.png")
    (tmp_path / "c.png").write_bytes(b"")
    live = paths_only.computed(Colours())
    with caplog.at_level(logging.WARNING, "kpstore"):
        status = live["colour_status"][:]
    assert np.flatnonzero(status == State.FAILED).tolist() == [8, 9, 14, 15, 16, 17]
    assert np.isnan(live["colour"][:][status == State.FAILED]).all()
    assert any("the reference picture" in r.getMessage() for r in caplog.records)
    assert live.video("b", missing="skip")["colour"].shape == (7, 3)
    with pytest.raises(
        NotFoundError, match="2 of 9 rows of 'colour' of video 'b' failed or are not extracted yet"
    ):
        live.video("b", missing="error")["colour"]


def test_two_views_share_one_model(paths_only: kpstore.Store, tmp_path: Path) -> None:
    colours = Colours()
    live = paths_only.computed(colours)
    train, dev = live.frames("colour", split="train"), live.frames("colour", split="dev")
    for n in range(5):
        train.batch([n])
        dev.batch([n])
    assert colours.opened == 1


def test_mistakes_are_one_line(paths_only: kpstore.Store, tmp_path: Path) -> None:
    with pytest.raises(
        NotFoundError,
        match=r"none of the 4 videos is in .*elsewhere: no .*a/0\.png; say with --root",
    ):
        paths_only.computed(Colours(), root=tmp_path / "elsewhere")
    with pytest.raises(
        InvalidError, match="say which one to compute with: extractor='dinov2', for example"
    ):
        paths_only.computed()
    with pytest.raises(InvalidError, match=r"options \['weights'\] are for a recipe"):
        paths_only.computed(Colours(), weights="x")
    part = ingested(paths_only, tmp_path, "ab")
    with pytest.raises(MismatchError, match=r"was made with .*1\.0.*this run has .*2\.0"):
        part.computed(Colours(scale=2.0))
    live = part.computed(Colours())
    with pytest.raises(UnsupportedError, match=r"'kpstore ingest features .*' stores the rest"):
        live._backend.begin()
    with pytest.raises(InvalidError, match="missing='drop'"):
        part.video("a", missing="drop")  # type: ignore[arg-type]


@dataclass
class SlowColours(Colours):
    """Waits in the middle of a video until it is told to go on."""

    began: Any = None
    go_on: Any = None

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        if self.began is not None:
            self.began.set()
            self.go_on.wait()
        return super().extract(images)


def test_a_process_forked_while_another_thread_computes_does_not_wait_for_it(
    paths_only: kpstore.Store, tmp_path: Path
) -> None:
    store = kpstore.create(tmp_path / "s.h5")  # an Icechunk store refuses forked processes
    with store.transaction("paths") as tx:
        tx.add_videos(Records(paths_only).all())
    slow = SlowColours(began=threading.Event(), go_on=threading.Event())
    live = store.at().computed(slow)
    thread = threading.Thread(target=lambda: live.video("a")["colour"])
    thread.start()
    try:
        slow.began.wait()
        child = os.fork()
        if child == 0:
            slow.began = None
            os._exit(0 if live.video("b")["colour"].shape == (9, 3) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        slow.go_on.set()
        thread.join()
