"""Writing npz files and statistics per split, as keypoint trainers read them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.deflate import DeflateThreads
from kpstore.interop.files import check_free, written_aside
from kpstore.interop.npz.layout import IDS, KEYPOINTS, PATHS, npz_name, stats_name
from kpstore.interop.outputs import (
    ChosenRows,
    blocks,
    choose_rows,
    feature_of_frames,
    lost_notes,
    zeros_for_missing,
    zeros_note,
)
from kpstore.interop.splits import UNSPLIT, check_file_names, chosen_splits
from kpstore.options import Option
from kpstore.schema.feature import MASK, part_names
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

Missing = Literal["zeros", "nan"]
Keep = Literal["drop", "keep"]


@dataclass(frozen=True)
class NpzExport(FileExporter):
    """Writes one npz file and one stats file per split into a folder.

    They are as ``prepare_model_input`` makes them. The npz file holds ``keypoints`` (N, 143, 3)
    float32, ``image_paths`` (N) and ``video_ids`` (N) text. With the defaults it is what users'
    scripts write: a part that was not detected is zeros, and a frame in which nothing was detected
    is left out, so that its place in the file is not a frame's number; ``image_paths`` has that.
    Frames that are not extracted yet are never written. The stats file counts the frames in which
    each part was detected.

    Parameters
    ----------
    feature : any feature of frames; arrays and files of features other than ``keypoints`` have the
        name of the feature.
    splits : only these; videos without a split go to ``all_keypoints.npz``.
    missing : ``"nan"`` writes a part that was not detected as NaN.
    failed : ``"keep"`` writes frames that failed, as missing.
    empty : ``"keep"`` writes frames in which nothing was detected, as missing.
    """

    feature: Annotated[str, Option("Which feature.")] = KEYPOINTS
    splits: Splits = None
    missing: Annotated[Missing, Option("What a part that was not detected becomes.")] = "zeros"
    failed: Annotated[Keep, Option("Frames that failed.")] = "drop"
    empty: Annotated[Keep, Option("Frames in which nothing was detected.")] = "drop"

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        spec = feature_of_frames(store, self.feature, "npz")
        wanted = chosen_splits(store, self.splits)
        check_file_names(wanted)
        paths = {
            split: (path / npz_name(split, self.feature), path / stats_name(split, self.feature))
            for split in wanted
        }
        targets = [file for pair in paths.values() for file in pair]
        check_free(targets, overwrite=overwrite)
        drop = [reason for reason in ("failed", "empty") if getattr(self, reason) == "drop"]
        has_mask = bool(part_names(spec))

        def found(rows: NDArray[np.int64]) -> NDArray[np.bool_]:
            if not has_mask:
                return np.ones(len(rows), dtype=bool)
            return np.asarray(store.read(spec.companion(MASK), rows).any(axis=1))

        exported, n_zeroed = [], 0
        with written_aside(*targets) as asides:
            for n, (split, (npz_path, _)) in enumerate(paths.items()):
                chosen = choose_rows(store, self.feature, split, found, drop)
                writer = _SplitWriter(store, self, chosen, report)
                writer.write_npz(asides[2 * n])
                stats = json.dumps(writer.stats(), indent=2, ensure_ascii=False)
                asides[2 * n + 1].write_text(stats + "\n", encoding="utf-8")
                n_zeroed += writer.n_zeroed
                n_rows = len(chosen.rows)
                exported.append(
                    ExportedFile(npz_path, n_rows, writer.n_videos, split, chosen.left_out)
                )
        companions = [c.name for c in spec.companions if c.name != MASK]
        more = {f"companions of {self.feature}": companions}
        notes = zeros_note(self.feature, n_zeroed)
        return ExportReport(exported, notes + lost_notes(store, [self.feature], **more))


class _SplitWriter:
    """Writes the rows of one split block by block, so that memory does not grow with the split."""

    def __init__(
        self, store: BaseStore, options: NpzExport, chosen: ChosenRows, report: OnProgress
    ) -> None:
        self._store, self._options, self._report = store, options, report
        self._split, self._rows = chosen.split, chosen.rows
        self._spec = store.feature(options.feature)
        self._parts = part_names(self._spec)
        self._detected = np.zeros(len(self._parts), dtype=np.int64)
        self.n_zeroed = 0
        """Rows of which single missing values became zeros."""
        self.n_videos = len(np.unique(store.index.video_of(chosen.rows)))

    def write_npz(self, path: Path) -> None:
        """Write the npz file, counting detections on the way."""
        with (
            DeflateThreads() as threads,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive,
        ):
            add = partial(_write_array, archive, threads)
            shape = (len(self._rows), *self._spec.shape)
            add(self._spec.name, self._spec.dtype, shape, self._values())
            for name, read in ((PATHS, self._image_paths), (IDS, self._video_ids)):
                longest = max(
                    (len(text) for block in blocks(self._rows) for text in read(block)), default=1
                )
                dtype = np.dtype(f"<U{max(longest, 1)}")
                texts = (read(block).astype(dtype) for block in blocks(self._rows))
                add(name, dtype, (len(self._rows),), texts)

    def stats(self) -> dict[str, object]:
        """Return the contents of the stats file; call :meth:`write_npz` first."""
        detected = zip(self._parts, self._detected.tolist(), strict=True)
        return {
            "split": self._split or UNSPLIT,
            "num_samples": len(self._rows),
            "num_videos": self.n_videos,
            "keypoint_shape": list(self._spec.shape),
            **{f"{part}_detected": n for part, n in detected},
        }

    def _values(self) -> Iterator[NDArray[np.generic]]:
        for rows in blocks(self._rows):
            block = self._store.read(self._spec.name, rows)
            detected = None
            if self._parts:
                detected = self._store.read(self._spec.companion(MASK), rows)
                self._detected += detected.sum(axis=0)
            if self._options.missing == "zeros":
                self.n_zeroed += zeros_for_missing(self._spec, block, detected)
            yield block
            self._report(len(rows))

    def _image_paths(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        return self._store.read(fmt.IMAGE_PATH, rows)

    def _video_ids(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        index = self._store.index
        return np.asarray(index.ids[index.video_of(rows)])


def _write_array(
    archive: zipfile.ZipFile,
    threads: DeflateThreads,
    name: str,
    dtype: DTypeLike,
    shape: tuple[int, ...],
    blocks: Iterable[NDArray[np.generic]],
) -> None:
    """Add one array to an npz file from blocks of rows, as ``np.savez_compressed`` would."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with threads.open(archive, f"{name}.npy") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).tobytes())
