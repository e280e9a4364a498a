from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kpstore.sources.base import FrameError
from kpstore.sources.images import image_size, is_image, natural_key, read_image


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["frame10.png", "frame9.png", "frame010.png", "a.png"]
    assert sorted(names, key=natural_key)[:2] == ["a.png", "frame9.png"]


def test_a_picture_is_read_as_rgb_whatever_its_mode(tmp_path: Path) -> None:
    Image.new("P", (4, 3), 0).save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")
    assert isinstance(image, np.ndarray)
    assert image.shape == (3, 4, 3)
    assert image.dtype == np.uint8


def test_a_truncated_picture_is_an_error_and_never_half_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "whole.png"
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    for kept in (0, 7, 40, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:kept])
        result = read_image(path)
        assert isinstance(result, FrameError), kept
        assert "whole.png" not in result.reason
        assert "\n" not in result.reason


def test_a_missing_file_and_a_text_file_say_so(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    assert "no such file" in read_image(tmp_path / "gone.png").reason
    assert "not a picture" in read_image(tmp_path / "text.png").reason
    assert image_size(tmp_path / "text.png") == (0, 0)


def test_hidden_files_are_no_pictures() -> None:
    assert is_image("a.PNG")
    assert not is_image("._a.png")
