"""Exporting ``.pose`` files of pose-format, one for each video."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pose_format import Pose, PoseHeader
from pose_format.numpy import NumPyPoseBody
from pose_format.pose_header import PoseHeaderComponent, PoseHeaderDimensions

from kpstore.errors import ExistsError, InvalidError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import (
    check_folder,
    check_free,
    folder_written_aside,
    inside,
    written_aside,
)
from kpstore.interop.outputs import check_no_links
from kpstore.interop.pose.layout import (
    COMPONENTS,
    HEADER_FIELDS,
    SUFFIX,
    Component,
    face_names,
    point_names,
)
from kpstore.options import Option
from kpstore.schema.feature import MASK, FeatureSpec, State
from kpstore.schema.layout import N_POINTS, PART_SLICES, PARTS, FaceList
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore
from kpstore.store.video import Video

_WRITTEN_ORDER = ("pose", "face", "left_hand", "right_hand")


class _Component(PoseHeaderComponent):  # type: ignore[misc]
    """A component that counts bytes of names; pose-format counts characters, and cuts names off."""

    def _write_str(self, buffer: BinaryIO, s: str) -> None:
        text = s.encode()
        buffer.write(struct.pack("<H", len(text)) + text)


@dataclass(frozen=True)
class _Body:
    """The contents of one file.

    ``values`` (frames, people, points, dims) and ``confidence`` (frames, people, points).
    """

    components: Sequence[Component]
    size: tuple[int, int, int]
    fps: float
    values: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def write(self, path: Path) -> None:
        components = [
            _Component(
                c["name"], c["points"], list(map(tuple, c["limbs"])), c["colors"], c["format"]
            )
            for c in self.components
        ]
        header = PoseHeader(0.2, PoseHeaderDimensions(*self.size), components)
        body = NumPyPoseBody(self.fps, np.ma.masked_array(self.values), self.confidence)
        with path.open("wb") as file:
            Pose(header, body).write(file)


@dataclass(frozen=True)
class PoseExport(FileExporter):
    """Writes a ``.pose`` file (version 0.2) per video, ``OUT/VIDEO.pose``; or one, ``OUT.pose``.

    Videos that were imported from ``.pose`` files come back as they were; the people of one file go
    into one file again. Others are written from ``keypoints``, as MediaPipe's components with x and
    y in pixels, and with confidence 0 and zeros where a part is missing.

    Parameters
    ----------
    feature : ``"keypoints"`` or a feature that was imported from ``.pose`` files; by default the
        imported points of each video that has them, else its keypoints.
    splits : only these.
    fps : frame rate of videos whose own is unknown.
    """

    feature: Annotated[
        str, Option("Which feature; what was imported from .pose, or else `keypoints`, by default.")
    ] = ""
    splits: Splits = None
    fps: Annotated[float | None, Option("Frame rate of videos that have none.")] = None

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        writer = _PoseWriter(store, self, report)
        groups, pending = writer.plan(path)
        if path.suffix == SUFFIX:
            if len(groups) != 1:
                raise InvalidError(
                    f"{path} can hold one video, but there are {len(groups)}; name a folder instead"
                )
            check_free([path], overwrite=overwrite)
            with written_aside(path) as (aside,):
                writer.write(next(iter(groups.values())), aside)
        elif path.is_dir():  # other files in it stay
            targets = [inside(path, name) for name in groups]
            check_no_links(path, targets)
            check_free(targets, overwrite=overwrite)
            writer.write_all(groups, path)
        else:
            if path.exists() or path.is_symlink():
                raise ExistsError(
                    f"{path} exists already and is not a folder; choose another place for the files"
                )
            check_folder(path.parent)
            with folder_written_aside(path) as folder:
                writer.write_all(groups, folder)
        held = [video for videos in groups.values() for video in videos]
        frames = sum(video.n_frames for video in held)
        file = ExportedFile(path, frames, len(held), left_out={"pending": pending})
        return ExportReport([file], writer.notes())


class _PoseWriter:
    """Writes the videos of a store, one file at a time."""

    def __init__(self, store: BaseStore, options: PoseExport, report: OnProgress) -> None:
        self._store, self._options, self._report = store, options, report
        self._feature = options.feature or _imported_feature(store) or "keypoints"
        self._spec = store.feature(self._feature)
        self._is_points = "pose_components" in self._spec.attrs
        if not self._is_points:
            _check_keypoints(self._spec)
        self._fallback = (
            "keypoints" if not options.feature and "keypoints" in store.features else self._feature
        )
        self._counts: Counter[str] = Counter()

    def notes(self) -> list[str]:
        """Return what could not be carried over, one line each."""
        return [f"{count} {what}" for what, count in self._counts.items() if count]

    def plan(self, path: Path) -> tuple[dict[str, list[Video]], int]:
        """Return the videos of each file, by its name, and the number of pending frames."""
        groups: dict[str, list[Video]] = {}
        pending = 0
        for position in self._store.index.select(split=self._options.splits).tolist():
            video = Video(self._store, position)
            if self._feature_of(video) is None:
                pending += video.n_frames
                continue
            self._check_size(video)
            name = f"{self._file_id(video)}{SUFFIX}"
            key = inside(path, name).relative_to(path).as_posix()
            if key in groups and (self._people(video) < 2 or self._people(groups[key][0]) < 2):
                raise InvalidError(
                    f"videos {groups[key][0].id!r} and {video.id!r} would both be the file {key}"
                )
            groups.setdefault(key, []).append(video)
        return groups, pending

    def _feature_of(self, video: Video) -> str | None:
        names = (self._feature, self._fallback)
        return next((name for name in names if video.state(name) != State.PENDING), None)

    def _has_points(self, video: Video) -> bool:
        return self._is_points and self._feature_of(video) == self._feature

    def _header(self, video: Video) -> dict[str, float] | None:
        name = f"{self._feature}_header"
        stored = self._has_points(video) and name in self._store.features
        if not stored or video.state(name) == State.PENDING:
            return None
        return dict(zip(HEADER_FIELDS, video[name].tolist(), strict=True))

    def _check_size(self, video: Video) -> None:
        header = self._header(video) or {"width": video.width, "height": video.height}
        size = [header[side] for side in ("width", "height", "depth") if side in header]
        if max(size) > 0xFFFF:
            shown = " x ".join(f"{number:g}" for number in size)
            raise InvalidError(
                f"video {video.id!r} is {shown} pixels; a .pose file holds {0xFFFF} in each "
                "direction"
            )

    def _people(self, video: Video) -> int:
        header = self._header(video)
        return int(header["people"]) if header else 1

    def _file_id(self, video: Video) -> str:
        header = self._header(video)
        if header and header["people"] > 1:
            return video.id.removesuffix(f"#{int(header['person'])}")
        return video.id

    def write(self, videos: Sequence[Video], path: Path) -> None:
        """Write the people of one file."""
        if self._has_points(videos[0]):
            self._points_body(videos).write(path)
        else:
            self._keypoints_body(videos[0]).write(path)
        self._report(sum(video.n_frames for video in videos))

    def write_all(self, groups: Mapping[str, Sequence[Video]], folder: Path) -> None:
        """Write all files into a folder."""
        with written_aside(*(inside(folder, name) for name in groups)) as asides:
            for videos, aside in zip(groups.values(), asides, strict=True):
                self.write(videos, aside)

    def _fps(self, video: Video, fps: float) -> float:
        known = self._options.fps if np.isnan(fps) else fps
        if known is None:
            raise InvalidError(
                f"video {video.id!r} has no frame rate, which a .pose file needs; use --fps 25"
            )
        return known

    def _missing(self, video: Video, feature: str) -> NDArray[np.bool_]:
        """Return which frames have no result, (frames,) bool, and count them."""
        missing: NDArray[np.bool_] = video[fmt.status_name(feature)] != State.DONE
        self._counts[
            "frames failed or are pending: they are written as frames in which nothing was found"
        ] += int(missing.sum())
        return missing

    def _points_body(self, videos: Sequence[Video]) -> _Body:
        header = self._header(videos[0])
        if header is None:  # the rows were not imported, so only the index knows the video
            video = videos[0]
            size, fps, people = (video.width, video.height, 0), self._fps(video, video.fps), 1
        else:
            size = int(header["width"]), int(header["height"]), int(header["depth"])
            fps, people = header["fps"], int(header["people"])
        n_points, n_dims = self._spec.shape
        values = np.zeros((videos[0].n_frames, people, n_points, n_dims), np.float32)
        confidence = np.zeros(values.shape[:3], np.float32)
        n_gone = max(people - len(videos), 0)
        self._counts["people are not there: they are written as not found"] += n_gone
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
        detected = video[spec.companion(MASK)] & ~missing[:, None]
        visibility = video[spec.companion("visibility")]
        width, height = video.width, video.height
        if not width or not height:
            width = height = 1
            self._counts[
                "videos have no frame size: the header says 1 x 1, and x and y are fractions"
            ] += 1
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
    """Return which points belong to a part that was not detected, (frames, 143) bool."""
    hidden = np.empty((len(detected), N_POINTS), dtype=bool)
    for column, part in enumerate(PARTS):
        hidden[:, PART_SLICES[part]] = ~detected[:, column : column + 1]
    return hidden


def _confidence(
    values: NDArray[np.float64], detected: NDArray[np.bool_], visibility: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the confidence of points, (frames, 143): visibility or 1, and 0 where missing."""
    sure = np.ones(values.shape[:2], dtype=np.float32)
    sure[:, PART_SLICES["pose"]] = np.where(np.isnan(visibility), 1, visibility)
    sure[_hidden(detected) | np.isnan(values).any(axis=-1)] = 0
    return sure


def _imported_feature(store: BaseStore) -> str | None:
    """Return the feature with points of pose files, if there is one."""
    found = [
        name for name, stored in store.features.items() if "pose_components" in stored.spec.attrs
    ]
    if len(found) > 1:
        raise InvalidError(
            f"points of .pose files are in {' and '.join(found)}; choose one with --feature"
        )
    return found[0] if found else None


def _check_keypoints(spec: FeatureSpec) -> None:
    companions = {c.name for c in spec.companions}
    named = {"face_list", "edges"} <= set(spec.attrs) and {MASK, "visibility"} <= companions
    if spec.shape != (N_POINTS, 3) or not named:
        raise InvalidError(
            f"feature {spec.name!r}, {spec.shape} a {spec.axis}, has no points that .pose files "
            "have names for; export keypoints, or what was imported from .pose files"
        )


def _keypoint_components(spec: FeatureSpec) -> list[Component]:
    """Return MediaPipe's components with the points of ``keypoints``."""
    stored = spec.attrs["face_list"]
    faces = FaceList(stored["name"], stored["points"])
    colors = {
        "pose": [255, 0, 0],
        "face": [128, 0, 0],
        "left_hand": [0, 255, 0],
        "right_hand": [255, 128, 0],
    }
    return [
        {
            "name": COMPONENTS[part],
            "format": "XYZC",
            "points": face_names(faces) if part == "face" else point_names(part),
            "limbs": [
                [a - points.start, b - points.start]
                for a, b in spec.attrs["edges"]
                if points.start <= a < points.stop
            ],
            "colors": [colors[part]],
        }
        for part, points in ((part, PART_SLICES[part]) for part in _WRITTEN_ORDER)
    ]
