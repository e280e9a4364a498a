"""What is measured: kpstore, an array in memory, and other formats that hold the same rows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kpstore.api
from kpstore.errors import InvalidError, MissingExtraError
from kpstore.schema.index import VideoIndex

Rows = NDArray[Any]
Ints = NDArray[np.int64]

BLOCK_ROWS = 1024
POOL_BLOCKS = 32
"""The simple loader mixes so many blocks of so many rows in memory."""


class Subject(ABC):
    """Rows of one array, readable in one way. All subjects of a run hold the same rows.

    Parameters
    ----------
    n_rows : how many rows there are to read.
    like : an array with rows of the same shape and type.
    """

    name: str
    _row_shape: tuple[int, ...]
    _dtype: np.dtype[Any]

    def __init__(self, n_rows: int, like: Any) -> None:
        self.n_rows = n_rows
        self._row_shape, self._dtype = tuple(like.shape[1:]), np.dtype(like.dtype)

    how: str
    """The way that reads take, in a few words."""

    @abstractmethod
    def reopen(self) -> None:
        """Forget what is in memory and open anew, as far as needed to read."""

    @abstractmethod
    def gather(self, rows: Ints, out: Rows) -> None:
        """Read single rows in the order given."""

    @abstractmethod
    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read rows that follow each other."""

    def clips(self, starts: Ints, length: int, out: Rows) -> None:
        """Read runs of rows, (clips, length, *row shape)."""
        for start, clip in zip(starts.tolist(), out, strict=True):
            self.read(start, start + length, clip)

    def video(self, index: VideoIndex, position: int, out: Rows) -> None:
        """Read all rows of one video; ``out`` has room for the longest."""
        rows = index.rows(position)
        self.read(rows.start, rows.stop, out[: rows.stop - rows.start])

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield batches of a shuffled epoch: here by a simple loader, which mixes some blocks at a time in memory."""
        starts = rng.permutation(np.arange(0, self.n_rows, BLOCK_ROWS))
        buffer = np.empty((POOL_BLOCKS * BLOCK_ROWS, *self._row_shape), dtype=self._dtype)
        for first in range(0, len(starts), POOL_BLOCKS):
            filled = 0
            for start in starts[first : first + POOL_BLOCKS].tolist():
                stop = min(start + BLOCK_ROWS, self.n_rows)
                self.read(start, stop, buffer[filled : filled + stop - start])
                filled += stop - start
            order = rng.permutation(filled)
            for at in range(0, filled, batch_size):
                yield buffer[order[at : at + batch_size]]


class MemorySubject(Subject):
    """An array in memory: the limit."""

    name = "memory"
    how = "numpy array in memory"

    def __init__(self, array: Rows) -> None:
        super().__init__(len(array), array)
        self.array = array

    def reopen(self) -> None:
        """Nothing to open."""

    def gather(self, rows: Ints, out: Rows) -> None:
        """Gather by numpy, which is as fast as it gets."""
        # Without mode="clip" numpy gathers into memory of its own first.
        np.take(self.array, rows, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Copy."""
        out[...] = self.array[start:stop]

    def clips(self, starts: Ints, length: int, out: Rows) -> None:
        """Gather all rows of all clips at once."""
        rows = (starts[:, None] + np.arange(length)).ravel()
        self.gather(rows, out.reshape(-1, *out.shape[2:]))


class TorchSubject(MemorySubject):
    """What most scripts do: a tensor of everything in memory, read sample by sample."""

    name = "DataLoader(TensorDataset)"
    how = "tensor in memory, a call per sample"

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield batches of PyTorch's own loader."""
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        data = TensorDataset(torch.from_numpy(self.array))
        for (batch,) in DataLoader(data, batch_size, shuffle=True, generator=generator):
            yield batch


class KpstoreSubject(Subject):
    """The store itself.

    Parameters
    ----------
    cache : as for :func:`kpstore.open`.
    """

    def __init__(
        self,
        location: str,
        at: str | None,
        feature: str,
        n_rows: int,
        *,
        cache: str,
        name: str = "kpstore",
    ) -> None:
        self.name = name
        self._location, self._at, self._feature, self._cache = location, at, feature, cache
        self.reopen()
        super().__init__(n_rows, self.store[feature])
        if cache != "off":
            self.store.reader.cache(feature)
        self.how = self.store.reader.how(feature)

    def reopen(self) -> None:
        """Open the store."""
        self.store = kpstore.api.open(self._location, self._at, cache=self._cache)

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read through the batch reader."""
        self.store.read(self._feature, rows, out)

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read through the batch reader."""
        self.store.reader.read_slice(self._feature, start, stop, out)

    def clips(self, starts: Ints, length: int, out: Rows) -> None:
        """Read all rows of all clips at once, as the view of clips does."""
        rows = (starts[:, None] + np.arange(length)).ravel()
        self.store.read(self._feature, rows, out.reshape(-1, *out.shape[2:]))

    def video(self, index: VideoIndex, position: int, out: Rows) -> None:
        """Read a video by its id, as users do."""
        self.store.video(str(index.ids[position]))[self._feature]

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[Any]:
        """Yield batches of :func:`kpstore.loader`."""
        view = self.store.frames(self._feature)
        if self.n_rows < len(view):
            view = view.subset(np.arange(self.n_rows))  # type: ignore[assignment]
        for batch in kpstore.api.loader(view, batch_size, seed=int(rng.integers(2**31))):
            yield batch[self._feature]


class FileSubject(Subject):
    """Another format: a copy of the rows in a file of its own, opened anew for each measurement.

    Parameters
    ----------
    array : the rows to copy.
    folder : where the copy goes.
    """

    def __init__(self, array: Rows, folder: Path) -> None:
        super().__init__(len(array), array)
        self.path = folder / self.name.replace(" ", "-")
        self.write(array)
        self.reopen()

    @abstractmethod
    def write(self, array: Rows) -> None:
        """Write the copy."""


class NpySubject(FileSubject):
    """A memory-mapped ``.npy`` file."""

    name = "npy"
    how = "numpy.load(mmap_mode='r')"

    def write(self, array: Rows) -> None:
        """Write by ``numpy.save``."""
        with self.path.open("wb") as file:
            np.save(file, array)

    def reopen(self) -> None:
        """Map the file."""
        self._mapped = np.load(self.path, mmap_mode="r")

    def gather(self, rows: Ints, out: Rows) -> None:
        """Gather from the mapping."""
        np.take(self._mapped, rows, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Copy from the mapping."""
        out[...] = self._mapped[start:stop]


class NpzSubject(FileSubject):
    """A compressed ``.npz`` file, loaded whole: what training scripts read today."""

    name = "npz"
    how = "numpy.load of everything, savez_compressed"

    def write(self, array: Rows) -> None:
        """Write by ``numpy.savez_compressed``."""
        with self.path.open("wb") as file:
            np.savez_compressed(file, keypoints=array)

    def reopen(self) -> None:
        """Load everything."""
        self._array = np.load(self.path)["keypoints"]

    def gather(self, rows: Ints, out: Rows) -> None:
        """Gather from memory."""
        np.take(self._array, rows, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Copy from memory."""
        out[...] = self._array[start:stop]


class PickleSubject(NpzSubject):
    """A pickle of the array, loaded whole."""

    name = "pickle"
    how = "pickle.load of everything"

    def write(self, array: Rows) -> None:
        """Write by ``pickle.dump``."""
        import pickle

        with self.path.open("wb") as file:
            pickle.dump(array, file, protocol=5)

    def reopen(self) -> None:
        """Load everything."""
        import pickle

        with self.path.open("rb") as file:
            self._array = pickle.load(file)  # a file that this run wrote


class H5pySubject(FileSubject):
    """An HDF5 file of chunks of 64 rows, uncompressed: the fastest of h5py's layouts for random rows."""

    name = "h5py"
    how = "h5py, chunks of 64 rows, uncompressed"
    chunk_rows = 64
    compression: str | None = None
    shuffle = False

    def write(self, array: Rows) -> None:
        """Write one data set."""
        import h5py

        with h5py.File(self.path, "w") as file:
            shape = (min(self.chunk_rows, len(array)), *array.shape[1:])
            file.create_dataset(
                "x", data=array, chunks=shape, compression=self.compression, shuffle=self.shuffle
            )

    def reopen(self) -> None:
        """Open the file."""
        import h5py

        self._data = h5py.File(self.path, "r")["x"]

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read rows in ascending order, which is all that h5py takes, and put them in the order asked for."""
        ascending, back = np.unique(rows, return_inverse=True)
        np.take(self._data[ascending], back, axis=0, out=out, mode="clip")

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read straight into the buffer."""
        if stop > start:
            self._data.read_direct(out, np.s_[start:stop])


class H5pyLzfSubject(H5pySubject):
    """An HDF5 file of chunks of 256 rows, shuffled and compressed by LZF, the fastest codec that h5py brings."""

    name = "h5py-lzf"
    how = "h5py, chunks of 256 rows, shuffled lzf"
    chunk_rows = 256
    compression = "lzf"
    shuffle = True


def _lz4() -> Any:
    from zarr.codecs import BloscCodec

    return BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")


class ZarrSubject(FileSubject):
    """Zarr chunks of 1,024 rows, uncompressed, through zarr-python."""

    name = "zarr"
    how = "zarr-python, chunks of 1,024 rows, uncompressed"
    compressed = False

    def write(self, array: Rows) -> None:
        """Write one array."""
        import zarr

        shape = (BLOCK_ROWS, *array.shape[1:])
        zarr.create_array(
            self.path, data=array, chunks=shape, compressors=_lz4() if self.compressed else None
        )

    def reopen(self) -> None:
        """Open the array."""
        import zarr

        self._array: Any = zarr.open_array(self.path, mode="r")

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read rows by orthogonal indexing."""
        out[...] = self._array.oindex[rows]

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read a slice."""
        out[...] = self._array[start:stop]


class ZarrLz4Subject(ZarrSubject):
    """Zarr chunks of 1,024 rows, shuffled lz4, through zarr-python."""

    name = "zarr-lz4"
    how = "zarr-python, chunks of 1,024 rows, shuffled lz4"
    compressed = True


class TensorStoreSubject(FileSubject):
    """Zarr shards of 16,384 rows in chunks of 64, uncompressed, through TensorStore."""

    name = "tensorstore"
    how = "TensorStore, shards of 16,384 rows in chunks of 64, uncompressed"
    compressed = False

    def write(self, array: Rows) -> None:
        """Write one array."""
        import zarr

        shape = array.shape[1:]
        zarr.create_array(
            self.path,
            data=array,
            shards=(16_384, *shape),
            chunks=(64, *shape),
            compressors=_lz4() if self.compressed else None,
        )

    def reopen(self) -> None:
        """Open the array."""
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(self.path)}}
        self._array = tensorstore.open(spec).result()

    def gather(self, rows: Ints, out: Rows) -> None:
        """Read rows by an index array."""
        out[...] = self._array[rows].read().result()

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Read a slice."""
        out[...] = self._array[start:stop].read().result()


class TensorStoreLz4Subject(TensorStoreSubject):
    """Zarr shards of 16,384 rows in chunks of 64, shuffled lz4, through TensorStore."""

    name = "tensorstore-lz4"
    how = "TensorStore, shards of 16,384 rows in chunks of 64, shuffled lz4"
    compressed = True


class LanceSubject(FileSubject):
    """A Lance data set with a fixed-size list per row."""

    name = "lance"
    how = "Lance, a fixed-size list per row"

    def write(self, array: Rows) -> None:
        """Write one column."""
        import lance
        import pyarrow as pa

        flat = np.ascontiguousarray(array).reshape(len(array), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
        lance.write_dataset(pa.table({"x": column}), str(self.path))

    def reopen(self) -> None:
        """Open the data set."""
        import lance

        self._data = lance.dataset(str(self.path))

    def gather(self, rows: Ints, out: Rows) -> None:
        """Take rows."""
        self._fill(out, self._data.take(rows))

    def read(self, start: int, stop: int, out: Rows) -> None:
        """Scan a slice."""
        self._fill(out, self._data.to_table(offset=start, limit=stop - start))

    @staticmethod
    def _fill(out: Rows, table: Any) -> None:
        column = table.column("x").combine_chunks()
        out[...] = column.flatten().to_numpy(zero_copy_only=False).reshape(out.shape)


PEERS: dict[str, tuple[Callable[[Rows, Path], FileSubject], str]] = {
    "npy": (NpySubject, "numpy"),
    "npz": (NpzSubject, "numpy"),
    "pickle": (PickleSubject, "numpy"),
    "h5py": (H5pySubject, "h5py"),
    "h5py-lzf": (H5pyLzfSubject, "h5py"),
    "zarr": (ZarrSubject, "zarr"),
    "zarr-lz4": (ZarrLz4Subject, "zarr"),
    "tensorstore": (TensorStoreSubject, "tensorstore"),
    "tensorstore-lz4": (TensorStoreLz4Subject, "tensorstore"),
    "lance": (LanceSubject, "lance"),
}
"""By name, how to make a copy, and the package that it needs."""


def installed_peers() -> list[str]:
    """Return the names of the formats that this environment can read."""
    return [name for name, (_, package) in PEERS.items() if find_spec(package) is not None]


def check_peers(names: Sequence[str]) -> None:
    """Raise :class:`InvalidError` for an unknown name, :class:`MissingExtraError` for one that is not installed."""
    for name in names:
        if name not in PEERS:
            raise InvalidError(
                f"nothing is known of {name!r}; kpstore compares with {', '.join(PEERS)}"
            )
        if name not in installed_peers():
            raise MissingExtraError(f"a comparison with {name!r}", extra="bench")


def filesystem_of(path: str) -> str:
    """Return the type of the file system that a path lies on, as Linux names it.

    ``"unknown"`` elsewhere.
    """
    try:
        mounts = [
            line.split()[1:3]
            for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
        ]
    except OSError:
        return "unknown"
    here = os.path.realpath(path)
    holding = [
        (len(point), kind) for point, kind in mounts if os.path.commonpath([point, here]) == point
    ]
    return max(holding)[1] if holding else "unknown"
