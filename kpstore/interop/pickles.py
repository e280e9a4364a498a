"""Pickles of keypoints: every form that extraction and training scripts write, read; see also ``pickle_export``."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import Format, ImportedFeature, ImportedVideo, imported
from kpstore.interop.pickle_export import PickleExport
from kpstore.interop.pickle_forms import (
    FORMS,
    MOST_WORKERS,
    NONE,
    WORKER_FILE,
    Contents,
    Listed,
    is_pickle,
    read_contents,
)
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT
from kpstore.options import Option
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.feature import ArraySpec, FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_FACE, PART_SLICES, PARTS, POINT_NAMES, FaceList, keypoints_spec

Zeros = Literal["missing", "values"]

_NUMBER = re.compile(r"(\d+)\D*\Z")


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
        labels={"face_point": POINT_NAMES[:N_FACE], "space": whole.labels["space"], "face_part": ("face",)},
        companions=(ArraySpec("detected", (1,), ("face_part",), "bool", description="whether the face was detected"),),
        attrs={key: whole.attrs[key] for key in ("convention", "face_regions", "face_list")},
    )


@dataclass(frozen=True)
class PickleImport:
    """Reads pickles of keypoints; which form a file has is found out, see :data:`pickle_forms.FORMS`.

    A frame that is None has failed; a part that is None is NaN and not detected. Frames that the scripts dropped are
    not in the file and not in the store: a frame's number is in its path alone.

    Parameters
    ----------
    face_list : which mesh points the 68 face points are: a known name, or a file.
    split : of all frames, where the file names none.
    zeros : what a part (of a face file: a face) means that is all zeros, in the forms that hold arrays. Frames that
        are dicts have None for what is missing, so there zeros are values.
    """

    face_list: Annotated[str, Option("The 68 face points: phoenix, ibug, or a file.")] = "phoenix"
    split: Annotated[str, Option("Split of the frames, where the file names none.")] = ""
    zeros: Annotated[Zeros, Option("In files of arrays: what a part means that is all zeros.")] = "missing"

    def __post_init__(self) -> None:
        if self.zeros not in ("missing", "values"):
            raise InvalidError(f"zeros={self.zeros!r}: use 'missing' or 'values'")

    def open(self, path: Path) -> PickleDocument:
        """Load a file, or a folder of workers' or of splits' files; see :class:`kpstore.interop.base.Importer`."""
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

    def __init__(self, path: Path, contents: Contents, face_list: FaceList, split: str, zeros: Zeros) -> None:
        self._path, self._contents, self._zeros = path, contents, zeros
        self._read_notes: list[str] = []
        self._facts: dict[str, Any] = {}
        plan = _Planner(path.stem, split)
        for listed in contents.listed:
            plan.add(listed)
        self._plans, self._plan_notes = plan.finish(), plan.notes
        self._facts = {**contents.document, **plan.facts}
        self._spec = face_keypoints_spec(face_list) if contents.points == N_FACE else keypoints_spec(face_list)
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
        return [first, *self._contents.notes, *self._plan_notes, *self._stats_notes, *self._read_notes]

    def videos(self) -> Iterator[ImportedVideo]:
        """Make rows of the frames, a video at a time; see :class:`kpstore.interop.base.Document`."""
        reader = _RowReader(self._spec, self._zeros)
        self._read_notes = []
        for plan in self._plans:
            yield self._video(plan, reader)
        self._read_notes = reader.notes()

    def _video(self, plan: _Plan, reader: _RowReader) -> ImportedVideo:
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


# -- which frames make which video ------------------------------------------------------------------------------------


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
            self.notes.append(f"{listed.place}: its split is {split!r}; the split given, {self._split!r}, is not used")
        if twice:
            self.notes.append(f"{listed.place}: {twice} frames whose image path came before; the first of each is kept")
        if runs != len(videos):
            self.notes.append(
                f"{listed.place}: videos lie interleaved ({runs} runs of {len(videos)} videos); frames are stored "
                "video by video, so that their order differs from the file's"
            )
        if listed.paths is None and len(listed.frames):
            self.notes.append(f"{listed.place}: no image paths; frames are called FILE#0, FILE#1, …")
        self._count_slashes(listed.paths or ())
        self._groups.append((listed, split, videos))

    def _ids(self, listed: Listed) -> Sequence[str]:
        if listed.video_ids is not None:
            self._count_slashes(listed.video_ids)
            empty = sum(not text for text in listed.video_ids)
            if empty:
                self.notes.append(f"{listed.place}: {empty} empty video ids; those frames are of video {self._stem!r}")
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
            again = "which of them it was is lost" if self._forward else "export pickle --paths as_imported writes them"
            self.notes.append(f"backslashes in {self._back} paths and ids became forward slashes; {again}")
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
            self.notes.append(f"{len(shared)} video ids are in several splits; they are stored as {first!r} and so on")
            self.facts["renamed_videos"] = renamed
        return plans


def _folder_names(listed: Listed, stem: str, notes: list[str]) -> list[str]:
    """Return for each frame the name of the folder its image is in; the whole folder where two have that name."""
    folders = [slashed(path).rpartition("/")[0] for path in listed.paths or ()]
    parents: dict[str, set[str]] = {}
    for folder in dict.fromkeys(folders):
        parents.setdefault(PurePosixPath(folder).name, set()).add(folder)
    several = {name for name, found in parents.items() if len(found) > 1}
    if several:
        notes.append(
            f"{listed.place}: {len(several)} names are each of several folders; those videos have the whole folder's"
        )
    notes.append(f"{listed.place}: no video ids; a video is the folder that its images are in")
    names = {f: f if PurePosixPath(f).name in several else PurePosixPath(f).name for f in dict.fromkeys(folders)}
    return [names[folder] or stem for folder in folders]


def _compare_stats(stats: Any, listed: Sequence[Listed]) -> list[str]:
    """Return how the file's own statistics differ from what it holds."""
    notes = []
    for group in listed:
        own = stats.get(group.split or UNSPLIT, stats if "success" in stats else None) if isinstance(stats, dict) else 0
        if not isinstance(own, dict):
            continue
        held = sum(frame is not None for frame in group.frames)
        if own.get("success", held) != held:
            notes.append(
                f"{group.place}: the file's stats say that {own['success']} frames succeeded, it holds {held}; they "
                "are kept as they are (export pickle --stats as_imported)"
            )
        total = own.get("total")
        if isinstance(total, int | np.integer) and total > len(group.frames):
            notes.append(
                f"{group.place}: {total - len(group.frames)} of {total} frames were dropped when this was made; they "
                "are not in the file"
            )
    return notes


def _missing_workers(folder: Path) -> list[str]:
    """Return which workers left no file, by the numbers of the others; a missing last one cannot be seen."""
    there = {int(match[1]) for path in folder.iterdir() if (match := WORKER_FILE.match(path.name))}
    gone = [number for number in range(min(max(there, default=0), MOST_WORKERS)) if number not in there]
    if not gone:
        return []
    shown = ", ".join(map(str, gone[:10])) + (", …" if gone[10:] else "")
    return [f"of workers 0 to {max(there)} these left no file: {shown}; their part of the frames is not here"]


def _missing_results(workers: Sequence[Any], listed: Sequence[Listed]) -> list[str]:
    """Return how many frames the workers' own totals count and their files do not hold."""
    totals = [total for facts in workers if isinstance(total := from_json(facts).get("total_images"), int | np.integer)]
    held, total = sum(len(group.frames) for group in listed), sum(map(int, totals))
    if len(totals) != len(workers) or total <= held:
        return []
    return [
        f"the workers' files count {total} frames and hold {held}: {total - held} are not in them, because nothing was "
        "found in them or because they were lost"
    ]


def _shape_kind(listed: Sequence[Listed]) -> str:
    """Return how the file has its image shapes: ``"tuple"``, ``"array"`` or not at all."""
    for group in listed:
        for frame in group.frames:
            if isinstance(frame, dict) and frame.get("image_shape") is not None:
                return "array" if isinstance(frame["image_shape"], np.ndarray) else "tuple"
    return ""


# -- rows -------------------------------------------------------------------------------------------------------------


class _RowReader:
    """Makes rows of frames, and counts what rows cannot hold."""

    def __init__(self, spec: FeatureSpec, zeros: Zeros) -> None:
        self._spec, self._zeros = spec, zeros
        self._parts = {"face": slice(0, N_FACE)} if spec.shape[0] == N_FACE else PART_SLICES
        self._unknown: Counter[str] = Counter()
        self._rounded: Counter[str] = Counter()
        self._gaps = self._gap_videos = self._disordered = self._sizes = self._sizeless = 0

    def read(self, listed: Listed, places: Sequence[int]) -> tuple[FeatureRows, dict[int, str], tuple[int, int]]:
        """Return the rows of some frames, which of them failed, and (height, width) in pixels, 0 where unknown."""
        rows = self._spec.empty_rows(len(places))
        failed: dict[int, str] = {}
        sizes: set[tuple[int, int] | None] = set()
        for number, place in enumerate(places):
            frame = listed.frames[place]
            if frame is None:
                failed[number] = NONE
            elif isinstance(frame, dict):
                self._fill_parts(rows, number, frame, listed, place)
                sizes.add(_size(frame.get("image_shape"), listed, place))
            else:
                self._fill_points(rows, number, frame, listed, place)
        return rows, failed, self._agreed(sizes)

    def _fill_parts(self, rows: FeatureRows, number: int, frame: Mapping[str, Any], listed: Listed, place: int) -> None:
        for part, points in frame.items():
            if part == "image_shape":
                continue
            where = self._parts.get(part)
            if where is None:
                self._unknown[str(part)] += 1
            elif points is not None:
                shape = (where.stop - where.start, 3)
                rows.values[number, where] = self._points(points, shape, listed, place, f"[{part!r}]")
                rows.companions["detected"][number, PARTS.index(part)] = True

    def _fill_points(self, rows: FeatureRows, number: int, frame: Any, listed: Listed, place: int) -> None:
        points = self._points(frame, self._spec.shape, listed, place, "")
        rows.values[number] = points
        for column, where in enumerate(self._parts.values()):
            part = points[where]
            missing = np.isnan(part).all() or (self._zeros == "missing" and not part.any())
            rows.companions["detected"][number, column] = not missing
            if missing:
                rows.values[number, where] = np.nan

    def _points(
        self, points: Any, shape: tuple[int, ...], listed: Listed, place: int, part: str
    ) -> NDArray[np.float32]:
        try:
            found = np.asarray(points)
        except ValueError:
            found = np.empty((), dtype=object)  # a ragged list
        if found.shape != shape or found.dtype.kind not in "fiu":
            raise InvalidError(
                f"{listed.place}['keypoints'][{place}]{part}: {found.shape} of {found.dtype}, {shape} of numbers are "
                "needed"
            )
        if found.dtype != np.float32:
            self._rounded[str(found.dtype)] += 1
            try:
                with np.errstate(over="raise"):
                    found = found.astype(np.float32)
            except FloatingPointError:
                largest = np.abs(found).max()
                raise InvalidError(
                    f"{listed.place}['keypoints'][{place}]{part}: {largest:g} does not fit float32"
                ) from None
        return found

    def _agreed(self, sizes: set[tuple[int, int] | None]) -> tuple[int, int]:
        known = {size for size in sizes if size is not None}
        self._sizeless += len(sizes) > len(known) > 0
        if len(known) > 1:
            self._sizes += 1
        return known.pop() if len(known) == 1 else (0, 0)

    def count_gaps(self, paths: Sequence[str]) -> None:
        """Count the frames that are not there between a video's first and last, by the numbers in their paths."""
        found = [_NUMBER.search(path.rpartition("/")[2]) for path in paths]
        numbers = [int(match[1][-15:]) for match in found if match is not None]
        if len(numbers) != len(paths) or not numbers:
            return
        gap = max(numbers) - min(numbers) + 1 - len(set(numbers))
        self._gaps += gap
        self._gap_videos += gap > 0
        self._disordered += any(later < earlier for earlier, later in pairwise(numbers))

    def notes(self) -> list[str]:
        """Return what was counted, a line each."""
        lines = [f"{n} frames also hold {part!r}, which is no part that is known" for part, n in self._unknown.items()]
        lines += [f"{n} arrays are {dtype}; they are stored as float32" for dtype, n in self._rounded.items()]
        if self._gaps:
            lines.append(
                f"{self._gaps} frames of {self._gap_videos} videos are not in the file, by the numbers in their paths"
            )
        if self._disordered:
            lines.append(f"frames of {self._disordered} videos are not in the order of their numbers; it is kept")
        if self._sizes:
            lines.append(f"{self._sizes} videos have frames of several image shapes; theirs are not kept")
        if self._sizeless:
            lines.append(f"in {self._sizeless} videos some frames have no image shape; they get that of the others")
        return lines


def _size(shape: Any, listed: Listed, place: int) -> tuple[int, int] | None:
    """Return (height, width) of an image shape: a tuple, a list or an array of two numbers, or three."""
    if shape is None:
        return None
    numbers = np.asarray(shape)
    good = numbers.ndim == 1 and len(numbers) in (2, 3) and numbers.dtype.kind in "iu"
    if not good or numbers.min() < 1 or numbers.max() > 2**31 - 1:
        raise InvalidError(
            f"{listed.place}['keypoints'][{place}]['image_shape'] is {str(shape)[:80]}; height and width are needed"
        )
    return int(numbers[0]), int(numbers[1])


PICKLE = Format(
    "pickle",
    "Pickles of keypoints: raw, per split, workers' own, flat, faces, model input, sequences.",
    importer=PickleImport,
    exporter=PickleExport,
    recognises=is_pickle,
    examples=(
        "import pickle phoenix_keypoints_full.pkl phoenix.kps",
        "import pickle TEMP_DIR train.kps --split train",
        "export pickle phoenix.kps phoenix_keypoints_full.pkl",
        "export pickle phoenix.kps OUT_DIR --form split",
    ),
)
