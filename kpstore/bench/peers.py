"""Other formats that a store is compared with: each holds a copy of the same rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kpstore.bench.subjects import BLOCK_ROWS, Ints, Rows, Subject
from kpstore.errors import InvalidError, MissingExtraError

if TYPE_CHECKING:
    import h5py
    import lance
    import pyarrow
    import tensorstore
    import zarr


def _take(array: Rows, rows: Ints, out: Rows) -> None:
    np.take(array, rows, axis=0, out=out, mode="clip")


def _slice(array: Rows, start: int, stop: int, out: Rows) -> None:
    out[...] = array[start:stop]


@dataclass(frozen=True)
class Peer:
    """Another format.

    Parameters
    ----------
    package : what has to be installed for it.
    how : how rows are read, in a few words.
    write : writes a copy of rows to a path.
    open : opens the copy; ``gather`` and ``read`` get what it returns.
    gather : reads single rows in the order given.
    read : reads consecutive rows.
    """

    package: str
    how: str
    write: Callable[[Rows, Path], None]
    open: Callable[[Path], Any]
    gather: Callable[[Any, Ints, Rows], None] = _take
    read: Callable[[Any, int, int, Rows], None] = _slice


class PeerSubject(Subject):
    """A copy of the rows in a file of another format, opened again for each measurement.

    Parameters
    ----------
    name : a key of :data:`PEERS`.
    array : the rows to copy.
    folder : where the copy goes.
    """

    def __init__(self, name: str, array: Rows, folder: Path) -> None:
        super().__init__(len(array), array)
        self.name, self._peer, self._path = name, PEERS[name], folder / name
        self.how = self._peer.how
        self._peer.write(array, self._path)
        self.reopen()

    def reopen(self) -> None:
        """Open the copy."""
        self._opened = self._peer.open(self._path)

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read single rows as the format reads them fastest."""
        self._peer.gather(self._opened, rows, out)

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read consecutive rows."""
        self._peer.read(self._opened, start, stop, out)


def _write_npy(array: Rows, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _write_npz(array: Rows, path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, keypoints=array)


def _load_npz(path: Path) -> Rows:
    array: Rows = np.load(path)["keypoints"]
    return array


def _write_pickle(array: Rows, path: Path) -> None:
    path.write_bytes(pickle.dumps(array, protocol=5))


def _load_pickle(path: Path) -> Rows:
    array: Rows = pickle.loads(path.read_bytes())  # a file that this run wrote
    return array


def _write_h5py(chunk_rows: int, **options: Any) -> Callable[[Rows, Path], None]:
    def write(array: Rows, path: Path) -> None:
        import h5py

        chunks = (min(chunk_rows, len(array)), *array.shape[1:])
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=array, chunks=chunks, **options)

    return write


def _write_h5py_lz4(array: Rows, path: Path) -> None:
    import hdf5plugin

    options = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)
    _write_h5py(256, **options)(array, path)


def _open_h5py_lz4(path: Path) -> h5py.Dataset:
    import hdf5plugin  # noqa: F401 - brings the codec

    return _open_h5py(path)


def _open_h5py(path: Path) -> h5py.Dataset:
    import h5py

    return h5py.File(path, "r")["x"]


def _gather_h5py(data: h5py.Dataset, rows: Ints, out: Rows) -> None:
    # h5py takes ascending rows only.
    ascending, back = np.unique(rows, return_inverse=True)
    _take(data[ascending], back, out)


def _read_h5py(data: h5py.Dataset, start: int, stop: int, out: Rows) -> None:
    if stop > start:
        data.read_direct(out, np.s_[start:stop])


def _write_zarr(
    chunk_rows: int, shard_rows: int | None = None, *, lz4: bool = False
) -> Callable[[Rows, Path], None]:
    def write(array: Rows, path: Path) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        row = array.shape[1:]
        zarr.create_array(
            path,
            data=array,
            chunks=(chunk_rows, *row),
            shards=None if shard_rows is None else (shard_rows, *row),
            compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle") if lz4 else None,
        )

    return write


def _open_zarr(path: Path) -> zarr.Array[Any]:
    import zarr

    return zarr.open_array(path, mode="r")


def _gather_zarr(array: zarr.Array[Any], rows: Ints, out: Rows) -> None:
    out[...] = array.oindex[rows]


def _open_tensorstore(path: Path) -> tensorstore.TensorStore:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec).result()


def _gather_tensorstore(array: tensorstore.TensorStore, rows: Ints, out: Rows) -> None:
    out[...] = array[rows].read().result()


def _read_tensorstore(array: tensorstore.TensorStore, start: int, stop: int, out: Rows) -> None:
    out[...] = array[start:stop].read().result()


def _write_lance(array: Rows, path: Path) -> None:
    import lance
    import pyarrow as pa

    flat = np.ascontiguousarray(array).reshape(len(array), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    lance.write_dataset(pa.table({"x": column}), str(path))


def _open_lance(path: Path) -> lance.LanceDataset:
    import lance

    return lance.dataset(str(path))


def _fill_from(table: pyarrow.Table, out: Rows) -> None:
    column = table.column("x").combine_chunks()
    out[...] = column.flatten().to_numpy(zero_copy_only=False).reshape(out.shape)


def _gather_lance(data: lance.LanceDataset, rows: Ints, out: Rows) -> None:
    _fill_from(data.take(rows), out)


def _read_lance(data: lance.LanceDataset, start: int, stop: int, out: Rows) -> None:
    _fill_from(data.to_table(offset=start, limit=stop - start), out)


def _h5py(how: str, write: Callable[[Rows, Path], None]) -> Peer:
    return Peer("h5py", how, write, _open_h5py, _gather_h5py, _read_h5py)


def _zarr(how: str, *, lz4: bool) -> Peer:
    return Peer("zarr", how, _write_zarr(BLOCK_ROWS, lz4=lz4), _open_zarr, _gather_zarr)


def _tensorstore(how: str, *, lz4: bool) -> Peer:
    return Peer(
        "tensorstore",
        f"TensorStore, shards of 16,384 rows in chunks of 64, {how}",
        _write_zarr(64, 16_384, lz4=lz4),
        _open_tensorstore,
        _gather_tensorstore,
        _read_tensorstore,
    )


PEERS: dict[str, Peer] = {
    "npy": Peer(
        "numpy", "numpy.load(mmap_mode='r')", _write_npy, lambda path: np.load(path, mmap_mode="r")
    ),
    "npz": Peer("numpy", "numpy.load of everything, savez_compressed", _write_npz, _load_npz),
    "pickle": Peer("numpy", "pickle.load of everything", _write_pickle, _load_pickle),
    # The fastest of h5py's layouts for random rows, and with the fastest codec that h5py brings.
    "h5py": _h5py("h5py, chunks of 64 rows, uncompressed", _write_h5py(64)),
    "h5py-lzf": _h5py(
        "h5py, chunks of 256 rows, shuffled lzf", _write_h5py(256, compression="lzf", shuffle=True)
    ),
    "h5py-lz4": replace(
        _h5py("h5py, chunks of 256 rows, Blosc's shuffled lz4", _write_h5py_lz4),
        package="hdf5plugin",
        open=_open_h5py_lz4,
    ),
    "zarr": _zarr("zarr-python, chunks of 1,024 rows, uncompressed", lz4=False),
    "zarr-lz4": _zarr("zarr-python, chunks of 1,024 rows, shuffled lz4", lz4=True),
    "tensorstore": _tensorstore("uncompressed", lz4=False),
    "tensorstore-lz4": _tensorstore("shuffled lz4", lz4=True),
    "lance": Peer(
        "lance",
        "Lance, a fixed-size list per row",
        _write_lance,
        _open_lance,
        _gather_lance,
        _read_lance,
    ),
}
"""The formats by name."""


def installed_peers() -> list[str]:
    """Return the names of the formats that this environment can read."""
    return [name for name, peer in PEERS.items() if find_spec(peer.package) is not None]


def check_peers(names: Sequence[str]) -> None:
    """Raise an error for a format that is unknown or not installed.

    Raises
    ------
    InvalidError
        If the name is unknown.
    MissingExtraError
        If the package of the format is not installed.
    """
    known, installed = ", ".join(PEERS), installed_peers()
    for name in names:
        if name not in PEERS:
            raise InvalidError(f"format {name!r} is unknown; kpstore compares with {known}")
        if name not in installed:
            raise MissingExtraError(f"a comparison with {name!r}", extra="bench")
