"""Grouping the frames of a pickle by video, in the order in which the videos first appear."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from kpstore.interop.pickle.forms import Listed
from kpstore.interop.splits import UNSPLIT


@dataclass(frozen=True)
class VideoPlan:
    """One video, with the positions of its frames in their list."""

    video_id: str
    split: str
    listed: Listed
    places: array[int]


def slashed(path: str) -> str:
    """Return a path with forward slashes."""
    return path.replace("\\", "/")


class Planner:
    """Groups frames by video.

    Parameters
    ----------
    stem : name of the file, for videos without a name.
    split : the split of frames whose file names none.
    """

    def __init__(self, stem: str, split: str) -> None:
        self._stem, self._split = stem, split
        self._groups: list[tuple[Listed, str, dict[str, array[int]]]] = []
        self.notes: list[str] = []
        self.facts: dict[str, object] = {}
        self._back = self._forward = 0

    def add(self, listed: Listed) -> None:
        """Take the frames of one split."""
        videos: dict[str, array[int]] = {}
        seen: set[str] = set()
        last, runs, twice = None, 0, 0
        ids = self._ids(listed)
        for number in range(len(listed.frames)):
            if listed.paths is not None:
                path = slashed(listed.paths[number])
                if path in seen:
                    twice += 1
                    continue
                seen.add(path)
            video_id = ids[number]
            videos.setdefault(video_id, array("q")).append(number)
            runs += video_id != last
            last = video_id
        split = listed.split or self._split
        if listed.split and self._split:
            self.notes.append(
                f"{listed.place}: its split is {split!r}; the given split, {self._split!r}, is not "
                "used"
            )
        if twice:
            self.notes.append(
                f"{listed.place}: {twice} frames whose image path came before; the first of each "
                "is kept"
            )
        if runs != len(videos):
            self.notes.append(
                f"{listed.place}: videos are interleaved ({runs} runs of {len(videos)} videos); "
                "frames are stored video by video, so their order differs from that of the file"
            )
        if listed.paths is None and len(listed.frames):
            self.notes.append(
                f"{listed.place}: no image paths; frames are called FILE#0, FILE#1, …"
            )
        self._count_slashes(listed.paths or ())
        self._groups.append((listed, split, videos))

    def _ids(self, listed: Listed) -> Sequence[str]:
        if listed.video_ids is not None:
            self._count_slashes(listed.video_ids)
            if empty := sum(not text for text in listed.video_ids):
                self.notes.append(
                    f"{listed.place}: {empty} empty video ids; those frames are of video "
                    f"{self._stem!r}"
                )
            return [slashed(text) or self._stem for text in listed.video_ids]
        if listed.paths is None:
            return [self._stem] * len(listed.frames)
        self.facts["video_ids"] = "none"
        return _folder_names(listed, self._stem, self.notes)

    def _count_slashes(self, texts: Sequence[str]) -> None:
        self._back += sum("\\" in text for text in texts)
        self._forward += sum("/" in text for text in texts)

    def finish(self) -> list[VideoPlan]:
        """Return the videos; an id that several splits have is prefixed with the split."""
        if self._back:
            kind, again = "backslashes", "export pickle --paths as_imported writes them again"
            if self._forward:
                kind, again = "mixed", "which paths had them is not stored"
            self.facts["paths"] = kind
            self.notes.append(
                f"backslashes in {self._back} paths and ids became forward slashes; {again}"
            )
        counts = Counter(video_id for _, _, videos in self._groups for video_id in videos)
        shared = {video_id for video_id, n in counts.items() if n > 1}
        plans, renamed = [], {}
        for listed, split, videos in self._groups:
            for video_id, places in videos.items():
                name = f"{split or UNSPLIT}/{video_id}" if video_id in shared else video_id
                if name != video_id:
                    renamed[name] = video_id
                plans.append(VideoPlan(name, split, listed, places))
        if renamed:
            first = next(iter(renamed))
            self.notes.append(
                f"{len(shared)} video ids are in several splits; they are stored as {first!r} and "
                "so on"
            )
            self.facts["renamed_videos"] = renamed
        return plans


def _folder_names(listed: Listed, stem: str, notes: list[str]) -> list[str]:
    """Return the name of the folder of each image, or its path if other folders have that name."""
    folders = [slashed(path).rpartition("/")[0] for path in listed.paths or ()]
    short = {folder: PurePosixPath(folder).name for folder in dict.fromkeys(folders)}
    several = {name for name, count in Counter(short.values()).items() if count > 1}
    if several:
        notes.append(
            f"{listed.place}: {len(several)} names belong to several folders each; those videos "
            "are named by the whole path"
        )
    notes.append(f"{listed.place}: no video ids; each folder of images is a video")
    names = {folder: folder if name in several else name for folder, name in short.items()}
    return [names[folder] or stem for folder in folders]
