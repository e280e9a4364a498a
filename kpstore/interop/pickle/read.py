"""Pickles of keypoints: every form that extraction and training scripts write, read.

See also ``pickle_export``.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np

from kpstore.errors import InvalidError
from kpstore.interop.base import ImportedFeature, ImportedVideo, imported
from kpstore.interop.pickle.forms import (
    FORMS,
    MOST_WORKERS,
    WORKER_FILE,
    Contents,
    Listed,
    read_contents,
)
from kpstore.interop.pickle.rows import RowReader, Zeros
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT
from kpstore.options import Option
from kpstore.schema.array import ArraySpec
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_FACE, POINT_NAMES, FaceList, keypoints_spec


def face_keypoints_spec(face_list: FaceList) -> FeatureSpec:
    """Return the feature ``face_keypoints``: (68, 3) float32 a frame, NaN where there is no face.

    Its companion ``detected`` is (1,) bool. Points are named as the face's of ``keypoints`` are.
    """
    whole = keypoints_spec(face_list)
    return FeatureSpec(
        "face_keypoints",
        (N_FACE, 3),
        ("face_point", "space"),
        description="keypoints of the face",
        labels={
            "face_point": POINT_NAMES[:N_FACE],
            "space": whole.labels["space"],
            "face_part": ("face",),
        },
        companions=(
            ArraySpec(
                "detected",
                (1,),
                ("face_part",),
                "bool",
                description="whether the face was detected",
            ),
        ),
        attrs={key: whole.attrs[key] for key in ("convention", "face_regions", "face_list")},
    )


@dataclass(frozen=True)
class PickleImport:
    """Reads pickles of keypoints.

    Which form a file has is found out, see :data:`pickle_forms.FORMS`.

    A frame that is None has failed; a part that is None is NaN and not detected. Frames that the
    scripts dropped are not in the file and not in the store: a frame's number is in its path alone.

    Parameters
    ----------
    face_list : which mesh points the 68 face points are: a known name, or a file.
    split : of all frames, where the file names none.
    zeros : what a part (of a face file: a face) means that is all zeros, in the forms that hold
        arrays. Frames that are dicts have None for what is missing, so there zeros are values.
    """

    face_list: Annotated[str, Option("The 68 face points: phoenix, ibug, or a file.")] = "phoenix"
    split: Annotated[str, Option("Split of the frames, where the file names none.")] = ""
    zeros: Annotated[Zeros, Option("In files of arrays: what a part means that is all zeros.")] = (
        "missing"
    )

    def __post_init__(self) -> None:
        if self.zeros not in ("missing", "values"):
            raise InvalidError(f"zeros={self.zeros!r}: use 'missing' or 'values'")

    def open(self, path: Path) -> PickleDocument:
        """Load a file, or a folder of workers' or of splits' files.

        See :class:`kpstore.interop.base.Importer`.
        """
        face_list = load_face_list(self.face_list)
        return PickleDocument(path, read_contents(path), face_list, self.split, self.zeros)


@dataclass(frozen=True)
class _Plan:
    """One video: its frames' places in the list they are in."""

    video_id: str
    split: str
    listed: Listed
    places: array[int]


class PickleDocument:
    """A loaded pickle. Its contents stay in memory once; rows are made of them a video at a time.

    Parameters
    ----------
    path : for names and messages.
    contents : what was found.
    face_list, split, zeros : see :class:`PickleImport`.
    """

    def __init__(
        self, path: Path, contents: Contents, face_list: FaceList, split: str, zeros: Zeros
    ) -> None:
        self._path, self._contents, self._zeros = path, contents, zeros
        self._read_notes: list[str] = []
        self._facts: dict[str, Any] = {}
        plan = _Planner(path.stem, split)
        for listed in contents.listed:
            plan.add(listed)
        self._plans, self._plan_notes = plan.finish(), plan.notes
        self._facts = {**contents.document, **plan.facts}
        self._spec = (
            face_keypoints_spec(face_list)
            if contents.points == N_FACE
            else keypoints_spec(face_list)
        )
        self._faces = {"name": face_list.name, "sha256": face_list.sha256}
        self._stats_notes = _compare_stats(from_json(self._facts.get("stats")), contents.listed)
        if contents.form == "workers":
            self._stats_notes += _missing_workers(path) if path.is_dir() else []
            self._stats_notes += _missing_results(self._facts.get("workers", ()), contents.listed)
        shapes = _shape_kind(contents.listed)
        if shapes:
            self._facts["image_shape"] = shapes

    @property
    def name(self) -> str:
        """Name of the data set: the file's own, or the file's name."""
        info = self._facts.get("dataset_info")
        named = info.get("name") if isinstance(info, dict) else None
        return named if isinstance(named, str) and named else self._path.stem

    @property
    def features(self) -> Sequence[ImportedFeature]:
        """Keypoints, or face keypoints."""
        return [ImportedFeature(self._spec, imported("pickle", self._facts, face_list=self._faces))]

    @property
    def n_frames(self) -> int:
        """Frames without those that come twice."""
        return sum(len(plan.places) for plan in self._plans)

    @property
    def notes(self) -> Sequence[str]:
        """The form that was found, and what cannot be carried over."""
        form = self._contents.form
        first = f"read as {form}: {FORMS[form]}"
        return [
            first,
            *self._contents.notes,
            *self._plan_notes,
            *self._stats_notes,
            *self._read_notes,
        ]

    def videos(self) -> Iterator[ImportedVideo]:
        """Make rows of the frames, a video at a time.

        See :class:`kpstore.interop.base.Document`.
        """
        reader = RowReader(self._spec, self._zeros)
        self._read_notes = []
        for plan in self._plans:
            yield self._video(plan, reader)
        self._read_notes = reader.notes()

    def _video(self, plan: _Plan, reader: RowReader) -> ImportedVideo:
        listed = plan.listed
        if listed.paths is None:
            paths = tuple(f"{self._path.name}#{n}" for n in plan.places)
        else:
            paths = tuple(slashed(listed.paths[n]) for n in plan.places)
            reader.count_gaps(paths)
        rows, failed, size = reader.read(listed, plan.places)
        record = VideoRecord(plan.video_id, plan.split, paths, width=size[1], height=size[0])
        name = self._spec.name
        return ImportedVideo(record, {name: rows}, {name: failed} if failed else {})


def slashed(path: str) -> str:
    """Return a path with forward slashes."""
    return path.replace("\\", "/") if "\\" in path else path


class _Planner:
    """Groups frames by video, in the order in which videos first come."""

    def __init__(self, stem: str, split: str) -> None:
        self._stem, self._split = stem, split
        self._groups: list[tuple[Listed, str, dict[str, array[int]]]] = []
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
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
                f"{listed.place}: its split is {split!r}; the split given, {self._split!r}, is not "
                "used"
            )
        if twice:
            self.notes.append(
                f"{listed.place}: {twice} frames whose image path came before; the first of each "
                "is kept"
            )
        if runs != len(videos):
            self.notes.append(
                f"{listed.place}: videos lie interleaved ({runs} runs of {len(videos)} videos); "
                "frames are stored video by video, so that their order differs from the file's"
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
            empty = sum(not text for text in listed.video_ids)
            if empty:
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

    def finish(self) -> list[_Plan]:
        """Return the videos; an id that two splits have gets its split before it."""
        if self._back:
            kind = "mixed" if self._forward else "backslashes"
            self.facts["paths"] = kind
            again = (
                "which of them it was is lost"
                if self._forward
                else "export pickle --paths as_imported writes them"
            )
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
                plans.append(_Plan(name, split, listed, places))
        if renamed:
            first = next(iter(renamed))
            self.notes.append(
                f"{len(shared)} video ids are in several splits; they are stored as {first!r} and "
                "so on"
            )
            self.facts["renamed_videos"] = renamed
        return plans


def _folder_names(listed: Listed, stem: str, notes: list[str]) -> list[str]:
    """Return for each frame the name of the folder its image is in.

    The whole folder where two have that name.
    """
    folders = [slashed(path).rpartition("/")[0] for path in listed.paths or ()]
    parents: dict[str, set[str]] = {}
    for folder in dict.fromkeys(folders):
        parents.setdefault(PurePosixPath(folder).name, set()).add(folder)
    several = {name for name, found in parents.items() if len(found) > 1}
    if several:
        notes.append(
            f"{listed.place}: {len(several)} names are each of several folders; those videos have "
            "the whole folder's"
        )
    notes.append(f"{listed.place}: no video ids; a video is the folder that its images are in")
    names = {
        f: f if PurePosixPath(f).name in several else PurePosixPath(f).name
        for f in dict.fromkeys(folders)
    }
    return [names[folder] or stem for folder in folders]


def _compare_stats(stats: Any, listed: Sequence[Listed]) -> list[str]:
    """Return how the file's own statistics differ from what it holds."""
    notes = []
    for group in listed:
        own = (
            stats.get(group.split or UNSPLIT, stats if "success" in stats else None)
            if isinstance(stats, dict)
            else 0
        )
        if not isinstance(own, dict):
            continue
        held = sum(frame is not None for frame in group.frames)
        if own.get("success", held) != held:
            notes.append(
                f"{group.place}: the file's stats say that {own['success']} frames succeeded, it "
                f"holds {held}; they are kept as they are (export pickle --stats as_imported)"
            )
        total = own.get("total")
        if isinstance(total, int | np.integer) and total > len(group.frames):
            notes.append(
                f"{group.place}: {total - len(group.frames)} of {total} frames were dropped when "
                "this was made; they are not in the file"
            )
    return notes


def _missing_workers(folder: Path) -> list[str]:
    """Return which workers left no file, by the numbers of the others.

    A missing last one cannot be seen.
    """
    there = {int(match[1]) for path in folder.iterdir() if (match := WORKER_FILE.match(path.name))}
    gone = [
        number for number in range(min(max(there, default=0), MOST_WORKERS)) if number not in there
    ]
    if not gone:
        return []
    shown = ", ".join(map(str, gone[:10])) + (", …" if gone[10:] else "")
    return [
        f"of workers 0 to {max(there)} these left no file: {shown}; their part of the frames is "
        "not here"
    ]


def _missing_results(workers: Sequence[Any], listed: Sequence[Listed]) -> list[str]:
    """Return how many frames the workers' own totals count and their files do not hold."""
    totals = [
        total
        for facts in workers
        if isinstance(total := from_json(facts).get("total_images"), int | np.integer)
    ]
    held, total = sum(len(group.frames) for group in listed), sum(map(int, totals))
    if len(totals) != len(workers) or total <= held:
        return []
    return [
        f"the workers' files count {total} frames and hold {held}: {total - held} are not in them, "
        "because nothing was found in them or because they were lost"
    ]


def _shape_kind(listed: Sequence[Listed]) -> str:
    """Return how the file has its image shapes: ``"tuple"``, ``"array"`` or not at all."""
    for group in listed:
        for frame in group.frames:
            if isinstance(frame, dict) and frame.get("image_shape") is not None:
                return "array" if isinstance(frame["image_shape"], np.ndarray) else "tuple"
    return ""
