"""A plain HDF5 file of a store's arrays, for h5py users without kpstore; and simple HDF5 files of others."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.asides import check_room
from kpstore.backends.base import TEXT, ArrayMeta
from kpstore.errors import InvalidError, NotFoundError, one_line
from kpstore.interop.base import (
    Document,
    ExportedFile,
    ExportReport,
    Format,
    ImportedFeature,
    ImportedVideo,
    OnProgress,
    imported,
)
from kpstore.interop.files import check_free, check_there, written_aside
from kpstore.options import Option, check_choice
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.failures import FORM, Failures
from kpstore.schema.feature import FeatureRows, FeatureSpec, State
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PART_SLICES, PARTS, keypoints_spec
from kpstore.schema.video_fields import known_fps
from kpstore.store import format as fmt
from kpstore.store.store import Store, backend_for

Compress = Literal["none", "gzip", "lzf"]
Missing = Literal["zeros", "nan"]

MARK = "kpstore_export"
"""Root attribute of the files written here; its value is the version of their layout, 1."""
ABOUT = "_kpstore_export_about"
"""Scalar text (JSON): name, annotations, and spec and provenance of every feature. Attributes end at 64 KiB.

Not ``_kpstore``: that group tells kpstore's own HDF5 stores from all other files.
"""
README = (
    "All videos lie one after another on the first axis of every dataset whose dimension is 'frame': with "
    "start = n_frames[:i].sum(), video i, which is called video_id[i], holds rows start to start + n_frames[i]. "
    "In F_status 1 says that a frame was looked at (0: not yet, 2: it failed); NaN in F is what was not found in it."
)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHUNK_BYTES = 2**18
"""Bytes of a chunk: a quarter of the cache that h5py has for each dataset."""
_BLOCK_BYTES = 8 * 2**20
_TEXT_ROW_BYTES = 2**10
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, OverflowError)


# -- writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hdf5Export:
    """Writes one HDF5 file with the store's arrays under their names (docs/format.md).

    Numbers keep their types, text is of variable length in UTF-8, dimensions have names, labels are dimension scales.

    Parameters
    ----------
    splits : only their videos.
    features : only these, with all that belongs to them.
    compression : of every dataset; ``"lzf"`` only h5py reads.
    """

    splits: Annotated[Sequence[str] | None, Option("Only these; all by default.", metavar="SPLIT...")] = None
    features: Annotated[list[str] | None, Option("Only this feature; may be given again.", metavar="NAME")] = None
    compression: Annotated[Compress, Option("How chunks are stored; lzf is for h5py alone.")] = "none"

    def __post_init__(self) -> None:
        check_choice("compression", self.compression, get_args(Compress))

    def export(
        self, store: Store, path: Path, *, overwrite: bool = False, on_progress: OnProgress | None = None
    ) -> ExportReport:
        """Write the file; see :class:`kpstore.interop.base.Exporter`."""
        writer = _Writer(store, path, self, on_progress or (lambda n: None))
        check_free([path], overwrite=overwrite)
        with written_aside(path) as (aside,), h5py.File(aside, "w") as file:
            writer.write(file)
        return ExportReport([ExportedFile(path, len(writer.rows["frame"]), len(writer.rows["video"]))])


class _Writer:
    """Writes the arrays of a store, a block of rows at a time."""

    def __init__(self, store: Store, path: Path, options: Hdf5Export, report: OnProgress) -> None:
        self._store, self._path, self._report = store, path, report
        names = store.features if options.features is None else dict.fromkeys(options.features)
        self._features = {name: fmt.check_feature(store.features, name) for name in names}
        wanted = None if options.splits is None else list(dict.fromkeys(options.splits))
        videos = store.index.select(split=wanted)
        self.rows = {"video": videos, "frame": store.index.rows_of(videos)}
        packed: dict[str, Any] = {"compression": options.compression, "shuffle": True}
        self._packing = {} if options.compression == "none" else packed
        if ABOUT in store.view.names():
            raise InvalidError(f"the store has an annotation {ABOUT!r}, a name that the file needs itself")

    def write(self, file: h5py.File) -> None:
        """Write everything."""
        about = {
            "name": self._store.name,
            "annotations": self._store.annotation_names,
            "features": {n: {"spec": f.spec.to_json(), "provenance": f.provenance} for n, f in self._features.items()},
        }
        file.attrs.update({MARK: 1, "Conventions": "CF-1.11", "title": self._store.name, "README": README})
        file.create_dataset(ABOUT, data=json.dumps(about, ensure_ascii=False), dtype=h5py.string_dtype())
        arrays = self._arrays()
        for name, meta in arrays.items():
            self._create(file, name, meta)
        scales = {"video": "video_id"} | {name: name for name, meta in arrays.items() if meta.dims == (name,)}
        for name, meta in arrays.items():
            for axis, dim in enumerate(meta.dims):
                file[name].dims[axis].label = dim
                if scales.get(dim, name) != name and scales[dim] in file:
                    file[name].dims[axis].attach_scale(file[scales[dim]])
        for dim, name in scales.items():
            if name in file and not file[name].is_scale:
                file[name].make_scale(dim)

    def _arrays(self) -> dict[str, ArrayMeta]:
        view = self._store.view
        wanted = [*fmt.VIDEO_ARRAYS, *self._store.annotation_names, *fmt.FRAME_ARRAYS]
        for feature in self._features.values():
            wanted += fmt.feature_metas(feature.spec, n_videos=0, n_frames=0)
            wanted += feature.spec.labels
        there = set(view.names())
        return {name: view.meta(name) for name in dict.fromkeys(wanted) if name in there}

    def _create(self, file: h5py.File, name: str, meta: ArrayMeta) -> None:
        rows = self.rows.get(meta.dims[0], np.arange(meta.n_rows))
        text = meta.dtype == TEXT
        row_bytes = _TEXT_ROW_BYTES if text else math.prod(meta.shape[1:]) * np.dtype(meta.dtype).itemsize
        chunk = max(1, min(_CHUNK_BYTES // row_bytes, len(rows)))
        dataset = file.create_dataset(
            name,
            (len(rows), *meta.shape[1:]),
            h5py.string_dtype() if text else np.dtype(meta.dtype),
            chunks=(chunk, *meta.shape[1:]),
            maxshape=(None, *meta.shape[1:]),
            fillvalue=None if text else meta.fill,
            **self._packing,
        )
        dataset.attrs.update({key: value for key, value in meta.attrs.items() if isinstance(value, str | int | list)})
        block = max(chunk, _BLOCK_BYTES // row_bytes // chunk * chunk)
        for start in range(0, len(rows), block):
            taken = rows[start : start + block]
            values = self._store.read(name, taken)
            if text:
                _check_text(name, values)
            check_room(self._path, sum(map(len, values.tolist())) * 4 if text else values.nbytes)
            dataset[start : start + len(taken)] = values
            if name in self._features and meta.dims[0] == "frame":
                self._report(len(taken))


def _check_text(name: str, texts: NDArray[np.object_]) -> None:
    odd = next((text for text in texts.tolist() if "\0" in text), None)
    if odd is not None:
        raise InvalidError(f"{name} has the text {odd!r}; HDF5 ends text at a zero byte")


# -- reading ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hdf5Import:
    """Reads what ``kpstore export hdf5`` wrote; or one dataset, rows by frame, of a simple file of somebody else's.

    Of another file, ``image_paths`` and ``video_ids`` (one text per row) are read if they are there, beside the
    dataset or at the root. Without ids a video is the folder of its images; without images too the file is one
    video. Rows of a video must follow each other.

    Parameters
    ----------
    dataset : which, as ``group/name``; ``keypoints``, or the only one with rows of numbers, by default.
    feature : what it is called; its own name by default. Rows (143, 3) are ``keypoints``.
    split : of all videos.
    missing : what stands for a part of ``keypoints`` that was not detected; NaN always does.
    face_list : which mesh points the face of ``keypoints`` is: a known name, or a file; phoenix by default.
    """

    dataset: Annotated[str, Option("Which one, of a file that kpstore did not write.", metavar="NAME")] = ""
    feature: Annotated[str, Option("What it is called in the store.", metavar="NAME")] = ""
    split: Annotated[str, Option("The split that its videos belong to.")] = ""
    missing: Annotated[Missing, Option("What stands for a part of keypoints that was not detected.")] = "zeros"

    face_list: Annotated[str, Option("The face of keypoints: phoenix, ibug, or a file.", metavar="NAME")] = ""

    def __post_init__(self) -> None:
        check_choice("missing", self.missing, get_args(Missing))

    def open(self, path: Path) -> Document:
        """Open the file; see :class:`kpstore.interop.base.Importer`."""
        if path.is_dir():
            _refuse_store(path)
        check_there(path, "HDF5 file")
        with _opened(path) as file:
            _refuse_store(path)  # once it is open: of a file that cannot be, nobody knows what it is
            if MARK not in file.attrs:
                return ForeignDocument(self, path, file)
            if self != Hdf5Import():
                raise InvalidError(
                    f"{path} was written by kpstore export: it says itself what it holds; leave out options"
                )
            return ExportedDocument(path, file)


def _refuse_store(path: Path) -> None:
    if backend_for(str(path)).exists():
        raise InvalidError(f"{path} is a kpstore store itself, nothing to import; open it as it is")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open a file; whatever h5py then raises becomes one line."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except _UNREADABLE as error:
        if isinstance(error, InvalidError | NotFoundError):
            raise
        raise InvalidError(f"{path}: it is no HDF5 file, or a damaged one ({one_line(error)})") from None


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """Return a dataset whose values are all in this file: a stranger's file must not choose what else is read."""
    found = _own(file, path, name)
    if not isinstance(found, h5py.Dataset):
        raise InvalidError(f"{path} has no dataset {name!r}; it has {', '.join(sorted(_datasets(file))) or 'none'}")
    if found.external or found.is_virtual:
        raise InvalidError(
            f"{path}: the values of {name!r} lie in other files, which are not read; copy them into one dataset"
        )
    return found


def _own(file: h5py.File, path: Path, name: str) -> h5py.Group | h5py.Dataset | None:
    """Return what has a name in a file, without following links; None if there is nothing."""
    found: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        if part in ("", "."):
            continue
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            kind = "a link into another file" if isinstance(link, h5py.ExternalLink) else "a soft link"
            raise InvalidError(f"{path}: {name!r} is {kind}, which is not followed; name the dataset itself")
        found = found[part]
    return found


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: found.update({name: item} if isinstance(item, h5py.Dataset) else {}))
    return found


def _texts(dataset: h5py.Dataset, path: Path, rows: slice = slice(None)) -> list[str]:
    kind = h5py.check_string_dtype(dataset.dtype)
    if kind is None or dataset.ndim != 1:
        raise InvalidError(f"{path}: {dataset.name} is {dataset.dtype} {dataset.shape}, not a text for each row")
    return list(dataset.asstr("utf-8")[rows].tolist())


class ExportedDocument:
    """A file that :class:`Hdf5Export` wrote; see :class:`kpstore.interop.base.Document`."""

    notes: Sequence[str] = ()

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        if file.attrs[MARK] != 1:
            raise InvalidError(f"{path} has layout {file.attrs[MARK]!r} of exports, this kpstore reads 1")
        about = _about(_dataset(file, path, ABOUT), path)
        self.name = str(about["name"])
        self._annotations = [str(name) for name in about["annotations"]]
        self._specs: dict[str, FeatureSpec] = about["specs"]
        self.features = [ImportedFeature(spec, about["features"][n]["provenance"]) for n, spec in self._specs.items()]
        self._lengths = _lengths(_dataset(file, path, "n_frames"), path) if "n_frames" in file else _NO_LENGTHS
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
            found = _dataset(file, self._path, name).shape
            if found != shape:
                raise InvalidError(f"{self._path}: {name} is {found}, but n_frames and the features make it {shape}")

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the videos one by one."""
        if not len(self._lengths):
            return
        with _opened(self._path) as file:
            columns = {name: _texts(file[name], self._path) for name in ("video_id", "split", *self._annotations)}
            numbers = {name: file[name][()] for name in ("fps", "width", "height")}
            ledgers = {
                name: (file[fmt.state_name(name)][()], _texts(file[fmt.failure_name(name)], self._path))
                for name in self._specs
            }
            self._check_states({name: states for name, (states, _) in ledgers.items()})
            start = 0
            for position, length in enumerate(self._lengths.tolist()):
                rows = slice(start, start + length)
                record = VideoRecord(
                    columns["video_id"][position],
                    columns["split"][position],
                    tuple(_texts(file[fmt.IMAGE_PATH], self._path, rows)),
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
        self, file: h5py.File, record: VideoRecord, position: int, rows: slice, ledgers: Mapping[str, Any]
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
            blocks[name] = FeatureRows(values, {key.removeprefix(f"{name}_"): a for key, a in arrays.items()})
        return ImportedVideo(record, blocks, failed_frames, failed)


_NO_LENGTHS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


def _about(dataset: h5py.Dataset, path: Path) -> dict[str, Any]:
    """Return what an export says of itself; with ``specs``, the features' specs by name."""
    try:
        about = json.loads(dataset.asstr()[()])
        specs = {name: FeatureSpec.from_json(feature["spec"]) for name, feature in about["features"].items()}
        return {"name": about["name"], "annotations": list(about["annotations"]), **about, "specs": specs}
    except (*_UNREADABLE, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidError(f"{path}: {ABOUT} does not say what the file holds ({reason}); export it again") from None


def _lengths(dataset: h5py.Dataset, path: Path) -> NDArray[np.int64]:
    if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
        raise InvalidError(f"{path}: n_frames is {dataset.dtype} {dataset.shape}, not a count for each video")
    lengths = np.asarray(dataset[()], dtype=np.int64)
    odd = np.flatnonzero(lengths < 0)
    if len(odd):
        raise InvalidError(f"{path}: n_frames[{odd[0]}] is {lengths[odd[0]]}; a video cannot have fewer than 0 frames")
    return lengths


def _failures(text: str, n_frames: int, place: str) -> Failures:
    try:
        failures = Failures.from_text(text)
    except InvalidError:
        raise InvalidError(f"{place} is {text[:80]!r}; {FORM} needed") from None
    odd = next((frame for frame in failures.frames if not 0 <= frame < n_frames), None)
    if odd is not None:
        raise InvalidError(f"{place} says that frame {odd} failed, but the video has {n_frames} frames")
    return failures


class ForeignDocument:
    """One dataset of a file that is not ours; see :class:`kpstore.interop.base.Document`."""

    def __init__(self, options: Hdf5Import, path: Path, file: h5py.File) -> None:
        self._options, self._path = options, path
        self._dataset = options.dataset or _only_dataset(path, file)
        dataset = _dataset(file, path, self._dataset)
        self.name = path.stem
        if dataset.ndim < 1 or dataset.dtype.kind not in "fiub":
            raise InvalidError(f"{path}: {self._dataset} is {dataset.dtype} {dataset.shape}, not rows of numbers")
        self._faces = load_face_list(options.face_list or "phoenix")
        self._spec = self._find_spec(dataset)
        if options.face_list and not self._is_keypoints:
            raise InvalidError(
                f"{path}: {self._dataset} has rows of {dataset.shape[1:]}, which are no keypoints ({N_POINTS}, 3); "
                "leave out --face-list"
            )
        self.n_frames = len(dataset)
        faces = {"face_list": {"name": self._faces.name, "sha256": self._faces.sha256}} if self._is_keypoints else {}
        self.features = (ImportedFeature(self._spec, imported("hdf5", dataset=self._dataset, **faces)),)
        self._notes: list[str] = []
        self._rounded = 0
        self._ids = self._column(file, ("video_ids", "video_id"))
        self._paths = self._column(file, ("image_paths", "image_path"))
        self._note(file)

    @property
    def notes(self) -> Sequence[str]:
        """What is not stored, or not exactly."""
        if not self._rounded:
            return self._notes
        how = f"rounded to float32 in {self._rounded} rows; --feature NAME keeps them as they are, without parts"
        return [*self._notes, f"values of {self._dataset} were {how}"]

    @property
    def _is_keypoints(self) -> bool:
        return self._spec.name == "keypoints" and self._spec.shape == (N_POINTS, 3)

    def _find_spec(self, dataset: h5py.Dataset) -> FeatureSpec:
        own = self._options.feature or re.sub(r"[^a-z0-9_]+", "_", dataset.name.rpartition("/")[2].lower()).strip("_")
        shape = dataset.shape[1:]
        if shape == (N_POINTS, 3) and self._options.feature in ("", "keypoints"):
            return keypoints_spec(self._faces)
        dims = tuple(f"{own}_dim" if len(shape) == 1 else f"{own}_dim_{axis}" for axis in range(len(shape)))
        return FeatureSpec(own, shape, dims, dataset.dtype.newbyteorder("=").name)

    def _column(self, file: h5py.File, names: Sequence[str]) -> list[str] | None:
        folder = self._dataset.rpartition("/")[0]
        for name in (f"{at}/{name}".lstrip("/") for at in (folder, "") for name in names):
            if isinstance(_own(file, self._path, name), h5py.Dataset):
                texts = _texts(_dataset(file, self._path, name), self._path)
                if len(texts) != self.n_frames:
                    raise InvalidError(
                        f"{self._path}: {name} has {len(texts)} texts for {self.n_frames} rows of {self._dataset}"
                    )
                if any("\\" in text for text in texts):
                    self._notes.append(f"backslashes in {name} became forward slashes")
                return [text.replace("\\", "/") for text in texts]
        return None

    def _note(self, file: h5py.File) -> None:
        known = {"image_paths", "video_ids", "image_path", "video_id"}
        others = [n for n in sorted(_datasets(file)) if n != self._dataset and n.rpartition("/")[2] not in known]
        if others:
            self._notes.append(f"datasets {', '.join(others)}: import each with --dataset NAME")

    def videos(self) -> Iterator[ImportedVideo]:
        """Read the rows of one video after another."""
        self._rounded = 0
        with _opened(self._path) as file:
            dataset = _dataset(file, self._path, self._dataset)
            for video_id, rows in self._runs():
                values = self._read(dataset, rows)
                paths = self._paths[rows] if self._paths else [f"{video_id}#{n}" for n in range(rows.stop - rows.start)]
                record = VideoRecord(video_id, self._options.split, tuple(paths))
                yield ImportedVideo(record, {self._spec.name: values})

    def _runs(self) -> Iterator[tuple[str, slice]]:
        """Yield the videos with their rows."""
        owners = self._ids
        if owners is None and self._paths is not None:
            owners = [PurePosixPath(path).parent.as_posix() for path in self._paths]
            owners = [self.name if owner == "." else owner for owner in owners]
        if owners is None:
            yield self.name, slice(0, self.n_frames)
            return
        start = 0
        for row in range(1, self.n_frames + 1):
            if row == self.n_frames or owners[row] != owners[start]:
                if not owners[start]:
                    raise InvalidError(f"{self._path}: row {start} of {self._dataset} has an empty video id")
                yield owners[start], slice(start, row)
                start = row

    def _read(self, dataset: h5py.Dataset, rows: slice) -> FeatureRows:
        """Read one video, in blocks: a file without ids is one video, which is in memory once, and as it is stored."""
        values = np.empty((rows.stop - rows.start, *self._spec.shape), dtype=self._spec.dtype)
        detected = np.ones((len(values), len(PARTS)), dtype=bool)
        size = max(1, _BLOCK_BYTES // max(1, math.prod(dataset.shape[1:]) * dataset.dtype.itemsize))
        for start in range(0, len(values), size):
            block = values[start : start + size]
            self._fill(block, dataset[rows.start + start : rows.start + start + len(block)], rows.start + start)
            if self._is_keypoints:
                detected[start : start + size] = self._detect(block)
        return FeatureRows(values, {"detected": detected} if self._is_keypoints else {})

    def _fill(self, block: NDArray[Any], found: NDArray[Any], first: int) -> None:
        """Put numbers of a file into rows; those that change are counted, and those that overflow are an error."""
        with np.errstate(all="ignore"):
            block[...] = found
            if not self._is_keypoints or np.can_cast(found.dtype, block.dtype, "safe"):
                return
            exact = (block == found) | (np.isnan(block) & np.isnan(found))
            lost = np.isinf(block) & np.isfinite(found)
        if lost.any():
            row, value = first + int(np.argwhere(lost)[0][0]), found[lost][0]
            raise InvalidError(
                f"{self._path}: row {row} of {self._dataset} has {value:g}, more than float32 holds; "
                "keep the numbers as they are with --feature NAME"
            )
        self._rounded += int((~exact).any(axis=(1, 2)).sum())

    def _detect(self, values: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which parts were detected, (rows, parts); the others become NaN."""
        detected = np.empty((len(values), len(PARTS)), dtype=bool)
        for column, part in enumerate(PARTS):
            block = values[:, PART_SLICES[part]]
            gone = np.isnan(block) | (block == 0) if self._options.missing == "zeros" else np.isnan(block)
            detected[:, column] = ~gone.all(axis=(1, 2))
            block[~detected[:, column]] = np.nan
        return detected


def _only_dataset(path: Path, file: h5py.File) -> str:
    found = {n: d for n, d in _datasets(file).items() if d.ndim >= 2 and len(d) and d.dtype.kind in "fiu"}
    if "keypoints" in found:
        return "keypoints"
    if len(found) != 1:
        there = ", ".join(f"{n} {d.dtype} {d.shape}" for n, d in sorted(_datasets(file).items())) or "none"
        raise InvalidError(
            f"{path}: choose the rows of frames with --dataset NAME; its datasets are (links not counted): {there}"
        )
    return next(iter(found))


def _recognises(path: Path) -> bool:
    """Whether a file is one of ours: other HDF5 files can be so many things that they must be named."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as start:
            if start.read(8) != _SIGNATURE:
                return False
        with h5py.File(path, "r") as file:
            return MARK in file.attrs
    except (OSError, RuntimeError):
        return False


HDF5 = Format(
    "hdf5",
    "A plain, self-describing HDF5 file for h5py users; and rows of frames from simple HDF5 files.",
    importer=Hdf5Import,
    exporter=Hdf5Export,
    recognises=_recognises,
    target="file",
    examples=(
        "export hdf5 phoenix.kps phoenix.h5",
        "export hdf5 phoenix.kps dev.h5 --splits dev --compression gzip",
        "import hdf5 phoenix.h5 phoenix.kps",
        "import hdf5 features.h5 features.kps --dataset group/features",
    ),
)
