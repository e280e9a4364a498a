"""The ``.pose`` files of pose-format: components of named points, one or more people, a confidence for each point."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pose_format import Pose, PoseHeader
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeaderCache, PoseHeaderComponent, PoseHeaderDimensions
from pose_format.utils.reader import BytesIOReader

from kpstore.errors import ExistsError, InvalidError, NotFoundError, one_line
from kpstore.interop.base import (
    ExportedFile,
    ExportReport,
    Format,
    ImportedFeature,
    ImportedVideo,
    OnProgress,
    Option,
    imported,
)
from kpstore.interop.files import check_free, folder_written_aside, inside, written_aside
from kpstore.interop.outputs import check_no_links
from kpstore.schema.feature import ArraySpec, FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import (
    FACE_LISTS,
    HAND_POINT_NAMES,
    N_POINTS,
    PART_SLICES,
    PARTS,
    POSE_POINT_NAMES,
    FaceList,
    keypoints_spec,
)
from kpstore.store import format as fmt
from kpstore.store.store import Store, Video

Keep = Literal["all", "keypoints"]

SUFFIX = ".pose"
COMPONENTS = {
    "face": "FACE_LANDMARKS",
    "left_hand": "LEFT_HAND_LANDMARKS",
    "right_hand": "RIGHT_HAND_LANDMARKS",
    "pose": "POSE_LANDMARKS",
}
"""What pose-format calls the parts (``pose_format.utils.holistic.holistic_components``)."""
_WRITTEN_ORDER = ("pose", "face", "left_hand", "right_hand")
HEADER_FIELDS = ("version", "width", "height", "depth", "fps", "person", "people")
"""What ``pose_points_header`` holds of a file; ``person`` counts from 1."""

_UNREADABLE = (struct.error, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, EOFError)
"""What pose-format raises for bytes that are no pose file: it checks nothing itself."""


# -- layout -----------------------------------------------------------------------------------------------------


def describe(components: Sequence[PoseHeaderComponent]) -> list[dict[str, Any]]:
    """Return the components of a header as JSON: name, point names, format (``XYZC``), limbs and their colours."""
    return [
        {
            "name": component.name,
            "format": component.format,
            "points": list(component.points),
            "limbs": [[int(a), int(b)] for a, b in component.limbs],
            "colors": [[int(value) for value in color] for color in component.colors],
        }
        for component in components
    ]


def points_spec(name: str, components: Sequence[Mapping[str, Any]]) -> FeatureSpec:
    """Return the feature that holds all points of a pose file: (points, dims) float32, pixels as a rule.

    Its companion ``confidence`` (points,) float32 is the file's, 0 where a point is missing; the values of such a point
    are NaN if the file has zeros there, else the file's. The components are in ``attrs["pose_components"]``.
    """
    labels = tuple(f"{component['name']}.{point}" for component in components for point in component["points"])
    axes = tuple(max((component["format"] for component in components), key=len, default="")[:-1])
    point, axis = f"{name}_point", f"{name}_axis"
    if not labels or not axes:
        raise InvalidError(f"the header has {len(labels)} points of {len(axes)} dimensions; nothing can be stored")
    return FeatureSpec(
        name,
        (len(labels), len(axes)),
        (point, axis),
        units="pixel",
        description="all points of a .pose file, as in the file",
        labels={point: labels, axis: axes},
        companions=(ArraySpec("confidence", (len(labels),), (point,), description="confidence, 0 where missing"),),
        attrs={"pose_components": list(components)},
    )


def header_spec(name: str) -> FeatureSpec:
    """Return the feature of videos that holds what the header of each one's file says; see :data:`HEADER_FIELDS`."""
    dim = f"{name}_header_field"
    return FeatureSpec(
        f"{name}_header",
        (len(HEADER_FIELDS),),
        (dim,),
        "float64",
        description="header of the .pose file; width, height and depth in pixels",
        axis="video",
        labels={dim: HEADER_FIELDS},
    )


@dataclass(frozen=True)
class _Part:
    """Where one part of the 143 points lies in a file.

    Parameters
    ----------
    columns : all points of the component.
    sources : for each point of the part the file's points whose mean it is; empty where the file lacks it.
    axes : places of x, y and z in the format; z is None where there is none.
    """

    columns: slice
    sources: tuple[tuple[int, ...], ...]
    axes: tuple[int, int, int | None]


def _find_parts(components: Sequence[Mapping[str, Any]], face_list: FaceList) -> dict[str, _Part]:
    """Return the parts that a file holds at least one point of, found by the names of components and points."""
    parts, start = {}, 0
    for component in components:
        columns = slice(start, start + len(component["points"]))
        start = columns.stop
        part = next((p for p, name in COMPONENTS.items() if name == component["name"]), None)
        form = component["format"].upper()[:-1]
        if part is None or part in parts or not {"X", "Y"} <= set(form):
            continue
        places: dict[str, list[int]] = {}
        for place, name in enumerate(component["points"], start=columns.start):
            places.setdefault(name, []).append(place)
        sources = _face_sources(places, face_list) if part == "face" else _sources(places, _names(part))
        if any(sources):
            z = form.index("Z") if "Z" in form else None
            parts[part] = _Part(columns, sources, (form.index("X"), form.index("Y"), z))
    return parts


def _names(part: str) -> list[str]:
    return [name.upper() for name in (POSE_POINT_NAMES if part == "pose" else HAND_POINT_NAMES)]


def _sources(places: Mapping[str, list[int]], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    return tuple((places[name][0],) if name in places else () for name in names)


def _face_names(face_list: FaceList) -> list[str]:
    """Names of the 68 points: the mesh index; of a mean the indices joined, as ``127+234``."""
    return ["+".join(map(str, indices)) for indices in face_list.indices]


def _face_sources(places: Mapping[str, list[int]], face_list: FaceList) -> tuple[tuple[int, ...], ...]:
    used: Counter[str] = Counter()  # a list may name a mesh point twice; so does a file that we wrote with it
    sources: list[tuple[int, ...]] = []
    for name, indices in zip(_face_names(face_list), face_list.indices, strict=True):
        single = [str(index) for index in indices]
        if name in places:
            sources.append((places[name][min(used[name], len(places[name]) - 1)],))
            used[name] += 1
        else:
            sources.append(tuple(places[s][0] for s in single) if all(s in places for s in single) else ())
    return tuple(sources)


# -- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A pose file whose header was read and whose length fits it."""

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
    def components(self) -> list[dict[str, Any]]:
        return describe(self.header.components)

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return points (frames, people, points, dims) and confidence (frames, people, points), float32."""
        try:
            body = Pose.read(self.path.read_bytes()).body
        except _UNREADABLE as error:
            raise InvalidError(f"{self.path}: pose-format cannot read it ({one_line(error)})") from None
        return np.asarray(body.data.data, dtype=np.float32), np.asarray(body.confidence, dtype=np.float32)


def _look(path: Path, root: Path) -> _File:
    """Read a file's header, and check its length, which pose-format does not."""
    name = path.relative_to(root).as_posix()
    try:
        name.encode()
        with path.open("rb") as file:
            return _look_at(path, name, file)
    except UnicodeEncodeError:
        raise InvalidError(f"{os.fsencode(path)!r}: the name is no UTF-8; rename the file") from None
    except _UNREADABLE as error:
        if isinstance(error, InvalidError):
            raise
        raise InvalidError(f"{path}: it is no .pose file, or only a part of one ({one_line(error)})") from None


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
        # The count has 16 bits; longer files are told by their length.
        n_frames = said if rest - 6 <= 0xFFFF * people * row else (rest - 6) // max(people * row, 1)
        wanted = 6 + n_frames * people * row
    elif version == 0.2:
        fps, n_frames, people = struct.unpack("<fIH", file.read(10))
        wanted = 10 + n_frames * people * row
    else:
        raise InvalidError(f"{path}: version {header.version:g}, but pose-format reads 0.0, 0.1 and 0.2")
    if wanted != rest or (version == 0.1 and people == 0):
        raise InvalidError(
            f"{path}: {rest} bytes follow the header, but {n_frames} frames of {people} people and "
            f"{header.total_points()} points need {wanted}; the file is torn, or no .pose file"
        )
    return _File(path, name.removesuffix(SUFFIX), name, header, n_frames, people, float(fps), more)


def _walk(file: BinaryIO, n_frames: int, header: PoseHeader) -> tuple[int, bool]:
    """Return the bytes of a version 0.0 body, and whether a frame has more than the one person that is read."""
    person = 2 + sum(4 * len(c.points) * len(c.format) for c in header.components)
    start, more = file.tell(), False
    for _ in range(n_frames):
        (people,) = struct.unpack("<H", file.read(2))
        more |= people > 1
        file.seek(people * person, os.SEEK_CUR)
    return file.tell() - start, more


@dataclass(frozen=True)
class PoseImport:
    """Reads a ``.pose`` file, or all of a folder and its folders: each is a video, or one video per person.

    A video is called as its file, without ``.pose``; with its folders, where a folder is read. Where a file holds
    several people, person 1 is the video ``NAME#1``, and so on.

    Parameters
    ----------
    keep : ``"all"`` stores every point under ``feature``, and ``keypoints`` too where MediaPipe's components are there;
        ``"keypoints"`` stores those alone.
    face_list : which mesh points make the face: a name in :data:`kpstore.schema.layout.FACE_LISTS`, or a list.
    feature : name of the feature that holds all points; files of other components need another one.
    split : of all videos.
    """

    keep: Annotated[Keep, Option("All points, or those of `keypoints` only.")] = "all"
    face_list: Annotated[str, Option("Which mesh points make the face.", metavar="NAME")] = "phoenix"
    feature: Annotated[str, Option("What the feature with all points is called.", metavar="NAME")] = "pose_points"
    split: Annotated[str, Option("The split that the videos belong to.")] = ""

    def __post_init__(self) -> None:
        if self.keep not in ("all", "keypoints"):
            raise InvalidError(f"keep={self.keep!r}: use 'all' or 'keypoints'")
        if not isinstance(self.face_list, FaceList) and self.face_list not in FACE_LISTS:
            raise NotFoundError(f"face list {self.face_list!r} not found; there are: {', '.join(sorted(FACE_LISTS))}")

    @property
    def faces(self) -> FaceList:
        """The face list itself."""
        return self.face_list if isinstance(self.face_list, FaceList) else FACE_LISTS[self.face_list]

    def open(self, path: Path) -> PoseDocument:
        """Read the headers of all files; see :class:`kpstore.interop.base.Importer`."""
        if not path.exists():
            raise NotFoundError(f"no .pose file, nor a folder of them, at {path}: it does not exist")
        root = path if path.is_dir() else path.parent
        found = sorted(p for p in path.rglob(f"*{SUFFIX}") if p.is_file()) if path.is_dir() else [path]
        paths = [p for p in found if p == path or not p.name.startswith(".")]
        if not paths:
            raise NotFoundError(f"no .pose file in {path} or in its folders")
        return PoseDocument(self, path, tuple(_look(p, root) for p in paths), n_hidden=len(found) - len(paths))


class PoseDocument:
    """Pose files whose headers fit each other; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, options: PoseImport, path: Path, files: tuple[_File, ...], *, n_hidden: int = 0) -> None:
        self._options, self._files = options, files
        self.name = path.name.removesuffix(SUFFIX)
        self.notes: list[str] = []
        if n_hidden:
            self.notes.append(f"{n_hidden} files whose names begin with a dot were left out")
        self._parts = {file.path: _find_parts(file.components, options.faces) for file in files}
        self._note_files()
        self.features = self._features()

    @property
    def n_frames(self) -> int:
        """Frames in all; those of each person count."""
        return sum(file.n_frames * max(file.people, 1) for file in self._files)

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
                f"{self._files[0].path} has no points of {', '.join(COMPONENTS.values())}, or no width and height; "
                "import it with --keep all"
            )
        return tuple(found)

    def _has_keypoints(self, file: _File) -> bool:
        size = file.header.dimensions
        return bool(self._parts[file.path]) and size.width > 0 and size.height > 0

    def _note_files(self) -> None:
        for file in self._files:
            parts = self._parts[file.path]
            if file.more_people:
                self.notes.append(f"{file.path}: version 0.0 with several people; pose-format reads the first only")
            if not parts and self._options.keep == "keypoints":
                self.notes.append(f"{file.path}: no keypoints, as it has {_summary(file.components)}")
            if parts and not self._has_keypoints(file):
                self.notes.append(f"{file.path}: no keypoints, as the header has no width and height to divide by")
        lacking: Counter[str] = Counter()
        for parts in self._parts.values():
            for name, part in parts.items():
                lacking[f"{sum(not s for s in part.sources)} of {len(part.sources)} points of {name}"] += 1
        for what, files in lacking.items():
            if not what.startswith("0 "):
                self.notes.append(f"{what} are not in {files} of {len(self._files)} files, and NaN in keypoints")

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the files one by one."""
        for file in self._files:
            values, confidence = file.read()
            hidden = int((np.isnan(values).any(axis=-1) & (confidence == 0)).sum())
            if hidden and self._options.keep == "all":
                self.notes.append(f"{file.path}: {hidden} points of confidence 0 are NaN; an export has zeros there")
            if file.people == 0:
                shape = (file.n_frames, 1, *values.shape[2:])
                values, confidence = np.zeros(shape, np.float32), np.zeros(shape[:3], np.float32)
            for person in range(max(file.people, 1)):
                yield self._video(file, person, values[:, person], confidence[:, person])

    def _video(
        self, file: _File, person: int, values: NDArray[np.float32], confidence: NDArray[np.float32]
    ) -> ImportedVideo:
        size = file.header.dimensions
        video_id = f"{file.id}#{person + 1}" if file.people > 1 else file.id
        paths = tuple(f"{file.frame_path}#{number}" for number in range(file.n_frames))
        record = VideoRecord(video_id, self._options.split, paths, file.fps, size.width, size.height)
        nothing = (confidence == 0) & (values.view(np.uint32) == 0).all(axis=-1)
        values = np.where(nothing[..., None], np.float32(np.nan), values)
        rows = {}
        if self._has_keypoints(file):
            scale = (float(size.width), float(size.height), 1.0)
            rows["keypoints"] = _keypoints(values, confidence, self._parts[file.path], scale)
        if self._options.keep == "all":
            name = self._options.feature
            header = [file.header.version, size.width, size.height, size.depth, file.fps, person + 1, file.people]
            rows[name] = FeatureRows(values, {"confidence": confidence})
            rows[f"{name}_header"] = FeatureRows(np.array([header], dtype=np.float64))
        return ImportedVideo(record, rows)


def _same_components(files: Sequence[_File]) -> list[dict[str, Any]]:
    """Return the components of all files; an error names the first file that has others."""
    first = files[0].components
    for file in files[1:]:
        if file.header is not files[0].header and file.components != first:
            raise InvalidError(
                f"{file.path} has {_summary(file.components)}, but {files[0].path} has {_summary(first)} "
                "(or other names, limbs or colours): import them apart, each with a --feature of its own, "
                "or take --keep keypoints"
            )
    return first


def _summary(components: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{c['name']} ({len(c['points'])} {c['format']})" for c in components)


def _keypoints(
    values: NDArray[np.float32],
    confidence: NDArray[np.float32],
    parts: Mapping[str, _Part],
    scale: tuple[float, float, float],
) -> FeatureRows:
    """Return the 143 points of one person, from (frames, points, dims) with NaN where a point is missing.

    pose-format multiplies x and y with width and height, and leaves z alone (``holistic.component_points``).
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
        detected = (confidence[:, where.columns] != 0).any(axis=1) & ~np.isnan(target).all(axis=(1, 2))
        target[~detected] = np.nan
        rows.companions["detected"][:, number] = detected
        if part == "pose":
            for point, columns in enumerate(where.sources):
                if columns:
                    visible = np.where(detected, confidence[:, columns[0]], np.nan)
                    rows.companions["visibility"][:, point] = visible
    return rows


# -- writing ----------------------------------------------------------------------------------------------------


class _Component(PoseHeaderComponent):  # type: ignore[misc]
    """A component that writes names by their bytes: pose-format counts characters, and cuts other than ASCII."""

    def _write_str(self, buffer: BinaryIO, s: str) -> None:
        text = s.encode()
        buffer.write(struct.pack("<H", len(text)) + text)


@dataclass(frozen=True)
class _Body:
    """What one file will hold: points (frames, people, points, dims) and confidence (frames, people, points)."""

    components: Sequence[Mapping[str, Any]]
    size: tuple[int, int, int]
    fps: float
    values: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def write(self, path: Path) -> None:
        components = [
            _Component(c["name"], c["points"], [tuple(limb) for limb in c["limbs"]], c["colors"], c["format"])
            for c in self.components
        ]
        header = PoseHeader(0.2, PoseHeaderDimensions(*self.size), components)
        body = NumPyPoseBody(self.fps, np.ma.masked_array(self.values), self.confidence)
        with path.open("wb") as file:
            Pose(header, body).write(file)


@dataclass(frozen=True)
class PoseExport:
    """Writes a ``.pose`` file (version 0.2) per video, ``OUT/VIDEO.pose``; or one file, if ``OUT`` ends in ``.pose``.

    Videos that were imported from ``.pose`` files come back as they were; the people of one file go into one again.
    Others are written from ``keypoints``, as MediaPipe's components with pixels for x and y, and confidence 0 and zeros
    where a part is missing.

    Parameters
    ----------
    feature : ``"keypoints"`` or one that was imported from ``.pose`` files; by default each video's imported points,
        where it has them, else its keypoints.
    splits : only these.
    fps : for videos whose frame rate nobody knows.
    """

    feature: Annotated[str, Option("Which feature; what was imported from .pose, or else `keypoints`, by default.")] = (
        ""
    )
    splits: Annotated[Sequence[str] | None, Option("Only these; all by default.", metavar="SPLIT...")] = None
    fps: Annotated[float | None, Option("Frame rate of videos that have none.")] = None

    def export(
        self, store: Store, path: Path, *, overwrite: bool = False, on_progress: OnProgress | None = None
    ) -> ExportReport:
        """Write the files; see :class:`kpstore.interop.base.Exporter`."""
        writer = _Writer(store, self)
        groups, pending = writer.plan(path)
        if path.suffix == SUFFIX:
            if len(groups) != 1:
                raise InvalidError(f"{path} can hold one video, but there are {len(groups)}; name a folder instead")
            check_free([path], overwrite=overwrite)
            with written_aside(path) as (aside,):
                frames = sum(writer.write(videos, aside, on_progress) for videos in groups.values())
        elif path.is_dir():  # its other files stay
            targets = [inside(path, name) for name in groups]
            check_no_links(path, targets)
            check_free(targets, overwrite=overwrite)
            frames = writer.write_all(groups, path, on_progress)
        else:
            _check_folder(path)
            with folder_written_aside(path) as folder:
                frames = writer.write_all(groups, folder, on_progress)
        held = sum(len(videos) for videos in groups.values())
        return ExportReport([ExportedFile(path, frames, held, left_out={"pending": pending})], writer.notes())


def _check_folder(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ExistsError(f"{path} exists already and is no folder; choose another place for the files")


class _Writer:
    """Writes the videos of a store, a file at a time."""

    def __init__(self, store: Store, options: PoseExport) -> None:
        self._store, self._options = store, options
        self._feature = options.feature or _imported_feature(store) or "keypoints"
        self._spec = store.feature(self._feature)
        self._is_points = "pose_components" in self._spec.attrs
        if not self._is_points:
            _check_keypoints(self._spec)
        self._fallback = "keypoints" if not options.feature and "keypoints" in store.features else self._feature
        self._counts: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """Return what could not be carried over."""
        return [f"{count} {what}" for what, count in self._counts.items() if count]

    def plan(self, path: Path) -> tuple[dict[str, list[Video]], int]:
        """Return the videos of each file, by the file's name, and the number of frames that are still pending."""
        index = self._store.index
        wanted = self._options.splits
        chosen = index.select(split=None if wanted is None else list(dict.fromkeys(wanted)))
        groups: dict[str, list[Video]] = {}
        pending = 0
        for position in chosen.tolist():
            video = Video(self._store, position)
            if self._feature_of(video) is None:
                pending += video.n_frames
                continue
            self._check_size(video)
            name = f"{self._file_id(video)}{SUFFIX}"
            key = inside(path, name).relative_to(path).as_posix()
            if key in groups and (self._people(video) < 2 or self._people(groups[key][0]) < 2):
                raise InvalidError(f"videos {groups[key][0].id!r} and {video.id!r} would both be the file {key}")
            groups.setdefault(key, []).append(video)
        return groups, pending

    def _feature_of(self, video: Video) -> str | None:
        for name in (self._feature, self._fallback):
            if video.state(name) != State.PENDING:
                return name
        return None

    def _header(self, video: Video) -> dict[str, float] | None:
        name = f"{self._feature}_header"
        if not self._is_points or self._feature_of(video) != self._feature or name not in self._store.features:
            return None
        if video.state(name) == State.PENDING:
            return None
        return dict(zip(HEADER_FIELDS, video[name].tolist(), strict=True))

    def _check_size(self, video: Video) -> None:
        header = self._header(video)
        size = (header["width"], header["height"], header["depth"]) if header else (video.width, video.height)
        if max(size) > 0xFFFF:
            shown = " x ".join(f"{number:g}" for number in size)
            raise InvalidError(f"video {video.id!r} is {shown} pixels; a .pose file holds {0xFFFF} in each direction")

    def _people(self, video: Video) -> int:
        header = self._header(video)
        return int(header["people"]) if header else 1

    def _file_id(self, video: Video) -> str:
        header = self._header(video)
        if header and header["people"] > 1:
            return video.id.removesuffix(f"#{int(header['person'])}")
        return video.id

    def write(self, videos: Sequence[Video], path: Path, on_progress: OnProgress | None) -> int:
        """Write the people of one file; return the number of frames."""
        body = self._points_body(videos) if self._feature_of(videos[0]) == self._feature and self._is_points else None
        (body or self._keypoints_body(videos[0])).write(path)
        frames = sum(video.n_frames for video in videos)
        if on_progress is not None:
            on_progress(frames)
        return frames

    def write_all(self, groups: Mapping[str, Sequence[Video]], folder: Path, on_progress: OnProgress | None) -> int:
        """Write all files into a folder; return the number of frames."""
        frames = 0
        for name, videos in groups.items():
            with written_aside(inside(folder, name)) as (aside,):
                frames += self.write(videos, aside, on_progress)
        return frames

    def _fps(self, video: Video, fps: float) -> float:
        if not np.isnan(fps):
            return fps
        if self._options.fps is None:
            raise InvalidError(f"video {video.id!r} has no frame rate, which a .pose file needs; say one: --fps 25")
        return self._options.fps

    def _missing(self, video: Video, feature: str) -> NDArray[np.bool_]:
        """Return which frames have no result, and count them."""
        missing: NDArray[np.bool_] = video[fmt.status_name(feature)] != State.DONE
        self._counts["frames failed or are pending: they are written as frames in which nothing was found"] += int(
            missing.sum()
        )
        return missing

    def _points_body(self, videos: Sequence[Video]) -> _Body:
        header = self._header(videos[0])
        if header is None:  # rows that no import of ours wrote: what the index knows has to do
            video = videos[0]
            size, fps, people = (video.width, video.height, 0), self._fps(video, video.fps), 1
        else:
            size = int(header["width"]), int(header["height"]), int(header["depth"])
            fps, people = header["fps"], int(header["people"])
        n_points, n_dims = self._spec.shape
        values = np.zeros((videos[0].n_frames, people, n_points, n_dims), np.float32)
        confidence = np.zeros(values.shape[:3], np.float32)
        self._counts["people are not there: they are written as not found"] += max(people - len(videos), 0)
        for video in videos if people else ():
            own = self._header(video)
            person = int(own["person"]) - 1 if own else 0
            points, sure = video[self._feature], video[f"{self._feature}_confidence"]
            points[np.isnan(points).all(axis=-1) & (sure == 0)] = 0
            missing = self._missing(video, self._feature)
            points[missing], sure[missing] = 0, 0
            values[:, person], confidence[:, person] = points, sure
        return _Body(self._spec.attrs["pose_components"], size, fps, values, confidence)

    def _keypoints_body(self, video: Video) -> _Body:
        feature = self._fallback
        spec = self._store.feature(feature)
        _check_keypoints(spec)
        missing = self._missing(video, feature)
        values = video[feature].astype(np.float64)
        detected = video[f"{feature}_detected"] & ~missing[:, None]
        visibility = video[f"{feature}_visibility"]
        width, height = video.width or 1, video.height or 1
        if not video.width or not video.height:
            width = height = 1
            self._counts["videos have no frame size: the header says 1 x 1, and x and y are fractions"] += 1
        values *= (width, height, 1)
        sure = _confidence(values, detected, visibility)
        self._counts["videos have a pose without visibility: its confidence is 1"] += int(
            (np.isnan(visibility).all(axis=1) & detected[:, PARTS.index("pose")]).any()
        )
        values[np.isnan(values)] = 0
        values[sure == 0] = np.where(_hidden(detected)[sure == 0][:, None], 0, values[sure == 0])
        order = np.concatenate([np.arange(N_POINTS)[PART_SLICES[part]] for part in _WRITTEN_ORDER])
        return _Body(
            _keypoint_components(spec),
            (width, height, 0),
            self._fps(video, video.fps),
            values[:, None, order].astype(np.float32),
            sure[:, None, order].astype(np.float32),
        )


def _hidden(detected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the 143 points belong to a part that was not detected, (frames, 143)."""
    hidden = np.empty((len(detected), N_POINTS), dtype=bool)
    for column, part in enumerate(PARTS):
        hidden[:, PART_SLICES[part]] = ~detected[:, column : column + 1]
    return hidden


def _confidence(
    values: NDArray[np.float64], detected: NDArray[np.bool_], visibility: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the confidence of the 143 points: 1, the pose's visibility, 0 where there is none; (frames, 143)."""
    sure = np.ones(values.shape[:2], dtype=np.float32)
    sure[:, PART_SLICES["pose"]] = np.where(np.isnan(visibility), 1, visibility)
    sure[_hidden(detected) | np.isnan(values).any(axis=-1)] = 0
    return sure


def _imported_feature(store: Store) -> str | None:
    """Return the feature that holds points of pose files; None if there is none."""
    found = [name for name, stored in store.features.items() if "pose_components" in stored.spec.attrs]
    if len(found) > 1:
        raise InvalidError(f"points of .pose files are in {' and '.join(found)}; choose one with --feature")
    return found[0] if found else None


def _check_keypoints(spec: FeatureSpec) -> None:
    named = {"face_list", "edges"} <= set(spec.attrs) and {c.name for c in spec.companions} >= {
        "detected",
        "visibility",
    }
    if spec.shape != (N_POINTS, 3) or not named:
        raise InvalidError(
            f"feature {spec.name!r}, {spec.shape} a {spec.axis}, has no points that .pose files have names for; "
            "export keypoints, or what was imported from .pose files"
        )


def _keypoint_components(spec: FeatureSpec) -> list[dict[str, Any]]:
    """Return MediaPipe's components, with the points that ``keypoints`` has."""
    stored = spec.attrs["face_list"]
    faces = FaceList(stored["name"], stored["points"])
    colors = {"pose": [255, 0, 0], "face": [128, 0, 0], "left_hand": [0, 255, 0], "right_hand": [255, 128, 0]}
    components = []
    for part in _WRITTEN_ORDER:
        rows = PART_SLICES[part]
        inner = [[a - rows.start, b - rows.start] for a, b in spec.attrs["edges"] if rows.start <= a < rows.stop]
        names = _face_names(faces) if part == "face" else _names(part)
        components.append(
            {"name": COMPONENTS[part], "format": "XYZC", "points": names, "limbs": inner, "colors": [colors[part]]}
        )
    return components


def _recognises(path: Path) -> bool:
    try:
        if path.is_dir():
            return any(not found.name.startswith(".") for found in path.rglob(f"*{SUFFIX}"))
        if path.suffix != SUFFIX:
            return False
        with path.open("rb") as file:
            return round(struct.unpack("<f", file.read(4))[0], 3) in (0.0, 0.1, 0.2)
    except (OSError, struct.error, ValueError, OverflowError):
        return False


POSE = Format(
    "pose",
    "pose-format's .pose files: MediaPipe holistic, OpenPose or any other named points, with confidence.",
    importer=PoseImport,
    exporter=PoseExport,
    recognises=_recognises,
    target="folder",
    examples=(
        "import pose signs/ signs.kps",
        "import pose clip.pose clip.kps --keep keypoints",
        "export pose signs.kps OUT",
        "export pose clip.kps clip.pose",
    ),
)
