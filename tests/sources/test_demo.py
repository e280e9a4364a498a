from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kpstore.errors import ExistsError
from kpstore.sources.demo import write_demo_dataset
from kpstore.sources.phoenix import PhoenixSource


def test_the_demo_is_a_sound_phoenix_data_set_in_three_splits(tmp_path: Path) -> None:
    source = PhoenixSource(write_demo_dataset(tmp_path / "demo", videos=1, frames=3))
    listing = source.scan()
    assert listing.problems == ()
    assert [v.split for v in listing.videos] == ["train", "dev", "test"]
    first, *_, last = source.read_frames(listing.videos[0])
    assert first.shape == (260, 210, 3)
    assert np.abs(first.astype(int) - last).mean() > 1, "the camera moves"


def test_it_writes_the_same_pictures_again_and_leaves_other_folders_alone(tmp_path: Path) -> None:
    one = write_demo_dataset(tmp_path / "one", videos=1, frames=2)
    two = write_demo_dataset(tmp_path / "two", videos=1, frames=2)
    for path in one.rglob("*.png"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    assert write_demo_dataset(one) == one
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ExistsError, match="not empty; choose another folder"):
        write_demo_dataset(tmp_path / "mine")
