"""RWTH-PHOENIX-Weather 2014 T as released: folders of PNG frames, a list per split."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from kpstore.errors import InvalidError, NotFoundError
from kpstore.options import Option
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import Frame, Listing
from kpstore.sources.images import image_size, is_image, natural_key, read_images, same_number
from kpstore.sources.selection import MaxVideos, Splits, check_splits, complete_source, part_of
from kpstore.user_files import parse_table, read_text, spellings

FRAMES = "features/fullFrame-210x260px"
COLUMNS = {"speaker": "speaker", "orth": "gloss", "translation": "text"}
"""Columns of the lists, and what they are called in a store."""

FPS = 25.0
"""Frame rate of the broadcasts."""

_SPLIT_ORDER = {"train": 0, "dev": 1, "test": 2}


@dataclass(frozen=True)
class PhoenixSource:
    """PHOENIX-2014-T on disk.

    Videos come split by split (train, dev, test, then others by name), within a split sorted by
    name; the lists themselves are not sorted. A video's id is its name.

    Parameters
    ----------
    root : the folder that holds ``features`` and ``annotations``, or one that holds a
        ``PHOENIX-2014-T`` folder.
    splits : only these.
    max_videos_per_split : only the first ones of each split.
    """

    summary: ClassVar[str] = (
        "Extract features from RWTH-PHOENIX-Weather 2014 T. Repeat the command to continue."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --workers 4",
        "kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --split train dev "
        "--max-videos-per-split 100",
        "kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --dry-run",
    )

    root: Annotated[Path, Option("Folder of PHOENIX-2014-T.", "ROOT", argument=True)]
    splits: Splits = None
    max_videos_per_split: MaxVideos = None
    name: str = field(default="PHOENIX-2014-T", repr=False)

    def __post_init__(self) -> None:
        complete_source(self, "root")

    @property
    def provenance(self) -> Mapping[str, object]:
        """Which data set, and which part of it."""
        return {"kind": "phoenix", **part_of(self)}

    def is_there(self) -> bool:
        """Whether the folder is laid out as this data set.

        Looks no further than for its folder of frames.
        """
        return self._find() is not None

    def _find(self) -> Path | None:
        release = self.root / "PHOENIX-2014-T-release-v3" / "PHOENIX-2014-T"
        candidates = (self.root, self.root / "PHOENIX-2014-T", release)
        return next((candidate for candidate in candidates if (candidate / FRAMES).is_dir()), None)

    def _base(self) -> Path:
        base = self._find()
        if base is not None:
            return base
        found = sorted(os.listdir(self.root))[:5] if self.root.is_dir() else []
        what = f"holds {', '.join(found) or 'nothing'}" if self.root.is_dir() else "does not exist"
        raise NotFoundError(
            f"no PHOENIX-2014-T at {self.root}: it {what}; expected the folder that holds {FRAMES}"
        )

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List videos and annotations.

        A video in a list but not on disk, or the reverse, is a problem.
        """
        base = self._base()
        there = {path.name for path in (base / FRAMES).iterdir() if path.is_dir()}
        wanted = there if self.splits is None else self.splits
        check_splits(wanted, sorted(there), base / FRAMES)
        videos: list[VideoRecord] = []
        problems: list[str] = []
        for split in sorted(wanted, key=lambda split: (_SPLIT_ORDER.get(split, 3), split)):
            for video in self._scan_split(base, split, problems):
                videos.append(video)
                if on_video is not None:
                    on_video(len(videos))
        _check_unique(videos)
        return Listing(tuple(videos), tuple(problems))

    def _scan_split(self, base: Path, split: str, problems: list[str]) -> Iterator[VideoRecord]:
        folder = base / FRAMES / split
        on_disk = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
        annotations = _read_list(base, split, spellings(on_disk), problems)
        names = sorted(on_disk | set(annotations))[: self.max_videos_per_split]
        for name in names:
            if name not in on_disk:
                problems.append(
                    f"{split}: video {name!r} is in the list, but {FRAMES}/{split}/{name} is not "
                    "on disk"
                )
                continue
            if annotations and name not in annotations:
                problems.append(
                    f"{split}: video {name!r} is on disk, but not in the list of annotations"
                )
            video = _video(base, split, name, annotations.get(name, {}), problems)
            if video is None:
                problems.append(
                    f"{split}: video {name!r} has no pictures in {FRAMES}/{split}/{name}"
                )
            else:
                yield video

    def read_frames(self, video: VideoRecord, *, skip: Collection[int] = ()) -> Iterator[Frame]:
        """Yield the frames of a video; see :class:`kpstore.sources.base.Source`."""
        return read_images(self._base(), video.frame_paths, skip)


def _read_list(
    base: Path, split: str, spelled: Callable[[str], str], problems: list[str]
) -> dict[str, dict[str, str]]:
    """Return annotations by video.

    A list that is not there, names no videos or lacks annotations is a problem; one without names,
    with a row that was cut off, or with a name that occurs twice is an error.

    Parameters
    ----------
    spelled : gives a name as its folder spells it.
    """
    path = base / "annotations" / "manual" / f"PHOENIX-2014-T.{split}.corpus.csv"
    if not path.is_file():
        problems.append(f"{split}: no list of annotations at {path.relative_to(base).as_posix()}")
        return {}
    table = parse_table(read_text(path), str(path))
    places = {column: table.column(column) for column in ("name", *COLUMNS)}
    missing = [column for column, place in places.items() if place is None]
    name = places.pop("name")
    if name is None or len(missing) == len(COLUMNS):
        raise InvalidError(
            f"{path}: column {missing[0]!r} is missing; found {table.columns}, need name, "
            f"{', '.join(COLUMNS)} separated by '|'"
        )
    problems += [f"{split}: the list of annotations has no column {column!r}" for column in missing]
    if not table.rows:
        problems.append(f"{split}: the list of annotations names no videos")
    found: dict[str, dict[str, str]] = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        video = spelled(row[name])
        if not video or video in found:
            what = f"names video {video!r} again" if video else "names no video"
            raise InvalidError(f"{path}: line {line} {what}")
        found[video] = {
            COLUMNS[column]: row[place] for column, place in places.items() if place is not None
        }
    return found


def _video(
    base: Path, split: str, name: str, annotations: dict[str, str], problems: list[str]
) -> VideoRecord | None:
    """Return a video from its folder, or from the folder ``1`` in it that the lists name."""
    for folder in (f"{FRAMES}/{split}/{name}", f"{FRAMES}/{split}/{name}/1"):
        if not (base / folder).is_dir():
            continue
        files = sorted(
            (e.name for e in os.scandir(base / folder) if is_image(e.name)), key=natural_key
        )
        if files:
            problems += same_number(f"{folder}/", files)
            width, height = image_size(base / folder / files[0])
            paths = tuple(f"{folder}/{file}" for file in files)
            return VideoRecord(name, split, paths, FPS, width, height, annotations)
    return None


def _check_unique(videos: list[VideoRecord]) -> None:
    seen: dict[str, str] = {}
    for video in videos:
        if seen.setdefault(video.id, video.split) != video.split:
            raise InvalidError(
                f"video {video.id!r} is in two splits, {seen[video.id]!r} and {video.split!r}; "
                "remove one"
            )
