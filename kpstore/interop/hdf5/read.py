"""Importing HDF5 files: exports of kpstore, and rows of frames from other files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import (
    Document,
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
    rows_spec,
)
from kpstore.interop.files import check_there
from kpstore.interop.hdf5.layout import ABOUT, BLOCK_BYTES, MARK, UNREADABLE, OpenFile, opened
from kpstore.interop.inputs import detect_parts, runs
from kpstore.options import Option
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.failures import FORM, Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.fields import stored_json
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PARTS, keypoints_spec
from kpstore.schema.video_fields import known_fps
from kpstore.store import format as fmt
from kpstore.store.agreement import agrees
from kpstore.store.store import is_store
from kpstore.user_files import parse_json

Missing = Literal["zeros", "nan"]


@dataclass(frozen=True)
class Hdf5Import(FileImporter):
    """Reads a file that kpstore exported, or one dataset of another file, with a row per frame.

    In other files, ``image_paths`` and ``video_ids`` (one text per row) are read if they exist,
    beside the dataset or at the root. Without ids, each folder of images is a video; without
    images, the file is one video. Rows of a video must follow each other.

    Parameters
    ----------
    dataset : ``group/name``; by default ``keypoints``, or the only dataset with rows of numbers.
    feature : name of the feature; that of the dataset by default. Rows (143, 3) are ``keypoints``.
    split : the split of all videos.
    missing : what stands for a part of ``keypoints`` that was not detected; NaN always does.
    face_list : which mesh points the face of ``keypoints`` is: a known name, or a file; phoenix by
        default.
    """

    dataset: Annotated[
        str, Option("Which dataset, of a file that kpstore did not write.", metavar="NAME")
    ] = ""
    feature: Annotated[str, Option("Name of the feature in the store.", metavar="NAME")] = ""
    split: Annotated[str, Option("The split of the videos.")] = ""
    missing: Annotated[
        Missing, Option("What stands for a part of keypoints that was not detected.")
    ] = "zeros"
    face_list: Annotated[
        str, Option("The face of keypoints: phoenix, ibug, or a file.", metavar="NAME")
    ] = ""

    def open(self, path: Path) -> Document:
        """Open the file; see :class:`kpstore.interop.base.Importer`."""
        if path.is_dir():
            _refuse_store(path)
        check_there(path, "HDF5 file")
        with opened(path, self.most_bytes) as file:
            _refuse_store(path)  # not before: a damaged file is reported as such
            if MARK not in file.file.attrs:
                return ForeignDocument(self, path, file)
            if self != Hdf5Import(max_memory=self.max_memory):
                raise InvalidError(
                    f"{path} was written by kpstore export and describes itself; leave out options"
                )
            return ExportedDocument(path, file, self.most_bytes)


def _refuse_store(path: Path) -> None:
    if is_store(path):
        raise InvalidError(f"{path} is a kpstore store itself; open it instead of importing it")


class ExportedDocument:
    """A file that :class:`Hdf5Export` wrote; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, path: Path, file: OpenFile, most_bytes: int | None) -> None:
        self._path, self._most_bytes = path, most_bytes
        version = file.attr(MARK)
        if version != 1:
            raise InvalidError(f"{path} has version {version} of the layout, this kpstore reads 1")
        self.name, self._annotations, self.features = _about(file)
        self._specs = {feature.spec.name: feature.spec for feature in self.features}
        self._lengths = _lengths(file)
        self.n_frames = int(self._lengths.sum())
        labels = {name for spec in self._specs.values() for name in spec.labels}
        others = set(file.names()) - labels - {ABOUT} - self._check(file)
        self.notes = [f"datasets {', '.join(sorted(others))}: not stored"] if others else []

    def _check(self, file: OpenFile) -> set[str]:
        """Check shapes and types; return the names of the datasets that are read."""
        n_videos = len(self._lengths)
        if not n_videos and not file.has("video_id"):
            return set()
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys((*fmt.VIDEO_ARRAYS, *self._annotations), (n_videos,)),
            **dict.fromkeys(fmt.FRAME_ARRAYS, (self.n_frames,)),
        }
        for spec in self._specs.values():
            metas = fmt.feature_metas(spec, n_videos=n_videos, n_frames=self.n_frames)
            shapes |= {name: meta.shape for name, meta in metas.items()}
        for name, shape in shapes.items():
            found = file.dataset(name).shape
            if found != shape:
                raise InvalidError(
                    f"{self._path}: {name} is {found}, but n_frames and the features make it "
                    f"{shape}"
                )
        for name, array in (pair for spec in self._specs.values() for pair in spec.arrays.items()):
            dtype = file.dataset(name).dtype
            # Other programs make numbers of what is bool: they are checked when they are read.
            rounds = dtype.kind in "fiu" and not np.can_cast(dtype, array.dtype, "safe")
            if rounds and array.dtype != "bool":
                raise InvalidError(
                    f"{self._path}: {name} is {dtype}, but the file says that it is {array.dtype}; "
                    "it was changed after its export"
                )
        return set(shapes)

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the videos one by one."""
        if not len(self._lengths):
            return
        with opened(self._path, self._most_bytes) as file:
            named = ("video_id", "split", *self._annotations)
            columns = {name: file.texts(name) for name in named}
            numbers = {name: _column(file, name) for name in ("fps", "width", "height")}
            states = {name: _column(file, fmt.state_name(name)) for name in self._specs}
            self._check_states(states)
            failures = {name: file.texts(fmt.failure_name(name)) for name in self._specs}
            stops = np.cumsum(self._lengths).tolist()
            row_bytes = sum(spec.row_bytes for spec in self._specs.values())
            for position, (length, stop) in enumerate(zip(self._lengths, stops, strict=True)):
                rows = slice(stop - int(length), stop)
                what = f"the {length} frames of {columns['video_id'][position]!r}"
                file.budget.check_frames(int(length), row_bytes, what)
                record = VideoRecord(
                    columns["video_id"][position],
                    columns["split"][position],
                    tuple(file.texts(fmt.IMAGE_PATH, rows, held=False)),
                    known_fps(numbers["fps"][position]),
                    numbers["width"][position],
                    numbers["height"][position],
                    {name: columns[name][position] for name in self._annotations},
                )
                texts = {name: failures[name][position] for name in self._specs}
                known = {name: int(states[name][position]) for name in self._specs}
                yield self._video(file, record, position, rows, texts, known)

    def _check_states(self, states: Mapping[str, NDArray[np.generic]]) -> None:
        for name, values in states.items():
            odd = np.flatnonzero(~np.isin(values, [int(state) for state in State]))
            if len(odd):
                raise InvalidError(
                    f"{self._path}: {fmt.state_name(name)}[{odd[0]}] is {values[odd[0]]}; "
                    f"states are {', '.join(f'{int(s)} ({s.name.lower()})' for s in State)}"
                )

    def _video(
        self,
        file: OpenFile,
        record: VideoRecord,
        position: int,
        rows: slice,
        texts: Mapping[str, str],
        states: Mapping[str, int],
    ) -> ImportedVideo:
        """Return a video with the features that are not pending.

        ``texts`` are the failures, and ``states`` the state, of each feature.
        """
        blocks, failed_frames, failed = {}, {}, {}
        what = f"the features of video {record.id!r}"
        for name, spec in self._specs.items():
            place = f"{self._path}: {fmt.failure_name(name)}[{position}]"
            failures = _failures(texts[name], rows.stop - rows.start, place)
            where = rows if spec.axis == "frame" else slice(position, position + 1)
            state_array = fmt.status_name if spec.axis == "frame" else fmt.state_name
            status = file.rows(state_array(name), where, what)
            if not agrees(states[name], failures, status) or (
                states[name] not in (State.PENDING, failures.state)
            ):
                raise InvalidError(
                    f"{self._path}: what {fmt.state_name(name)}, {fmt.status_name(name)} and "
                    f"{fmt.failure_name(name)} say of video {record.id!r} does not agree; the file "
                    "was changed after its export"
                )
            if states[name] == State.PENDING:
                continue
            failed_frames[name] = failures.frames
            if failures.video is not None:
                failed[name] = failures.video
            companions = {
                c.name: file.rows(f"{name}_{c.name}", where, what) for c in spec.companions
            }
            blocks[name] = FeatureRows(file.rows(name, where, what), companions)
        return ImportedVideo(record, blocks, failed_frames, failed)


def _about(file: OpenFile) -> tuple[str, list[str], list[ImportedFeature]]:
    """Return the name, the annotations and the features that an export says it holds."""
    try:
        about: Any = parse_json(file.text(ABOUT), ABOUT)
        features = [
            ImportedFeature(
                FeatureSpec.from_json(feature["spec"]), stored_json(feature["provenance"])
            )
            for feature in about["features"].values()
        ]
        return str(about["name"]), [str(name) for name in about["annotations"]], features
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidError(
            f"{file.path}: {ABOUT} does not say what the file holds ({reason}); export it again"
        ) from None


def _lengths(file: OpenFile) -> NDArray[np.int64]:
    """Return the number of frames of each video, (videos,) int64."""
    if not file.has("n_frames"):
        return np.zeros(0, dtype=np.int64)
    found = _column(file, "n_frames")
    if found.dtype.kind not in "iu":
        raise InvalidError(f"{file.path}: n_frames is {found.dtype}, not a count for each video")
    lengths = found.astype(np.int64)
    odd = np.flatnonzero(lengths < 0)
    if len(odd):
        raise InvalidError(
            f"{file.path}: n_frames[{odd[0]}] is {lengths[odd[0]]}; a video cannot have fewer than "
            "0 frames"
        )
    return lengths


def _column(file: OpenFile, name: str) -> NDArray[Any]:
    """Return an array with one number for each video."""
    dataset = file.dataset(name)
    if dataset.ndim != 1 or dataset.dtype.kind not in "fiub":
        raise InvalidError(
            f"{file.path}: {name} is {dataset.dtype} {dataset.shape}, not a number for each video"
        )
    return file.rows(name, slice(None), repr(name))


def _failures(text: str, n_frames: int, place: str) -> Failures:
    try:
        failures = Failures.from_text(text)
    except InvalidError:
        raise InvalidError(f"{place} is {text[:80]!r}; {FORM} needed") from None
    odd = next((frame for frame in failures.frames if not 0 <= frame < n_frames), None)
    if odd is not None:
        raise InvalidError(
            f"{place} says that frame {odd} failed, but the video has {n_frames} frames"
        )
    return failures


# -- files that kpstore did not write --------------------------------------------------------------


class ForeignDocument(NotedDocument):
    """One dataset of an HDF5 file; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, options: Hdf5Import, path: Path, file: OpenFile) -> None:
        super().__init__()
        self._options, self._path = options, path
        self._dataset = options.dataset or file.only_dataset()
        dataset = file.dataset(self._dataset)
        self.name = path.stem
        if dataset.ndim < 1 or dataset.dtype.kind not in "fiub":
            raise InvalidError(
                f"{path}: {self._dataset} is {dataset.dtype} {dataset.shape}, not rows of numbers"
            )
        self._fills = self._missing_numbers(file)
        self._faces = load_face_list(options.face_list or "phoenix")
        self._spec = self._find_spec(dataset)
        if options.face_list and not self._is_keypoints:
            raise InvalidError(
                f"{path}: {self._dataset} has rows of {dataset.shape[1:]}, which are not keypoints "
                f"({N_POINTS}, 3); leave out --face-list"
            )
        self._n_rows = self.n_frames = len(dataset)
        known: dict[str, object] = {"dataset": self._dataset}
        if self._is_keypoints:
            known["face_list"] = {"name": self._faces.name, "sha256": self._faces.sha256}
        self.features = (ImportedFeature(self._spec, imported("hdf5", {}, **known)),)
        self._ids = self._column(file, ("video_ids", "video_id"))
        self._paths = self._column(file, ("image_paths", "image_path"))
        self._note_others(file)

    def _missing_numbers(self, file: OpenFile) -> list[float]:
        """Return which numbers stand for missing values by netCDF's conventions (CF).

        Raises
        ------
        InvalidError
            If the numbers are packed by these conventions.
        """
        for attribute, plain in (("scale_factor", 1), ("add_offset", 0)):
            if any(number != plain for number in file.numbers_beside(self._dataset, attribute)):
                raise InvalidError(
                    f"{self._path}: {self._dataset} is packed, as its attribute {attribute} says; "
                    "save it unpacked, in xarray by drop_encoding()"
                )
        fills = ("_FillValue", "missing_value")
        return [number for fill in fills for number in file.numbers_beside(self._dataset, fill)]

    @property
    def _is_keypoints(self) -> bool:
        return self._spec.name == "keypoints" and self._spec.shape == (N_POINTS, 3)

    def _find_spec(self, dataset: h5py.Dataset) -> FeatureSpec:
        given, shape = self._options.feature, dataset.shape[1:]
        if shape == (N_POINTS, 3) and given in ("", "keypoints"):
            return keypoints_spec(self._faces)
        own = re.sub(r"[^a-z0-9_]+", "_", dataset.name.rpartition("/")[2].lower()).strip("_")
        return rows_spec(given or own, shape, dataset.dtype.newbyteorder("=").name)

    def _column(self, file: OpenFile, names: Sequence[str]) -> list[str] | None:
        folder = self._dataset.rpartition("/")[0]
        for name in (f"{at}/{name}".lstrip("/") for at in (folder, "") for name in names):
            if file.has(name):
                found = file.dataset(name)
                if found.ndim == 1 and len(found) != self._n_rows:
                    raise InvalidError(
                        f"{self._path}: {name} has {len(found)} texts for {self._n_rows} rows of "
                        f"{self._dataset}"
                    )
                texts = file.texts(name)
                if any("\\" in text for text in texts):
                    self.note(f"backslashes in {name} became forward slashes")
                return [text.replace("\\", "/") for text in texts]
        return None

    def _note_others(self, file: OpenFile) -> None:
        known = {"image_paths", "video_ids", "image_path", "video_id"}
        names = [n for n in file.names() if n.rpartition("/")[2] not in known]
        others = ", ".join(n for n in names if n != self._dataset)
        if others:
            self.note(f"datasets {others}: import each with --dataset NAME")

    def _read(self) -> Iterator[ImportedVideo]:
        self._rounded = 0
        with opened(self._path, self._options.most_bytes) as file:
            for video_id, rows in self._runs():
                values = self._rows(file, rows)
                numbered = (f"{video_id}#{n}" for n in range(len(values)))
                paths = tuple(self._paths[rows] if self._paths else numbered)
                record = VideoRecord(video_id, self._options.split, paths)
                yield ImportedVideo(record, {self._spec.name: values})
        if self._rounded:
            self.note(
                f"values of {self._dataset} were rounded to float32 in {self._rounded} rows; "
                "--feature NAME keeps them as they are, without parts"
            )

    def _runs(self) -> Iterator[tuple[str, slice]]:
        """Yield the ids of the videos with their rows."""
        owners = self._ids
        if owners is None and self._paths is not None:
            folders = [PurePosixPath(path).parent.as_posix() for path in self._paths]
            owners = [self.name if folder == "." else folder for folder in folders]
        if owners is None:
            yield self.name, slice(0, self._n_rows)
            return
        for owner, rows in runs(owners):
            if not owner:
                raise InvalidError(
                    f"{self._path}: row {rows.start} of {self._dataset} has an empty video id"
                )
            yield owner, rows

    def _rows(self, file: OpenFile, rows: slice) -> FeatureRows:
        """Read one video in blocks: without ids the whole file is one, which memory holds once."""
        dataset = file.dataset(self._dataset)
        what = f"rows {rows.start}:{rows.stop} of {self._dataset}"
        file.budget.check_frames(rows.stop - rows.start, self._spec.row_bytes, what)
        values = np.empty((rows.stop - rows.start, *self._spec.shape), dtype=self._spec.dtype)
        detected = np.ones((len(values), len(PARTS)), dtype=bool)
        size = max(1, BLOCK_BYTES // max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize))
        for start in range(0, len(values), size):
            block, first = values[start : start + size], rows.start + start
            found = file.rows(self._dataset, slice(first, first + len(block)), what)
            self._fill(block, found, first)
            if self._is_keypoints:
                zeros = self._options.missing == "zeros"
                detected[start : start + size] = detect_parts(block, zeros=zeros)
        return FeatureRows(values, {"detected": detected} if self._is_keypoints else {})

    def _fill(self, block: NDArray[np.number], found: NDArray[np.number], first: int) -> None:
        """Copy numbers of a file into rows; count rows that change, refuse those that overflow."""
        found = self._without_fills(found, block.dtype, first)
        with np.errstate(all="ignore"):
            block[...] = found
            if not self._is_keypoints or np.can_cast(found.dtype, block.dtype, "safe"):
                return
            # As numbers of the file: compared with one of float32, an integer is a rounded one.
            exact = (block.astype(found.dtype) == found) | (np.isnan(block) & np.isnan(found))
            lost = np.isinf(block) & np.isfinite(found)
        if lost.any():
            row, value = first + int(np.argwhere(lost)[0][0]), found[lost][0]
            raise InvalidError(
                f"{self._path}: row {row} of {self._dataset} has {value:g}, more than float32 "
                "holds; keep the numbers as they are with --feature NAME"
            )
        self._rounded += int((~exact).any(axis=(1, 2)).sum())

    def _without_fills(
        self, found: NDArray[np.number], dtype: np.dtype[np.number], first: int
    ) -> NDArray[np.number]:
        """Return numbers of a file with NaN where they stand for missing values."""
        if not self._fills or found.dtype.kind == "b":
            return found
        with np.errstate(all="ignore"):
            fills = [(fill, np.array(fill).astype(found.dtype)) for fill in self._fills]
        # An integer that its type does not hold is nowhere; it became another one.
        held = [number for fill, number in fills if found.dtype.kind == "f" or number == fill]
        gone = np.isin(found, held)
        if not gone.any():
            return found
        if dtype.kind != "f":
            row = first + int(np.argwhere(gone)[0][0])
            raise InvalidError(
                f"{self._path}: row {row} of {self._dataset} is missing, as its attribute "
                f"_FillValue or missing_value says, and {dtype} has no missing value; save it as "
                "floats"
            )
        return np.where(gone, np.nan, found)
