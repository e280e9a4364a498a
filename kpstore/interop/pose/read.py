"""Importing the ``.pose`` files of pose-format."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pose_format import Pose, PoseHeader
from pose_format.pose_header import PoseHeaderCache
from pose_format.utils.reader import BytesIOReader

from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, InvalidError, NotFoundError
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
)
from kpstore.interop.files import check_there, damage_named, without_hidden
from kpstore.interop.pose.layout import (
    COMPONENTS,
    SUFFIX,
    Component,
    Part,
    describe,
    find_parts,
    header_spec,
    points_spec,
)
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import FACE_LISTS, PART_SLICES, PARTS, FaceList, keypoints_spec
from kpstore.schema.video_fields import known_fps

Keep = Literal["all", "keypoints"]


@dataclass(frozen=True)
class _File:
    """A pose file whose header was read and agrees with its length."""

    path: Path
    id: str
    frame_path: str
    header: PoseHeader = field(repr=False)
    n_frames: int
    people: int
    fps: float
    more_people: bool = False
    """Whether pose-format will leave people out (version 0.0 only)."""

    @property
    def components(self) -> list[Component]:
        return describe(self.header.components)

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return points, (frames, people, points, dims), and confidence, without dims; float32."""
        with damage_named(f"{self.path}: pose-format cannot read it", DAMAGE):
            body = Pose.read(self.path.read_bytes()).body
        points = np.asarray(body.data.data, dtype=np.float32)
        return points, np.asarray(body.confidence, dtype=np.float32)


def _look(path: Path, root: Path, most_bytes: int | None) -> _File:
    """Read the header of a file, and check its length, which pose-format does not."""
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename it") from None
    damaged = f"{path}: it is no .pose file, or only a part of one"
    with damage_named(damaged, DAMAGE), path.open("rb") as file:
        found = _look_at(path, name, file)
    points = found.header.total_points() * (found.header.num_dims() + 1)
    n_rows = found.n_frames * max(found.people, 1)
    what = f"its {found.n_frames} frames of {found.people} people"
    MemoryBudget.of(path, most_bytes).check_frames(n_rows, 4 * points, what)
    return found


def _look_at(path: Path, name: str, file: BinaryIO) -> _File:
    reader = BytesIOReader(file)
    reader.expect_to_read((PoseHeaderCache.end_offset or 10 * 1024) + 100)
    header = PoseHeader.read(reader)
    file.seek(reader.read_offset)
    version = round(header.version, 3)
    row = 4 * header.total_points() * (header.num_dims() + 1)
    rest = path.stat().st_size - reader.read_offset
    people, more = 1, False
    if version == 0:
        fps, n_frames = struct.unpack("<HH", file.read(4))
        wanted, more = _walk(file, n_frames, header)
        wanted += 4
    elif version == 0.1:
        fps, said, people = struct.unpack("<HHH", file.read(6))
        # The count has only 16 bits; that of longer files follows from their length.
        n_frames = said if rest - 6 <= 0xFFFF * people * row else (rest - 6) // max(people * row, 1)
        wanted = 6 + n_frames * people * row
    elif version == 0.2:
        fps, n_frames, people = struct.unpack("<fIH", file.read(10))
        wanted = 10 + n_frames * people * row
    else:
        raise InvalidError(
            f"{path}: version {header.version:g}, but pose-format reads 0.0, 0.1 and 0.2"
        )
    if wanted != rest or (version == 0.1 and people == 0):
        raise InvalidError(
            f"{path}: {rest} bytes follow the header, but {n_frames} frames of {people} people and "
            f"{header.total_points()} points need {wanted}; the file is torn, or no .pose file"
        )
    return _File(path, name.removesuffix(SUFFIX), name, header, n_frames, people, float(fps), more)


def _walk(file: BinaryIO, n_frames: int, header: PoseHeader) -> tuple[int, bool]:
    """Return the length of a body of version 0.0, and whether any frame has several people."""
    person = 2 + sum(4 * len(c.points) * len(c.format) for c in header.components)
    start, more = file.tell(), False
    for _ in range(n_frames):
        (people,) = struct.unpack("<H", file.read(2))
        more |= people > 1
        file.seek(people * person, os.SEEK_CUR)
    return file.tell() - start, more


@dataclass(frozen=True)
class PoseImport(FileImporter):
    """Reads a ``.pose`` file, or all files of a folder and its subfolders; a person is a video.

    A video has the name of its file, without ``.pose`` and, where a folder is read, with its
    subfolders. If a file holds several people, person 1 is the video ``NAME#1``, and so on.

    Parameters
    ----------
    keep : ``"all"`` stores every point under ``feature``, and also ``keypoints`` if MediaPipe's
        components are there; ``"keypoints"`` stores only those.
    face_list : which mesh points make the face: a name in :data:`kpstore.schema.layout.FACE_LISTS`,
        or a list.
    feature : name of the feature with all points; files of other components need another one.
    split : the split of all videos.
    """

    keep: Annotated[Keep, Option("All points, or only those of `keypoints`.")] = "all"
    face_list: Annotated[str, Option("Which mesh points make the face.", metavar="NAME")] = (
        "phoenix"
    )
    feature: Annotated[str, Option("Name of the feature with all points.", metavar="NAME")] = (
        "pose_points"
    )
    split: Annotated[str, Option("The split of the videos.")] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.face_list, FaceList) and self.face_list not in FACE_LISTS:
            raise NotFoundError(
                f"face list {self.face_list!r} not found; there are: "
                f"{', '.join(sorted(FACE_LISTS))}"
            )

    @property
    def faces(self) -> FaceList:
        """The face list itself."""
        given = self.face_list
        return given if isinstance(given, FaceList) else FACE_LISTS[given]

    def open(self, path: Path) -> PoseDocument:
        """Read the headers of all files; see :class:`kpstore.interop.base.Importer`."""
        check_there(path, ".pose file, nor a folder of them,", "any")
        if not path.is_dir():
            return PoseDocument(self, path, (_look(path, path.parent, self.most_bytes),))
        found = [p for p in path.rglob(f"*{SUFFIX}") if p.is_file()]
        paths = without_hidden(found)
        if not paths:
            raise NotFoundError(f"no .pose file in {path} or in its folders")
        document = PoseDocument(self, path, tuple(_look(p, path, self.most_bytes) for p in paths))
        n_hidden = len(found) - len(paths)
        document.count("files whose names begin with a dot were left out", n_hidden)
        return document


class PoseDocument(NotedDocument):
    """Pose files whose headers agree; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, options: PoseImport, path: Path, files: tuple[_File, ...]) -> None:
        super().__init__()
        self._options, self._files = options, files
        self.name = path.name.removesuffix(SUFFIX)
        self.n_frames = sum(file.n_frames * max(file.people, 1) for file in files)
        self._parts = {file.path: find_parts(file.components, options.faces) for file in files}
        self._note_files()
        self.features = self._features()

    def _features(self) -> tuple[ImportedFeature, ...]:
        found = []
        if any(self._has_keypoints(file) for file in self._files):
            faces = {"name": self._options.faces.name, "sha256": self._options.faces.sha256}
            spec = keypoints_spec(self._options.faces)
            found.append(ImportedFeature(spec, imported("pose", face_list=faces)))
        if self._options.keep == "all":
            name = self._options.feature
            specs = points_spec(name, _same_components(self._files)), header_spec(name)
            found += [ImportedFeature(spec, imported("pose")) for spec in specs]
        if not found:
            raise InvalidError(
                f"{self._files[0].path} has no points of {', '.join(COMPONENTS.values())}, or no "
                "width and height; import it with --keep all"
            )
        return tuple(found)

    def _has_keypoints(self, file: _File) -> bool:
        size = file.header.dimensions
        return bool(self._parts[file.path]) and size.width > 0 and size.height > 0

    def _note_files(self) -> None:
        lacking: Counter[str] = Counter()
        for file in self._files:
            parts = self._parts[file.path]
            if file.more_people:
                self.note(
                    f"{file.path}: version 0.0 with several people; pose-format reads only the "
                    "first"
                )
            if not parts and self._options.keep == "keypoints":
                self.note(f"{file.path}: no keypoints, as it has {_summary(file.components)}")
            if parts and not self._has_keypoints(file):
                self.note(
                    f"{file.path}: no keypoints, as the header has no width and height to divide by"
                )
            for name, part in parts.items():
                missing = sum(not columns for columns in part.sources)
                lacking[f"{missing} of {len(part.sources)} points of {name}"] += missing > 0
        for what, files in lacking.items():
            if files:
                self.note(
                    f"{what} are not in {files} of {len(self._files)} files, and NaN in keypoints"
                )

    def _read(self) -> Iterator[ImportedVideo]:
        for file in self._files:
            values, confidence = file.read()
            hidden = int((np.isnan(values).any(axis=-1) & (confidence == 0)).sum())
            if hidden and self._options.keep == "all":
                self.note(
                    f"{file.path}: {hidden} points of confidence 0 are NaN; an export has zeros "
                    "there"
                )
            if file.people == 0:
                shape = (file.n_frames, 1, *values.shape[2:])
                values, confidence = np.zeros(shape, np.float32), np.zeros(shape[:3], np.float32)
            if known_fps(file.fps) != file.fps:
                self.note(f"{file.path}: {file.fps:g} frames a second is no rate; none is stored")
            n_outside = 0
            for person in range(max(file.people, 1)):
                video = self._video(file, person, values[:, person], confidence[:, person])
                if "keypoints" in video.rows:
                    n_outside += _without_odd(video.rows["keypoints"].companions["visibility"])
                yield video
            if n_outside:
                keeps = self._options.keep == "all"
                kept = f"; {self._options.feature} keeps them" if keeps else ""
                self.note(
                    f"{file.path}: {n_outside} confidences of the pose are not between 0 and 1, so "
                    f"the visibility of these points is NaN in keypoints{kept}"
                )

    def _video(
        self, file: _File, person: int, values: NDArray[np.float32], confidence: NDArray[np.float32]
    ) -> ImportedVideo:
        size = file.header.dimensions
        video_id = f"{file.id}#{person + 1}" if file.people > 1 else file.id
        paths = tuple(f"{file.frame_path}#{number}" for number in range(file.n_frames))
        record = VideoRecord(
            video_id, self._options.split, paths, known_fps(file.fps), size.width, size.height
        )
        nothing = (confidence == 0) & (values.view(np.uint32) == 0).all(axis=-1)
        values = np.where(nothing[..., None], np.float32(np.nan), values)
        rows = {}
        if self._has_keypoints(file):
            scale = (float(size.width), float(size.height), 1.0)
            rows["keypoints"] = _keypoints(values, confidence, self._parts[file.path], scale)
        if self._options.keep == "all":
            name = self._options.feature
            pixels = size.width, size.height, size.depth
            header = [file.header.version, *pixels, file.fps, person + 1, file.people]
            rows[name] = FeatureRows(values, {"confidence": confidence})
            rows[f"{name}_header"] = FeatureRows(np.array([header], dtype=np.float64))
        return ImportedVideo(record, rows)


def _same_components(files: Sequence[_File]) -> list[Component]:
    """Return the components that all files have; an error names the first file with others."""
    first = files[0].components
    for file in files[1:]:
        if file.header is not files[0].header and file.components != first:
            raise InvalidError(
                f"{file.path} has {_summary(file.components)}, but {files[0].path} has "
                f"{_summary(first)} (or other names, limbs or colours): import them apart, each "
                "with a --feature of its own, or take --keep keypoints"
            )
    return first


def _summary(components: Sequence[Component]) -> str:
    return ", ".join(f"{c['name']} ({len(c['points'])} {c['format']})" for c in components)


def _keypoints(
    values: NDArray[np.float32],
    confidence: NDArray[np.float32],
    parts: Mapping[str, Part],
    scale: tuple[float, float, float],
) -> FeatureRows:
    """Return the 143 points of one person, made from (frames, points, dims); NaN where missing.

    pose-format multiplies x and y by width and height, but not z (``holistic.component_points``).
    """
    rows = keypoints_spec().empty_rows(len(values))
    for number, part in enumerate(PARTS):
        if part not in parts:
            continue
        where = parts[part]
        target = rows.values[:, PART_SLICES[part]]
        for point, columns in enumerate(where.sources):
            for axis, source in enumerate(where.axes):
                if columns and source is not None:
                    mean = values[:, list(columns), source].mean(axis=1, dtype=np.float64)
                    target[:, point, axis] = mean / scale[axis]
        detected = (confidence[:, where.columns] != 0).any(axis=1) & ~np.isnan(target).all(
            axis=(1, 2)
        )
        target[~detected] = np.nan
        rows.companions["detected"][:, number] = detected
        if part == "pose":
            for point, columns in enumerate(where.sources):
                if columns:
                    visible = np.where(detected, confidence[:, columns[0]], np.nan)
                    rows.companions["visibility"][:, point] = visible
    return rows


def _without_odd(visibility: NDArray[np.float32]) -> int:
    """Set visibility outside of 0 to 1 to NaN, in place; return how many values there were.

    Their scale is unknown, so clipping would invent numbers, except for rounding errors.
    """
    near = np.clip(visibility, 0.0, 1.0)
    odd = np.abs(visibility - near) > 1e-4
    visibility[...] = np.where(odd, np.float32(np.nan), near)
    return int(odd.sum())


def recognises(path: Path) -> bool:
    """Return whether a file begins like a .pose file, or a folder holds some."""
    try:
        if path.is_dir():
            return bool(without_hidden(path.rglob(f"*{SUFFIX}")))
        if path.suffix != SUFFIX:
            return False
        with path.open("rb") as file:
            return round(struct.unpack("<f", file.read(4))[0], 3) in (0.0, 0.1, 0.2)
    except (OSError, struct.error, ValueError, OverflowError):
        return False
