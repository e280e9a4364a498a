"""Exporting HDF5 files: every array of a version by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from kpstore.backends.asides import check_room, free_room, hold_room
from kpstore.backends.base import TEXT, ArrayMeta
from kpstore.backends.hdf5_records import json_text
from kpstore.errors import InvalidError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.files import check_free, written_aside
from kpstore.interop.hdf5.layout import ABOUT, BLOCK_BYTES, MARK, README
from kpstore.options import Option
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

_CHUNK_BYTES = 2**18
"""Bytes of a chunk: a quarter of h5py's cache for each dataset."""
_TEXT_ROW_BYTES = 2**10


@dataclass(frozen=True)
class Hdf5Export(FileExporter):
    """Writes one HDF5 file with the store's arrays under their names (docs/format.md).

    Numbers keep their types, text is UTF-8 of variable length, dimensions have names, labels are
    dimension scales.

    Parameters
    ----------
    splits : only videos of these.
    features : only these, with all arrays that belong to them.
    compression : compression of every dataset; only h5py can read ``"lzf"``.
    """

    splits: Splits = None
    features: Annotated[
        list[str] | None,
        Option("Only this feature; may be given again.", metavar="NAME", flag="--feature"),
    ] = None
    compression: Annotated[
        Literal["none", "gzip", "lzf"], Option("How chunks are stored; only h5py can read lzf.")
    ] = "none"

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        writer = _Hdf5Writer(store, path, self, report)
        check_free([path], overwrite=overwrite)
        with written_aside(path) as (aside,):
            check_room(aside, 0)
            with h5py.File(aside, "w") as file:
                writer.write(file)
            free_room(aside)
        frames, videos = writer.rows["frame"], writer.rows["video"]
        return ExportReport([ExportedFile(path, len(frames), len(videos))])


class _Hdf5Writer:
    """Writes the arrays of a store, a block of rows at a time."""

    def __init__(
        self, store: BaseStore, path: Path, options: Hdf5Export, report: OnProgress
    ) -> None:
        self._store, self._path, self._report = store, path, report
        names = store.features if options.features is None else dict.fromkeys(options.features)
        self._features = {name: fmt.check_feature(store.features, name) for name in names}
        videos = store.index.select(split=options.splits)
        self.rows: dict[str, NDArray[np.int64] | range] = {
            "video": videos,
            "frame": store.index.rows_of(videos),
        }
        self._compression = None if options.compression == "none" else options.compression
        if ABOUT in store.session.names():
            raise InvalidError(
                f"the store has an annotation {ABOUT!r}, a name that the file needs itself"
            )

    def write(self, file: h5py.File) -> None:
        """Write all arrays, with what they mean."""
        about = {
            "name": self._store.name,
            "annotations": self._store.annotation_names,
            "features": {
                n: {"spec": f.spec.to_json(), "provenance": f.provenance}
                for n, f in self._features.items()
            },
        }
        file.attrs.update(
            {MARK: 1, "Conventions": "CF-1.11", "title": self._store.name, "README": README}
        )
        file.create_dataset(ABOUT, data=json_text(about), dtype=h5py.string_dtype())
        arrays = self._arrays()
        for name, meta in arrays.items():
            self._create(file, name, meta)
        scales = {"video": "video_id"} | {
            name: name for name, meta in arrays.items() if meta.dims == (name,)
        }
        for name, meta in arrays.items():
            for axis, dim in enumerate(meta.dims):
                file[name].dims[axis].label = dim
                if scales.get(dim, name) != name and scales[dim] in file:
                    file[name].dims[axis].attach_scale(file[scales[dim]])
        for dim, name in scales.items():
            if name in file and not file[name].is_scale:
                file[name].make_scale(dim)

    def _arrays(self) -> dict[str, ArrayMeta]:
        session = self._store.session
        wanted = [*fmt.VIDEO_ARRAYS, *self._store.annotation_names, *fmt.FRAME_ARRAYS]
        for feature in self._features.values():
            wanted += fmt.feature_arrays(feature.spec)
            wanted += feature.spec.labels
        there = set(session.names())
        return {name: session.meta(name) for name in dict.fromkeys(wanted) if name in there}

    def _create(self, file: h5py.File, name: str, meta: ArrayMeta) -> None:
        hold_room(Path(file.filename), 0, self._path)
        rows = self.rows.get(meta.dims[0], range(meta.n_rows))
        text = meta.dtype == TEXT
        row_bytes = _TEXT_ROW_BYTES if text else meta.row_bytes
        chunk = max(1, min(_CHUNK_BYTES // row_bytes, len(rows)))
        dataset = file.create_dataset(
            name,
            (len(rows), *meta.shape[1:]),
            h5py.string_dtype() if text else np.dtype(meta.dtype),
            chunks=(chunk, *meta.shape[1:]),
            maxshape=(None, *meta.shape[1:]),
            fillvalue=None if text else meta.fill,
            compression=self._compression,
            shuffle=self._compression is not None,
        )
        dataset.attrs.update(
            {key: value for key, value in meta.attrs.items() if isinstance(value, str | int | list)}
        )
        block = max(chunk, BLOCK_BYTES // row_bytes // chunk * chunk)
        for start in range(0, len(rows), block):
            taken = rows[start : start + block]
            values = self._store.read(name, np.asarray(taken, dtype=np.int64))
            if text:
                _check_text(name, values)
            n_bytes = sum(map(len, values.tolist())) * 4 if text else values.nbytes
            hold_room(Path(file.filename), n_bytes, self._path)
            dataset[start : start + len(taken)] = values
            if name in self._features and meta.dims[0] == "frame":
                self._report(len(taken))


def _check_text(name: str, texts: NDArray[np.object_]) -> None:
    odd = next((text for text in texts.tolist() if "\0" in text), None)
    if odd is not None:
        raise InvalidError(f"{name} has the text {odd!r}; HDF5 ends text at a zero byte")
