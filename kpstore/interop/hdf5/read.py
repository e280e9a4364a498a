"""Importing HDF5 files: exports of kpstore, and rows of frames from other files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import Document, ImportedFeature, ImportedVideo, Options
from kpstore.interop.files import check_there, is_store
from kpstore.interop.hdf5.foreign import ForeignDocument
from kpstore.interop.hdf5.layout import (
    ABOUT,
    MARK,
    UNREADABLE,
    dataset_of,
    numbers_of,
    opened,
    own_item,
    text_of,
    texts_of,
)
from kpstore.options import Option
from kpstore.schema.failures import FORM, Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.video_fields import known_fps
from kpstore.store import format as fmt
from kpstore.user_files import check_memory

Missing = Literal["zeros", "nan"]


@dataclass(frozen=True)
class Hdf5Import(Options):
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
        with opened(path) as file:
            _refuse_store(path)  # not before: a damaged file is reported as such
            if MARK not in file.attrs:
                return ForeignDocument(self, path, file)
            if self != Hdf5Import():
                raise InvalidError(
                    f"{path} was written by kpstore export and describes itself; leave out options"
                )
            return ExportedDocument(path, file)


def _refuse_store(path: Path) -> None:
    if is_store(path):
        raise InvalidError(f"{path} is a kpstore store itself; open it instead of importing it")


class ExportedDocument:
    """A file that :class:`Hdf5Export` wrote; see :class:`kpstore.interop.base.Document`."""

    notes: Sequence[str] = ()

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        mark = file.attrs.get_id(MARK)
        # Only a number is read: HDF5's library trusts the sizes of text.
        version = file.attrs[MARK] if mark.dtype.kind in "iu" and mark.shape == () else mark.dtype
        if version != 1:
            raise InvalidError(f"{path} has version {version} of the layout, this kpstore reads 1")
        self.name, self._annotations, self.features = _about(dataset_of(file, path, ABOUT), path)
        self._specs = {feature.spec.name: feature.spec for feature in self.features}
        self._lengths = _lengths(file, path)
        self.n_frames = int(self._lengths.sum())
        self._check(file)

    def _check(self, file: h5py.File) -> None:
        n_videos = len(self._lengths)
        if not n_videos and own_item(file, "video_id") is None:
            return
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys((*fmt.VIDEO_ARRAYS, *self._annotations), (n_videos,)),
            **dict.fromkeys(fmt.FRAME_ARRAYS, (self.n_frames,)),
        }
        for spec in self._specs.values():
            metas = fmt.feature_metas(spec, n_videos=n_videos, n_frames=self.n_frames)
            shapes |= {name: meta.shape for name, meta in metas.items()}
        for name, shape in shapes.items():
            found = dataset_of(file, self._path, name).shape
            if found != shape:
                raise InvalidError(
                    f"{self._path}: {name} is {found}, but n_frames and the features make it "
                    f"{shape}"
                )

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the videos one by one."""
        if not len(self._lengths):
            return
        with opened(self._path) as file:
            named = ("video_id", "split", *self._annotations)
            columns = {name: texts_of(self._of(file, name), self._path) for name in named}
            numbers = {name: self._column(file, name) for name in ("fps", "width", "height")}
            states = {name: self._column(file, fmt.state_name(name)) for name in self._specs}
            self._check_states(states)
            failures = {
                n: texts_of(self._of(file, fmt.failure_name(n)), self._path) for n in self._specs
            }
            stops = np.cumsum(self._lengths).tolist()
            for position, (length, stop) in enumerate(zip(self._lengths, stops, strict=True)):
                rows = slice(stop - int(length), stop)
                record = VideoRecord(
                    columns["video_id"][position],
                    columns["split"][position],
                    tuple(texts_of(self._of(file, fmt.IMAGE_PATH), self._path, rows)),
                    known_fps(numbers["fps"][position]),
                    int(numbers["width"][position]),
                    int(numbers["height"][position]),
                    {name: columns[name][position] for name in self._annotations},
                )
                held = {
                    name: failures[name][position]
                    for name in self._specs
                    if states[name][position] != State.PENDING
                }
                yield self._video(file, record, position, rows, held)

    def _of(self, file: h5py.File, name: str) -> h5py.Dataset:
        return dataset_of(file, self._path, name)

    def _check_states(self, states: Mapping[str, NDArray[np.generic]]) -> None:
        for name, values in states.items():
            odd = np.flatnonzero(~np.isin(values, [int(state) for state in State]))
            if len(odd):
                raise InvalidError(
                    f"{self._path}: {fmt.state_name(name)}[{odd[0]}] is {values[odd[0]]}; "
                    f"states are {', '.join(f'{int(s)} ({s.name.lower()})' for s in State)}"
                )

    def _column(self, file: h5py.File, name: str) -> NDArray[np.generic]:
        """Return an array with one number for each video."""
        column = numbers_of(file, self._path, name)
        check_memory(self._path, column.nbytes, repr(name))
        return np.asarray(column[()])

    def _video(
        self,
        file: h5py.File,
        record: VideoRecord,
        position: int,
        rows: slice,
        texts: Mapping[str, str],
    ) -> ImportedVideo:
        """Return a video with the features in ``texts``, which are the failures of each."""
        blocks, failed_frames, failed = {}, {}, {}
        n_bytes = 0
        for name, text in texts.items():
            spec = self._specs[name]
            place = f"{self._path}: {fmt.failure_name(name)}[{position}]"
            failures = _failures(text, rows.stop - rows.start, place)
            failed_frames[name] = failures.frames
            if failures.video is not None:
                failed[name] = failures.video
            where = rows if spec.axis == "frame" else slice(position, position + 1)
            n_bytes += (where.stop - where.start) * spec.row_bytes
            check_memory(self._path, n_bytes, f"the features of video {record.id!r}")
            companions = {
                c.name: numbers_of(file, self._path, f"{name}_{c.name}")[where]
                for c in spec.companions
            }
            values = numbers_of(file, self._path, name)[where]
            blocks[name] = FeatureRows(values, companions)
        return ImportedVideo(record, blocks, failed_frames, failed)


def _about(dataset: h5py.Dataset, path: Path) -> tuple[str, list[str], list[ImportedFeature]]:
    """Return the name, the annotations and the features that an export says it holds."""
    try:
        about = json.loads(text_of(dataset, path))
        features = [
            ImportedFeature(FeatureSpec.from_json(feature["spec"]), feature["provenance"])
            for feature in about["features"].values()
        ]
        return str(about["name"]), [str(name) for name in about["annotations"]], features
    except UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidError(
            f"{path}: {ABOUT} does not say what the file holds ({reason}); export it again"
        ) from None


def _lengths(file: h5py.File, path: Path) -> NDArray[np.int64]:
    """Return the number of frames of each video, (videos,) int64."""
    if own_item(file, "n_frames") is None:
        return np.zeros(0, dtype=np.int64)
    dataset = dataset_of(file, path, "n_frames")
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        raise InvalidError(
            f"{path}: n_frames is {dataset.dtype} {dataset.shape}, not a count for each video"
        )
    check_memory(path, dataset.nbytes, "'n_frames'")
    lengths = np.asarray(dataset[()], dtype=np.int64)
    odd = np.flatnonzero(lengths < 0)
    if len(odd):
        raise InvalidError(
            f"{path}: n_frames[{odd[0]}] is {lengths[odd[0]]}; a video cannot have fewer than 0 "
            "frames"
        )
    return lengths


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
