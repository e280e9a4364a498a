"""Fields of a record: values of tables and other libraries are stored, or refused in one line."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kpstore.errors import InvalidError
from kpstore.schema.index import VideoRecord


def record(**given: Any) -> VideoRecord:
    return VideoRecord(**{"id": "a", "split": "train", "frame_paths": ("a/1.png",), **given})


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, ""), (math.nan, ""), (np.float32("nan"), ""), (pd.NA, ""), (pd.NaT, ""),
        (Decimal("nan"), ""),
        (3, "3"), (np.int64(3), "3"), (2.5, "2.5"), (np.float64(2.5), "2.5"), (True, "True"),
        (np.bool_(0), "False"),
        (np.str_("x"), "x"),
        ("Grüße\n👩‍🦰", "Grüße\n👩‍🦰"), (datetime.date(2024, 2, 29), "2024-02-29"),
        (pd.Timestamp("2024-02-29 12:30"), "2024-02-29T12:30:00"),
        (np.datetime64("2024-02-29"), "2024-02-29"),
    ],
)  # fmt: skip
def test_cells_of_a_table_become_text(cell: Any, text: str) -> None:
    found = record(annotations={"gloss": cell}).annotations["gloss"]
    assert (found, type(found)) == (text, str)
    assert record(split=cell).split == text


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ([Path("a") / "1.png"], ("a/1.png",)),
        (np.array(["1.png", "2.png"]), ("1.png", "2.png")),
        ((PureWindowsPath("a\\1.png"),), ("a/1.png",)),
        ((f"clip.mp4#{n}" for n in range(2)), ("clip.mp4#0", "clip.mp4#1")),
        ([], ()),
        (["", ""], ("", "")),
    ],
    ids=["path", "array", "windows", "generator", "none", "unknown"],
)
def test_paths_become_text(given: Any, paths: tuple[str, ...]) -> None:
    found = record(frame_paths=given).frame_paths
    assert found == paths
    assert all(type(path) is str for path in found)


def test_numbers_become_what_a_store_keeps() -> None:
    assert [record(id=n).id for n in (5, np.int32(5), "5")] == ["5"] * 3
    assert [record(id=odd).id for odd in (" a ", "a\\b", "a\n\t", np.str_("字"))] == [
        " a ",
        "a\\b",
        "a\n\t",
        "字",
    ]
    assert [record(fps=f).fps for f in (25, np.float32(25), Fraction(25), Decimal(25))] == [
        25.0
    ] * 4
    assert all(math.isnan(record(fps=f).fps) for f in (None, math.nan, pd.NA))
    assert [record(width=w).width for w in (210, np.int16(210), 210.0)] == [210] * 3
    assert [record(height=h).height for h in (None, math.nan, pd.NA, 0)] == [0] * 4
    assert record(annotations=None).annotations == {}
    assert record(annotations=pd.Series({"gloss": "A"}).to_dict()).annotations == {"gloss": "A"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"id": ""}, "needs an id"),
        *(({"id": odd}, "video id: ") for odd in (None, math.nan, 5.0, True, b"a")),
        ({"id": "\ud800"}, "is not valid text"),
        *(({"split": odd}, "video 'a', split: ") for odd in (b"train", ["train"], "\ud800")),
        (
            {"frame_paths": "clip.mp4"},
            "video 'a', frame_paths: 'clip.mp4' is not a sequence; give one path for each",
        ),
        *(
            ({"frame_paths": odd}, "video 'a', frame_paths: ")
            for odd in (Path("a"), b"a", None, 7, {"a"}, {}, np.array("a"))
        ),
        *(
            ({"frame_paths": ("ok", odd)}, "frame_paths: frame 1: ")
            for odd in (None, 7, b"a", math.nan, "\ud800")
        ),
        *(
            ({"fps": odd}, "video 'a', fps: ")
            for odd in (-1, 0, math.inf, 1e9, 10**400, "25", True, [25], 1j)
        ),
        *(
            ({"width": odd}, "video 'a', width: ")
            for odd in (-1, 2**40, 210.5, math.inf, "210", True)
        ),
        *(({"height": odd}, "video 'a', height: ") for odd in (-1, 2**40, b"1")),
        *(
            ({"annotations": odd}, "video 'a', annotations: ")
            for odd in ("x", [("gloss", "x")], {5: "x"}, {None: "x"})
        ),
        *(
            ({"annotations": {"gloss": odd}}, "video 'a', annotations: 'gloss': ")
            for odd in (b"x", ["x"], {}, object(), "\udfff", np.zeros(2))
        ),
    ],
)  # fmt: skip
def test_anything_else_is_one_line_that_names_video_and_column(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        record(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
