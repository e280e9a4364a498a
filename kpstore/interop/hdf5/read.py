"""A plain HDF5 file of a store's arrays, for h5py users without kpstore.

And simple HDF5 files of others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import (
    Document,
    ImportedFeature,
    ImportedVideo,
)
from kpstore.interop.files import check_there
from kpstore.interop.hdf5.foreign import ForeignDocument
from kpstore.interop.hdf5.layout import (
    ABOUT,
    MARK,
    UNREADABLE,
    dataset_of,
    opened,
    texts_of,
)
from kpstore.options import Option, check_choice
from kpstore.schema.failures import FORM, Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.video_fields import known_fps
from kpstore.store import format as fmt
from kpstore.store.store import backend_for

Compress = Literal["none", "gzip", "lzf"]
Missing = Literal["zeros", "nan"]


@dataclass(frozen=True)
class Hdf5Import:
    """Reads what ``kpstore export hdf5`` wrote.

    Or one dataset, rows by frame, of a simple file of somebody else's.

    Of another file, ``image_paths`` and ``video_ids`` (one text per row) are read if they are
    there, beside the dataset or at the root. Without ids a video is the folder of its images;
    without images too the file is one video. Rows of a video must follow each other.

    Parameters
    ----------
    dataset : which, as ``group/name``; ``keypoints``, or the only one with rows of numbers, by
        default.
    feature : what it is called; its own name by default. Rows (143, 3) are ``keypoints``.
    split : of all videos.
    missing : what stands for a part of ``keypoints`` that was not detected; NaN always does.
    face_list : which mesh points the face of ``keypoints`` is: a known name, or a file; phoenix by
        default.
    """

    dataset: Annotated[
        str, Option("Which one, of a file that kpstore did not write.", metavar="NAME")
    ] = ""
    feature: Annotated[str, Option("What it is called in the store.", metavar="NAME")] = ""
    split: Annotated[str, Option("The split that its videos belong to.")] = ""
    missing: Annotated[
        Missing, Option("What stands for a part of keypoints that was not detected.")
    ] = "zeros"

    face_list: Annotated[
        str, Option("The face of keypoints: phoenix, ibug, or a file.", metavar="NAME")
    ] = ""

    def __post_init__(self) -> None:
        check_choice("missing", self.missing, get_args(Missing))

    def open(self, path: Path) -> Document:
        """Open the file; see :class:`kpstore.interop.base.Importer`."""
        if path.is_dir():
            _refuse_store(path)
        check_there(path, "HDF5 file")
        with opened(path) as file:
            _refuse_store(
                path
            )  # once it is open: of a file that cannot be, nobody knows what it is
            if MARK not in file.attrs:
                return ForeignDocument(self, path, file)
            if self != Hdf5Import():
                raise InvalidError(
                    f"{path} was written by kpstore export: it says itself what it holds; leave "
                    "out options"
                )
            return ExportedDocument(path, file)


def _refuse_store(path: Path) -> None:
    if backend_for(str(path)).exists():
        raise InvalidError(f"{path} is a kpstore store itself, nothing to import; open it as it is")


class ExportedDocument:
    """A file that :class:`Hdf5Export` wrote; see :class:`kpstore.interop.base.Document`."""

    notes: Sequence[str] = ()

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        if file.attrs[MARK] != 1:
            raise InvalidError(
                f"{path} has layout {file.attrs[MARK]!r} of exports, this kpstore reads 1"
            )
        about = _about(dataset_of(file, path, ABOUT), path)
        self.name = str(about["name"])
        self._annotations = [str(name) for name in about["annotations"]]
        self._specs: dict[str, FeatureSpec] = about["specs"]
        self.features = [
            ImportedFeature(spec, about["features"][n]["provenance"])
            for n, spec in self._specs.items()
        ]
        self._lengths = (
            _lengths(dataset_of(file, path, "n_frames"), path)
            if "n_frames" in file
            else _NO_LENGTHS
        )
        self.n_frames = int(self._lengths.sum())
        self._check(file)

    def _check(self, file: h5py.File) -> None:
        n_videos = len(self._lengths)
        if not n_videos and "video_id" not in file:
            return
        shapes: dict[str, tuple[int, ...]] = {}
        shapes.update(dict.fromkeys((*fmt.VIDEO_ARRAYS, *self._annotations), (n_videos,)))
        shapes.update(dict.fromkeys(fmt.FRAME_ARRAYS, (self.n_frames,)))
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
            columns = {
                name: texts_of(file[name], self._path)
                for name in ("video_id", "split", *self._annotations)
            }
            numbers = {name: file[name][()] for name in ("fps", "width", "height")}
            ledgers = {
                name: (
                    file[fmt.state_name(name)][()],
                    texts_of(file[fmt.failure_name(name)], self._path),
                )
                for name in self._specs
            }
            self._check_states({name: states for name, (states, _) in ledgers.items()})
            start = 0
            for position, length in enumerate(self._lengths.tolist()):
                rows = slice(start, start + length)
                record = VideoRecord(
                    columns["video_id"][position],
                    columns["split"][position],
                    tuple(texts_of(file[fmt.IMAGE_PATH], self._path, rows)),
                    known_fps(numbers["fps"][position]),
                    int(numbers["width"][position]),
                    int(numbers["height"][position]),
                    {name: columns[name][position] for name in self._annotations},
                )
                yield self._video(file, record, position, rows, ledgers)
                start += length

    def _check_states(self, states: Mapping[str, NDArray[Any]]) -> None:
        for name, values in states.items():
            odd = np.flatnonzero(~np.isin(values, [int(state) for state in State]))
            if len(odd):
                raise InvalidError(
                    f"{self._path}: {fmt.state_name(name)}[{odd[0]}] is {values[odd[0]]}; "
                    f"states are {', '.join(f'{int(s)} ({s.name.lower()})' for s in State)}"
                )

    def _video(
        self,
        file: h5py.File,
        record: VideoRecord,
        position: int,
        rows: slice,
        ledgers: Mapping[str, Any],
    ) -> ImportedVideo:
        blocks, failed_frames, failed = {}, {}, {}
        for name, spec in self._specs.items():
            states, texts = ledgers[name]
            if states[position] == State.PENDING:
                continue
            place = f"{self._path}: {fmt.failure_name(name)}[{position}]"
            failures = _failures(texts[position], rows.stop - rows.start, place)
            failed_frames[name] = failures.frames
            if failures.video is not None:
                failed[name] = failures.video
            where = rows if spec.axis == "frame" else slice(position, position + 1)
            arrays = {array: file[array][where] for array in spec.arrays}
            values = arrays.pop(name)
            blocks[name] = FeatureRows(
                values, {key.removeprefix(f"{name}_"): a for key, a in arrays.items()}
            )
        return ImportedVideo(record, blocks, failed_frames, failed)


_NO_LENGTHS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


def _about(dataset: h5py.Dataset, path: Path) -> dict[str, Any]:
    """Return what an export says of itself; with ``specs``, the features' specs by name."""
    try:
        about = json.loads(dataset.asstr()[()])
        specs = {
            name: FeatureSpec.from_json(feature["spec"])
            for name, feature in about["features"].items()
        }
        return {
            "name": about["name"],
            "annotations": list(about["annotations"]),
            **about,
            "specs": specs,
        }
    except (*UNREADABLE, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidError(
            f"{path}: {ABOUT} does not say what the file holds ({reason}); export it again"
        ) from None


def _lengths(dataset: h5py.Dataset, path: Path) -> NDArray[np.int64]:
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        raise InvalidError(
            f"{path}: n_frames is {dataset.dtype} {dataset.shape}, not a count for each video"
        )
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
