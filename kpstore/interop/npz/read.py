"""Reading the npz files of keypoint trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
)
from kpstore.interop.files import damage_named, without_hidden
from kpstore.interop.inputs import detect_parts, runs
from kpstore.interop.npz.layout import IDS, KEYPOINTS, PATHS, stats_name
from kpstore.interop.splits import UNSPLIT, split_rank
from kpstore.interop.unpickling import loads_pickle
from kpstore.options import Option
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import FACE_LISTS, N_POINTS, PART_SLICES, PARTS, keypoints_spec
from kpstore.sources.npz_files import BLOCK_BYTES, NpyHeader, NpzFile
from kpstore.user_files import read_json

Zeros = Literal["missing", "values"]

_RUN_BYTES = 150
"""Memory of a run of rows of one video, without the characters of its id."""


class NpzTable(NpzFile):
    """An open npz file whose arrays may be text."""

    def objects(self, name: str, member: IO[bytes], header: NpyHeader) -> NDArray[np.object_]:
        """Return an array of Python objects, all of them text, without running any pickled code."""
        what = f"{self.path}: {name!r}, which holds Python objects,"
        texts = loads_pickle(member.read(self.budget.left), what, self.budget)
        if (
            not isinstance(texts, np.ndarray)
            or texts.shape != header.shape
            or texts.dtype.kind != "O"
            or not all(type(text) is str for text in texts.flat)
        ):
            raise InvalidError(
                f"{self.path}: {name!r} holds Python objects other than text, which are not read"
            )
        return np.asarray(texts)

    def iter_texts(self, name: str) -> Iterator[str]:
        """Yield the texts of an array, which is read block by block."""
        header = self.header(name)
        step = max(1, BLOCK_BYTES // max(header.row_bytes, 1))
        with self.in_order(name) as rows:
            for start in range(0, header.n_rows, step):
                yield from self.texts(name, rows.take(start, min(start + step, header.n_rows)))

    def texts(self, name: str, block: NDArray[Any]) -> list[str]:
        """Return a block of a text array, (rows,), as a list of str.

        Raises
        ------
        InvalidError
            If it is not text, or is text that cannot be written as UTF-8.
        """
        with damage_named(
            f"{self.path}: {name!r} holds text that is not Unicode",
            (ValueError, SystemError),  # numpy raises the latter for numbers beyond Unicode
        ):
            if block.dtype.kind == "S":
                block = np.char.decode(block, "utf-8")
            if block.ndim != 1 or (block.dtype.kind not in "UO" and block.size):
                raise InvalidError(
                    f"{self.path}: {name!r} is {block.dtype}, {block.ndim}-D; one text a row is "
                    "needed"
                )
            texts: list[str] = block.tolist()
            "".join(texts).encode()
        return texts


@dataclass(frozen=True)
class NpzImport(FileImporter):
    """Reads the ``{split}_keypoints.npz`` files of a folder, or one npz file.

    Rows with equal ``video_ids`` are one video, in the order of the file. Scattered rows of a video
    are brought together, through a temporary file. Rows of (143, 3) become the feature
    ``keypoints``.

    Parameters
    ----------
    feature : name of an array to read instead of ``keypoints``, and of its feature (the files of a
        folder are named after it too); also permits ``keypoints`` of another shape than (143, 3).
    zeros : ``"missing"`` takes a part of keypoints that is all zeros as not detected, as such parts
        are written; ``"values"`` keeps zeros. A part that is all NaN was never detected.
    face_list : which points of MediaPipe's mesh the 68 face points are; the file does not say.
    """

    feature: Annotated[
        str | None,
        Option("Array of another name, or `keypoints` of another shape.", metavar="NAME"),
    ] = None
    zeros: Annotated[Zeros, Option("What a part that is all zeros means.")] = "missing"
    face_list: Annotated[str, Option("Which face points: phoenix or ibug.", metavar="NAME")] = (
        "phoenix"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.face_list not in FACE_LISTS:
            raise InvalidError(f"face_list={self.face_list!r}: use one of {', '.join(FACE_LISTS)}")

    def open(self, path: Path) -> NpzDocument:
        """Open a file or folder.

        All ``video_ids`` are read once. See :class:`kpstore.interop.base.Importer`.
        """
        array = self.feature or KEYPOINTS
        parts = [_open_part(file, array, self.most_bytes) for file in npz_files(path, array)]
        spec = self._spec(parts, array)
        owner: dict[str, Path] = {}
        for part in parts:
            for video_id in part.videos:
                if owner.setdefault(video_id, part.path) != part.path:
                    raise InvalidError(
                        f"video {video_id!r} is in {owner[video_id]} and in {part.path}; import one"
                    )
        return NpzDocument(self, path, parts, spec)

    def _spec(self, parts: Sequence[_Part], name: str) -> FeatureSpec:
        first = parts[0]
        for part in parts[1:]:
            ours, theirs = _kind(first.values), _kind(part.values)
            if ours != theirs:
                raise InvalidError(
                    f"{first.path}: {name!r} has rows of {ours}, in {part.path} of {theirs}"
                )
        shape, dtype = first.values.shape[1:], first.values.dtype.newbyteorder("=").name
        if name == KEYPOINTS and shape == (N_POINTS, 3) and first.values.dtype.kind == "f":
            return replace(keypoints_spec(FACE_LISTS[self.face_list]), dtype=dtype, chunk_rows=0)
        if self.feature is None:
            raise InvalidError(
                f"{first.path}: {name!r} has rows of {_kind(first.values)}, keypoints are "
                f"{(N_POINTS, 3)} of floats; store it as it is with --feature {name}"
            )
        return FeatureSpec(name, shape, tuple(f"{name}_axis_{n}" for n in range(len(shape))), dtype)


def _kind(header: NpyHeader) -> str:
    return f"{header.shape[1:]} {header.dtype.newbyteorder('=').name}"


def npz_files(path: Path, array: str) -> list[Path]:
    """Return the npz files of a folder that are named after an array; ``path`` if it is a file."""
    if not path.is_dir():
        return [path]
    found = _named(path, array)
    if not found:
        raise NotFoundError(
            f"no file *_{array}.npz in the folder {path}; name one file, or use --feature"
        )
    return sorted(found, key=lambda file: (split_rank(_split_of(file, array)), file.name))


def _named(folder: Path, array: str) -> list[Path]:
    return without_hidden(folder.glob(f"*_{array}.npz"))


def _split_of(path: Path, array: str) -> str:
    name, found, _ = path.stem.rpartition(f"_{array}")
    return name if found and path.stem.endswith(f"_{array}") and name != UNSPLIT else ""


@dataclass(frozen=True)
class _Part:
    """One npz file, and which of its rows belong to each video."""

    path: Path
    array: str
    split: str
    values: NpyHeader
    videos: Mapping[str, Sequence[slice]]
    others: Sequence[str]

    @property
    def interleaved(self) -> int:
        """Number of videos whose rows are not contiguous."""
        return sum(len(pieces) > 1 for pieces in self.videos.values())


def _open_part(path: Path, array: str, most_bytes: int | None) -> _Part:
    with NpzTable(path, most_bytes) as file:
        headers = {name: file.header(name) for name in (array, PATHS, IDS)}
        if headers[array].dtype.kind not in "fiub":
            raise InvalidError(
                f"{path}: {array!r} is of {headers[array].dtype}; numbers are needed"
            )
        lengths = {name: header.n_rows for name, header in headers.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{n} {name}" for name, n in lengths.items())
            raise InvalidError(f"{path}: its arrays differ in length: {told}")
        videos: dict[str, list[slice]] = {}
        for video_id, rows in runs(file.iter_texts(IDS)):
            file.budget.hold(_RUN_BYTES + len(video_id), f"the ids of rows up to {rows.stop}")
            if not video_id:
                raise InvalidError(f"{path}: row {rows.start} has an empty video id")
            videos.setdefault(video_id, []).append(rows)
        others = [name for name in file.names if name not in headers]
    return _Part(path, array, _split_of(path, array), headers[array], videos, others)


class NpzDocument(NotedDocument):
    """Opened npz files; see :class:`kpstore.interop.base.Document`."""

    def __init__(
        self, options: NpzImport, path: Path, parts: Sequence[_Part], spec: FeatureSpec
    ) -> None:
        super().__init__()
        self._parts, self._spec, self._zeros = parts, spec, options.zeros
        self._most_bytes = options.most_bytes
        self._has_parts = bool(spec.companions)
        self.name = path.resolve().name if path.is_dir() else path.stem
        known = {"zeros": options.zeros} if self._has_parts else {}
        self.features = (ImportedFeature(spec, imported("npz", {}, **known)),)
        self.n_frames = sum(part.values.n_rows for part in parts)

    def _read(self) -> Iterator[ImportedVideo]:
        for part in self._parts:
            detected = np.zeros(len(PARTS), dtype=np.int64)
            yield from self._videos_of(part, detected)
            self._note_part(part, detected)

    def _videos_of(self, part: _Part, counts: NDArray[np.int64]) -> Iterator[ImportedVideo]:
        with NpzTable(part.path, self._most_bytes) as file:
            opened = file.at_random if part.interleaved else file.in_order
            with opened(part.array) as all_values, opened(PATHS) as all_paths:
                for video_id, pieces in part.videos.items():
                    n_rows = sum(s.stop - s.start for s in pieces)
                    what = f"the {n_rows} rows of video {video_id!r}"
                    file.budget.check_frames(n_rows, part.values.row_bytes, what)
                    listed = [all_paths.take(s.start, s.stop) for s in pieces]
                    paths = file.texts(PATHS, np.concatenate(listed))
                    block = np.concatenate([all_values.take(s.start, s.stop) for s in pieces])
                    rows = self._rows(part, block, video_id)
                    if self._has_parts:
                        counts += rows.companions["detected"].sum(axis=0)
                    record = VideoRecord(video_id, part.split, tuple(paths))
                    yield ImportedVideo(record, {self._spec.name: rows})

    def _rows(self, part: _Part, values: NDArray[np.floating], video_id: str) -> FeatureRows:
        if not self._has_parts:
            return FeatureRows(values)
        all_nan = np.isnan(values)
        for name, points in PART_SLICES.items() if all_nan.any() else ():
            nan = all_nan[:, points].reshape(len(values), -1)
            odd = np.flatnonzero(nan.any(axis=1) & ~nan.all(axis=1))
            if len(odd):
                raise InvalidError(
                    f"{part.path}: frame {odd[0]} of video {video_id!r} has NaN in some numbers of "
                    f"{name} and not in others; a part that was not detected is all zeros or all "
                    "NaN"
                )
        detected = detect_parts(values, zeros=self._zeros == "missing")
        return FeatureRows(values, {"detected": detected})

    def _note_part(self, part: _Part, detected: NDArray[np.int64]) -> None:
        if part.interleaved:
            self.note(
                f"{part.path.name}: the rows of {part.interleaved} videos do not follow each "
                "other; they were brought together, so an export will have them in another order"
            )
        if part.others:
            more = f"{len(part.others)} further arrays, such as {part.others[0]!r}"
            self.note(f"{part.path.name}: {more}, are not stored")
        if not part.videos and part.split:
            self.note(f"{part.path.name}: has no rows; a store cannot hold a split without videos")
        counts = dict(zip(PARTS, detected.tolist(), strict=True)) if self._has_parts else {}
        self.note(*_compare_stats(part, counts))


def _compare_stats(part: _Part, detected: Mapping[str, int]) -> list[str]:
    """Return how a stats file differs from what was found, one line for each difference."""
    path = part.path.with_name(stats_name(part.split, part.array))
    if not path.is_file():
        return []
    try:
        stats = read_json(path)
    except InvalidError as error:
        return [f"{path.name}: cannot be read, so nothing was compared with it ({error})"]
    if not isinstance(stats, dict):
        return [f"{path.name}: holds {type(stats).__name__}, not counts by name"]
    wanted: dict[str, object] = {
        "split": part.split or UNSPLIT,
        "num_samples": part.values.n_rows,
        "num_videos": len(part.videos),
        "keypoint_shape": list(part.values.shape[1:]),
        **{f"{name}_detected": n for name, n in detected.items()},
    }
    both = [key for key in wanted if key in stats]
    notes = [
        f"{path.name} says {k}={stats[k]!r}, found {wanted[k]!r}"
        for k in both
        if not _same(stats[k], wanted[k])
    ]
    return notes + [f"{path.name}: {key!r} is not stored" for key in stats if key not in wanted]


def _same(told: object, found: object) -> bool:
    if isinstance(found, list) and isinstance(told, list):
        # Users' scripts write either the shape of the whole array or that of a row.
        return found in (told, told[1:])
    return told == found


def recognises(path: Path) -> bool:
    """Return whether a file or folder is of this format, judged by names alone."""
    if path.is_dir():
        return bool(_named(path, KEYPOINTS))
    if path.suffix != ".npz":
        return False
    try:
        with NpzTable(path) as file:
            return {PATHS, IDS} <= set(file.names)
    except (InvalidError, NotFoundError, OSError):
        return False
