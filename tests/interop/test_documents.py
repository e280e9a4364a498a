"""What every format's documents have in common: they can be read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import kpstore
from kpstore import plugins
from kpstore.errors import InvalidError
from kpstore.interop.base import ImportedVideo, NotedDocument, Options
from kpstore.interop.merge import Merged
from kpstore.interop.transfer import get_format
from tests.interop import (
    test_embeddings,
    test_hdf5,
    test_json,
    test_pickle,
    test_pose,
    test_slt,
)
from tests.interop.formats import same
from tests.interop.test_merge import store_of


def embeddings(folder: Path) -> Path:
    test_embeddings.write(folder, "whole", 3, crops=4)
    test_embeddings.write(folder, "neither", None)
    test_embeddings.write(folder, "torn", 2)
    (folder / "torn_embedding.npz").write_bytes(b"PK torn")
    return folder


def hdf5(folder: Path) -> Path:
    values = np.full((4, 143, 3), 0.1)
    return test_hdf5.foreign(folder / "x.h5", keypoints=values, other=np.zeros((2, 2)))


def json(folder: Path) -> Path:
    person = test_json.person(1, 2)
    person["video_data"][0]["image_path"] = "a\\0.jpg"
    return test_json.write(folder / "x.json", {"Ada": person})


def npz(folder: Path) -> Path:
    arrays = {"keypoints": np.zeros((4, 143, 3), np.float32), "video_ids": list("abab")}
    np.savez(folder / "train_keypoints.npz", image_paths=list("0123"), **arrays)
    (folder / "train_stats.json").write_text('{"num_samples": 5}')
    return folder


def pickle(folder: Path) -> Path:
    raw = test_pickle.raw_of(train={"a": 2, "b": 1})
    raw["train"]["keypoints"][0]["tail"] = None
    return test_pickle.write(folder / "x.pkl", raw)


def pose(folder: Path) -> Path:
    test_pose.random_pose(folder / ".hidden.pose", 1)
    test_pose.random_pose(folder / "a.pose", 2, people=2, fps=0)
    return folder


def slt(folder: Path) -> Path:
    entries = [{**test_slt.entry(name, np.ones((2, 3))), "n": 1, "text": None} for name in "ab"]
    return test_slt.write(folder / "x.train", entries)


MADE: dict[str, Callable[[Path], Path]] = {
    function.__name__: function for function in (embeddings, hdf5, json, npz, pickle, pose, slt)
}


def plain(video: ImportedVideo) -> Any:
    rows = {
        name: (found.values, dict(found.companions)) for name, found in sorted(video.rows.items())
    }
    failed = {name: dict(frames) for name, frames in video.failed_frames.items()}
    return [vars(video.record), rows, failed, dict(video.failed)]


def check_read_again(document: Any) -> None:
    first = [plain(video) for video in document.videos()]
    notes = list(document.notes)
    next(document.videos())  # a reading that is given up
    assert notes
    assert len(first) > 0
    assert same([plain(video) for video in document.videos()], first)
    assert list(document.notes) == notes


@pytest.mark.parametrize("name", plugins.names("kpstore.formats"))
def test_a_second_reading_gives_the_same_videos_and_notes(tmp_path: Path, name: str) -> None:
    importer: Any = get_format(name).importer
    check_read_again(importer().open(MADE[name](tmp_path)))


def test_an_export_of_ours_can_be_read_again(tmp_path: Path) -> None:
    store = kpstore.open(store_of("ab"))
    kpstore.export_file(store, tmp_path / "x.h5", "hdf5")
    document: Any = get_format("hdf5").importer().open(tmp_path / "x.h5")  # type: ignore[misc]
    first = [plain(video) for video in document.videos()]
    assert same([plain(video) for video in document.videos()], first)


def test_merged_stores_can_be_read_again() -> None:
    stores = [kpstore.open(store_of("ab", change=change)) for change in (0.0, 1.0)]
    check_read_again(Merged(stores, ["one", "two"], "first"))


def test_words_that_a_field_does_not_know_are_refused() -> None:
    class Coloured(Options):
        colour: Literal["red", "green"] | None = None
        name = "any"

    assert Coloured().colour is None
    odd = Coloured()
    odd.colour = "blue"  # type: ignore[assignment]
    with pytest.raises(InvalidError, match="colour='blue': use 'red' or 'green'"):
        odd.__post_init__()


def test_notes_of_the_opening_stay_and_those_of_a_reading_do_not() -> None:
    class Noting(NotedDocument):
        def _read(self) -> Any:
            self.count("odd videos", 2)
            self.note("a line")
            yield from ()

    document = Noting()
    document.note("opened")
    assert document.notes == ["opened"]
    for _ in range(2):
        assert list(document.videos()) == []
        assert document.notes == ["opened", "2 odd videos", "a line"]
