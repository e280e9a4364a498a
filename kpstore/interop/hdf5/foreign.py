"""Importing rows of frames from HDF5 files that kpstore did not write."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import ImportedFeature, ImportedVideo, NotedDocument, imported, rows_spec
from kpstore.interop.hdf5.layout import BLOCK_BYTES, OpenFile, opened
from kpstore.interop.inputs import detect_parts, runs
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.feature import FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_POINTS, PARTS, keypoints_spec

if TYPE_CHECKING:
    from kpstore.interop.hdf5.read import Hdf5Import


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
        with np.errstate(all="ignore"):
            block[...] = found
            if not self._is_keypoints or np.can_cast(found.dtype, block.dtype, "safe"):
                return
            exact = (block == found) | (np.isnan(block) & np.isnan(found))
            lost = np.isinf(block) & np.isfinite(found)
        if lost.any():
            row, value = first + int(np.argwhere(lost)[0][0]), found[lost][0]
            raise InvalidError(
                f"{self._path}: row {row} of {self._dataset} has {value:g}, more than float32 "
                "holds; keep the numbers as they are with --feature NAME"
            )
        self._rounded += int((~exact).any(axis=(1, 2)).sum())
