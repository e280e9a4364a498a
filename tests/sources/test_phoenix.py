from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpstore.errors import InvalidError, NotFoundError
from kpstore.sources.base import FrameError
from kpstore.sources.phoenix import FRAMES, PhoenixSource

HEADER = "name|video|start|end|speaker|orth|translation"
LIST = "annotations/manual/PHOENIX-2014-T.dev.corpus.csv"


def add_video(root: Path, split: str, name: str, numbers: range = range(1, 4)) -> None:
    folder = root / FRAMES / split / name
    folder.mkdir(parents=True)
    for number in numbers:
        Image.new("RGB", (21, 26), (number, 0, 0)).save(folder / f"images{number:04d}.png")


def write_list(root: Path, split: str, names: list[str], header: str = HEADER) -> None:
    folder = root / "annotations" / "manual"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'{name}|{name}/1/*.png|-1|-1|Signer01|GLOSS "{name}|text' for name in names]
    (folder / f"PHOENIX-2014-T.{split}.corpus.csv").write_text(
        "\n".join([header, *rows]) + "\n", encoding="utf-8"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, names in {"train": ["b", "a", "ü"], "dev": ["d"]}.items():
        for name in names:
            add_video(tmp_path, split, name)
        write_list(tmp_path, split, names)
    return tmp_path


def test_videos_come_split_by_split_sorted_by_name_though_the_list_is_not(root: Path) -> None:
    listing = PhoenixSource(root).scan()
    assert [(v.split, v.id) for v in listing.videos] == [
        ("train", "a"),
        ("train", "b"),
        ("train", "ü"),
        ("dev", "d"),
    ]
    assert listing.problems == ()
    video = listing.videos[0]
    assert video.frame_paths[0] == f"{FRAMES}/train/a/images0001.png"
    assert (video.width, video.height, video.fps) == (21, 26, 25.0)
    assert video.annotations == {"speaker": "Signer01", "gloss": 'GLOSS "a', "text": "text"}


def test_frames_are_read_in_order_and_left_out_frames_are_not_touched(root: Path) -> None:
    source = PhoenixSource(root)
    video = source.scan().videos[0]
    frames = list(source.read_frames(video, skip={1}))
    assert [f[0, 0, 0] if isinstance(f, np.ndarray) else None for f in frames] == [1, None, 3]
    assert isinstance(frames[1], FrameError)


def test_frame_ten_comes_after_frame_nine(root: Path) -> None:
    folder = root / FRAMES / "train" / "a"
    for old in folder.iterdir():
        old.unlink()
    for number in (9, 10, 100):
        Image.new("RGB", (2, 2)).save(folder / f"images{number}.png")
    paths = PhoenixSource(root).scan().videos[0].frame_paths
    assert [path.rpartition("images")[2] for path in paths] == ["9.png", "10.png", "100.png"]


def test_the_folder_above_will_do_too(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    above = tmp_path_factory.mktemp("above")
    root.rename(above / "PHOENIX-2014-T")
    assert len(PhoenixSource(above).scan().videos) == 4


def test_the_folder_named_1_of_the_lists_is_taken_where_it_exists(root: Path) -> None:
    add_video(root, "train", "e/1")
    write_list(root, "train", ["a", "b", "ü", "e"])
    listing = PhoenixSource(root).scan()
    assert (
        next(v for v in listing.videos if v.id == "e").frame_paths[0].endswith("e/1/images0001.png")
    )


def test_listed_but_not_on_disk_and_the_reverse_are_both_named(root: Path) -> None:
    add_video(root, "train", "extra")
    write_list(root, "train", ["a", "b", "ü", "gone"])
    (root / FRAMES / "dev" / "empty").mkdir()
    write_list(root, "dev", ["d", "empty"])
    listing = PhoenixSource(root).scan()
    text = "\n".join(listing.problems)
    assert "'gone' is in the list, but" in text
    assert "'extra' is on disk, but not in the list" in text
    assert "'empty' has no pictures" in text
    assert len(listing.problems) == 3
    assert {v.id for v in listing.videos} == {"a", "b", "ü", "d", "extra"}


def test_a_missing_list_is_a_problem(root: Path) -> None:
    (root / "annotations/manual/PHOENIX-2014-T.dev.corpus.csv").unlink()
    assert "dev: no list of annotations" in PhoenixSource(root).scan().problems[0]


def test_a_list_without_its_columns_names_file_and_columns(root: Path) -> None:
    write_list(root, "dev", ["d"], header=HEADER.replace("name", "title"))
    with pytest.raises(InvalidError, match=r"dev\.corpus\.csv: column 'name' is missing; found"):
        PhoenixSource(root).scan()


def test_a_list_that_is_no_utf8_is_one_line(root: Path) -> None:
    (root / "annotations" / "manual" / "PHOENIX-2014-T.dev.corpus.csv").write_bytes(
        HEADER.encode() + b"\nd|\xfc|\n"
    )
    with pytest.raises(InvalidError, match=r"dev\.corpus\.csv is not text in UTF-8"):
        PhoenixSource(root).scan()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("d|v|-1|-1|S1|G|t\ne|v|-1|-1|S1", "line 3 has 5 cells, the header has 7"),
        ("d|v|-1|-1|S1|G|t\nd|v|-1|-1|S2|H|u\n", "line 3 names video 'd' again"),
        (" |v|-1|-1|S1|G|t\n", "line 2 names no video"),
    ],
)
def test_a_list_that_was_cut_or_repeats_itself_is_refused(root: Path, rows: str, says: str) -> None:
    (root / LIST).write_text(f"{HEADER}\n{rows}", encoding="utf-8")
    with pytest.raises(InvalidError, match=says):
        PhoenixSource(root).scan()


def test_lists_as_a_spreadsheet_saves_them(root: Path) -> None:
    row = ["d", "d/1/*.png", "-1", "-1", "S1", "A B", 'er sagt; "ja"']
    cells = ";".join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row)
    text = f"sep=;\r\n{HEADER.replace('|', ';')}\r\n{cells}\r\n;;;;;;\r\n"
    (root / LIST).write_text(text, encoding="utf-16", newline="")
    found = {
        video.id: video.annotations for video in PhoenixSource(root, splits=("dev",)).scan().videos
    }
    assert found["d"] == {"speaker": "S1", "gloss": "A B", "text": 'er sagt; "ja"'}


def test_names_may_be_spelled_otherwise_than_on_the_disk(root: Path) -> None:
    write_list(root, "train", ["a", "b ", "u\u0308"], header=HEADER.title())
    listing = PhoenixSource(root, splits=("train",)).scan()
    assert listing.problems == ()
    assert [video.id for video in listing.videos] == ["a", "b", "ü"]
    assert {video.annotations["text"] for video in listing.videos} == {"text"}
    write_list(root, "train", ["a", "b", "ü", "u\u0308"])
    with pytest.raises(InvalidError, match="line 5 names video 'ü' again"):
        PhoenixSource(root).scan()


def test_a_list_without_translations_is_a_problem_and_not_the_end(root: Path) -> None:
    (root / LIST).write_text("name|speaker|orth\nd|S1|A B\n", encoding="utf-8")
    listing = PhoenixSource(root, splits=("dev",)).scan()
    assert listing.problems == ("dev: the list of annotations has no column 'translation'",)
    assert listing.videos[0].annotations == {"speaker": "S1", "gloss": "A B"}


def test_a_list_of_nothing_but_a_header_is_a_problem(root: Path) -> None:
    (root / LIST).write_text(f"{HEADER}\n", encoding="utf-8")
    listing = PhoenixSource(root).scan()
    assert listing.problems == ("dev: the list of annotations names no videos",)


def test_splits_and_first_videos_only(root: Path) -> None:
    listing = PhoenixSource(root, splits=("train",), max_videos_per_split=2).scan()
    assert [v.id for v in listing.videos] == ["a", "b"]


def test_wrong_places_say_what_is_there(root: Path) -> None:
    with pytest.raises(NotFoundError, match="it does not exist"):
        PhoenixSource(root / "nowhere").scan()
    with pytest.raises(
        NotFoundError, match=r"it holds manual; expected the folder that holds features/fullFrame"
    ):
        PhoenixSource(root / "annotations").scan()
    with pytest.raises(NotFoundError, match=r"split 'test' not found in .*\['dev', 'train'\]"):
        PhoenixSource(root, splits=("test",)).scan()
    with pytest.raises(InvalidError, match="must be at least 1"):
        PhoenixSource(root, max_videos_per_split=0)


def test_a_name_in_two_splits_is_refused(root: Path) -> None:
    add_video(root, "dev", "a")
    with pytest.raises(InvalidError, match="'a' is in two splits, 'train' and 'dev'"):
        PhoenixSource(root).scan()


def test_sources_pickle(root: Path) -> None:
    source = PhoenixSource(root, splits=("dev",))
    assert pickle.loads(pickle.dumps(source)) == source
