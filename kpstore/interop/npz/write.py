"""The npz files that keypoint trainers read: ``{split}_keypoints.npz`` and ``{split}_stats.json``."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kpstore.errors import InvalidError
from kpstore.interop.base import ExportedFile, ExportReport, OnProgress
from kpstore.interop.files import check_free, written_aside
from kpstore.interop.outputs import blocks
from kpstore.interop.splits import UNSPLIT, check_file_names, check_unsplit
from kpstore.options import Option, check_choice
from kpstore.schema.feature import MASK, State, part_names
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

Missing = Literal["zeros", "nan"]
Keep = Literal["drop", "keep"]


@dataclass(frozen=True)
class NpzExport:
    """Writes one npz file and one stats file per split, as ``prepare_model_input`` makes them.

    The npz file holds ``keypoints`` (N, 143, 3) float32, ``image_paths`` (N) and ``video_ids`` (N)
    text. With the defaults it is what users' scripts write: a part that was not detected is zeros,
    and a frame in which nothing was detected is not there, so that a frame's place in the file is
    not its number; ``image_paths`` has that. Frames that are not extracted yet are never in it. The
    stats file counts the frames in which each part was detected.

    Parameters
    ----------
    feature : any feature of frames; other features than ``keypoints`` give their own name to array
        and files.
    splits : only these; videos without a split go to ``all_keypoints.npz``.
    missing : ``"nan"`` writes a part that was not detected as NaN.
    failed : ``"keep"`` writes frames that failed, as missing.
    empty : ``"keep"`` writes frames in which nothing was detected, as missing.
    """

    feature: Annotated[str, Option("Which feature.")] = "keypoints"
    splits: Annotated[
        Sequence[str] | None,
        Option("Only these, as `train dev` or `train,dev`; all by default.", metavar="SPLIT..."),
    ] = None
    missing: Annotated[Missing, Option("What a part that was not detected becomes.")] = "zeros"
    failed: Annotated[Keep, Option("Frames that failed.")] = "drop"
    empty: Annotated[Keep, Option("Frames in which nothing was detected.")] = "drop"

    def __post_init__(self) -> None:
        check_choice("missing", self.missing, ("zeros", "nan"))
        check_choice("failed", self.failed, ("drop", "keep"))
        check_choice("empty", self.empty, ("drop", "keep"))

    def export(
        self,
        store: BaseStore,
        path: Path,
        *,
        overwrite: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ExportReport:
        """Write the files into the folder ``path``; see :class:`kpstore.interop.base.Exporter`."""
        if store.feature(self.feature).axis != "frame":
            raise InvalidError(
                f"feature {self.feature!r} belongs to videos; npz files hold features of frames"
            )
        wanted = store.splits if self.splits is None else list(dict.fromkeys(self.splits))
        store.index.select(split=wanted)
        check_unsplit(wanted)
        check_file_names(wanted)
        paths = {split: _paths(path, split, self.feature) for split in wanted}
        check_free([file for pair in paths.values() for file in pair], overwrite=overwrite)
        exported = []
        for split, (npz_path, stats_path) in paths.items():
            choice = _choose(store, self.feature, split, self.failed, self.empty)
            writer = _SplitWriter(
                store, self.feature, choice, self.missing, on_progress or (lambda n: None)
            )
            with written_aside(npz_path, stats_path) as (npz_aside, stats_aside):
                writer.write_npz(npz_aside)
                stats = json.dumps(writer.stats(split), indent=2, ensure_ascii=False)
                stats_aside.write_text(stats + "\n", encoding="utf-8")
            exported.append(
                ExportedFile(npz_path, len(choice.rows), writer.n_videos, split, choice.left_out)
            )
        return ExportReport(exported, _notes(store, self.feature))


def _notes(store: BaseStore, feature: str) -> list[str]:
    """Return what npz files have no place for, a line each."""
    others = [name for name in store.features if name != feature]
    companions = [c.name for c in store.feature(feature).companions if c.name != "detected"]
    lost = {
        "other features": others,
        f"companions of {feature}": companions,
        "annotations": store.annotation_names,
    }
    return [f"{what}: {', '.join(names)}" for what, names in lost.items() if names]


def _paths(out_dir: Path, split: str, feature: str) -> tuple[Path, Path]:
    name = split or UNSPLIT
    stats = f"{name}_stats.json" if feature == "keypoints" else f"{name}_{feature}_stats.json"
    return out_dir / f"{name}_{feature}.npz", out_dir / stats


@dataclass(frozen=True)
class _Choice:
    """Rows of one split to write, and what was left out."""

    rows: NDArray[np.int64]
    left_out: dict[str, int]


def _choose(store: BaseStore, feature: str, split: str, failed: Keep, empty: Keep) -> _Choice:
    rows = store.index.rows_of(store.index.select(split=split))
    spec = store.feature(feature)
    has_mask = bool(part_names(spec))
    kept, left_out = [], {"failed": 0, "pending": 0, "empty": 0}
    for block in blocks(rows):
        status = store.read(fmt.status_name(feature), block)
        found = (
            store.read(spec.companion(MASK), block).any(axis=1)
            if has_mask
            else np.ones(len(block), dtype=bool)
        )
        drop = {
            "pending": status == State.PENDING,
            "failed": (status == State.FAILED) & (failed == "drop"),
            "empty": (status == State.DONE) & ~found & (empty == "drop"),
        }
        for reason, mask in drop.items():
            left_out[reason] += int(mask.sum())
        kept.append(block[~np.logical_or.reduce(list(drop.values()))])
    return _Choice(np.concatenate([np.empty(0, dtype=np.int64), *kept]), left_out)


class _SplitWriter:
    """Writes the rows of one split block by block, so that memory does not grow with the split."""

    def __init__(
        self,
        store: BaseStore,
        feature: str,
        choice: _Choice,
        missing: Missing,
        report: Callable[[int], None],
    ) -> None:
        self._store, self._feature, self._rows = store, feature, choice.rows
        self._missing, self._report = missing, report
        self._spec = store.feature(feature)
        self._parts = part_names(self._spec)
        self._detected = np.zeros(len(self._parts), dtype=np.int64)
        self.n_videos = len(np.unique(store.index.video_of(choice.rows)))

    def write_npz(self, path: Path) -> None:
        """Write the npz file; counts detections on the way."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
            _write_array(archive, self._feature, self._spec.dtype, self._shape, self._values())
            for name, read in (("image_paths", self._image_paths), ("video_ids", self._video_ids)):
                longest = max(
                    (len(text) for block in blocks(self._rows) for text in read(block)), default=1
                )
                dtype = np.dtype(f"<U{max(longest, 1)}")
                texts = (read(block).astype(dtype) for block in blocks(self._rows))
                _write_array(archive, name, dtype, (len(self._rows),), texts)

    def stats(self, split: str) -> dict[str, Any]:
        """Return what the stats file holds; after :meth:`write_npz`."""
        return {
            "split": split or UNSPLIT,
            "num_samples": len(self._rows),
            "num_videos": self.n_videos,
            "keypoint_shape": list(self._spec.shape),
            **{
                f"{part}_detected": int(n)
                for part, n in zip(self._parts, self._detected, strict=True)
            },
        }

    @property
    def _shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._spec.shape)

    def _values(self) -> Iterator[NDArray[Any]]:
        for rows in blocks(self._rows):
            block = self._store.read(self._feature, rows)
            if self._missing == "zeros" and block.dtype.kind == "f":
                block[np.isnan(block)] = 0
            if self._parts:
                self._detected += self._store.read(self._spec.companion(MASK), rows).sum(axis=0)
            yield block
            self._report(len(rows))

    def _image_paths(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        return self._store.read(fmt.IMAGE_PATH, rows)

    def _video_ids(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        index = self._store.index
        return np.asarray(index.ids[index.video_of(rows)])


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: DTypeLike,
    shape: tuple[int, ...],
    blocks: Iterable[NDArray[Any]],
) -> None:
    """Add one array to an npz file, as ``np.savez_compressed`` would, from blocks of rows."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).tobytes())
