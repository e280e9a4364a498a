"""Fuzzed stores of both backends, and what kpstore keeps beside stores and for itself."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import xxhash

import kpstore
from kpstore.backends.base import ArrayMeta
from kpstore.backends.hdf5_records import _SEAL, _SEAL_BYTES, _seal
from kpstore.backends.locks import refusing_lock
from kpstore.errors import BusyError
from kpstore.ingest.report import PROGRESS_FILE, Progress, read_progress
from kpstore.inspect.measuring import POLICY
from kpstore.inspect.statistics import statistics
from kpstore.inspect.verify import verify_all
from kpstore.interop.convert import convert
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.store.cache import DecodedCache
from kpstore.store.format import ROOT
from kpstore.store.store import backend_for


def _read_store(location: Path | str) -> None:
    """Read a store as people do, and check it."""
    try:
        store = kpstore.open(location, cache="off")
        repr(store), store.tags, store.branches, [str(commit) for commit in store.history()]
        for name in store.session.names():
            store[name][:]
        store.videos.to_csv()
    finally:
        verify_all(str(location))


KEPT = Path(__file__).with_name("stores.tar.xz")
"""One small store on each backend. They are kept, as their ids are random, and inputs name them."""


@cache
def _template() -> Path:
    """Return a folder that holds both stores."""
    folder = Path(tempfile.mkdtemp(prefix="kpstore-fuzz-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with tarfile.open(KEPT) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _copy(name: str, folder: Path) -> Path:
    """Copy a store into a folder; return its place."""
    source = _template() / name
    if source.is_dir():
        return shutil.copytree(source, folder / name)
    return Path(shutil.copy(source, folder / name))


def make_kept() -> None:
    """Make the stores that are kept: two versions and a tag."""
    spec = FeatureSpec("points", (2, 3), ("point", "space"), chunk_rows=4)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(KEPT, "w:xz") as archive:
        for name in ("s.h5", "s.kps"):
            with kpstore.create(Path(folder) / name).transaction("first") as tx:
                tx.add_videos(
                    [VideoRecord("a", "train", ("a/0.png", "a/1.png"), 25.0, 8, 6, {"gloss": "G"})]
                )
                tx.add_feature(spec, {"extractor": "sample"})
                tx.write("points", "a", np.ones((2, 2, 3), np.float32))
            store = kpstore.open(Path(folder) / name, mode="a")
            store.tag("t")
            with store.transaction("second") as tx:
                tx.set_splits({"a": "dev"})
            archive.add(Path(folder) / name, name)


# -- HDF5 ------------------------------------------------------------------------------------------


def hdf5(data: bytes, folder: Path) -> None:
    """Read a file as a store."""
    (folder / "s.h5").write_bytes(data)
    _read_store(folder / "s.h5")


def hdf5_seeds() -> Iterator[bytes]:
    """Yield a store."""
    yield (_template() / "s.h5").read_bytes()


def hdf5_record(data: bytes, folder: Path) -> None:
    """Replace a record of a store, which the first byte chooses, with a checksum that fits."""
    path = _copy("s.h5", folder)
    if data:
        with h5py.File(path, "r+") as file:
            names = _records(file)
            group, _, name = names[data[0] % len(names)].rpartition("/")
            body = data[1:]
            sealed = f'{_SEAL}{_seal(file[group], name, body)}"}}'.encode()
            del file[group][name]
            file[group].create_dataset(name, data=np.frombuffer(body + sealed, np.uint8))
    _read_store(path)


def hdf5_records() -> Iterator[bytes]:
    """Yield the records of a store without their checksums, each after its number."""
    with h5py.File(_template() / "s.h5") as file:
        for number, name in enumerate(_records(file)):
            yield bytes([number]) + file[name][()].tobytes()[:-_SEAL_BYTES]


def _records(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visit(found.append)
    return sorted(name for name in found if name.endswith(_RECORDS))


_RECORDS = ("/names", "/record", "/about")


# -- Icechunk --------------------------------------------------------------------------------------


def icechunk(data: bytes, folder: Path) -> None:
    """Replace one file of a store, which the first byte chooses, by the other bytes."""
    path = _copy("s.kps", folder)
    files = _files(path)
    if data:
        files[data[0] % len(files)].write_bytes(data[1:])
    _read_store(path)


def icechunk_seeds() -> Iterator[bytes]:
    """Yield the files of a store, each after its number."""
    for number, path in enumerate(_files(_template() / "s.kps")):
        yield bytes([number]) + path.read_bytes()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def ledger(data: bytes, folder: Path) -> None:
    """Read a store whose ledger has these lines, each with a checksum that fits."""
    path = _copy("s.kps", folder)
    lines = (xxhash.xxh3_64_hexdigest(line).encode() + b" " + line for line in data.split(b"\n"))
    (path / LEDGER).write_bytes(b"".join(line + b"\n" for line in lines))
    _read_store(path)


LEDGER = "kpstore/ledger"


def ledgers() -> Iterator[bytes]:
    """Yield the ledger of a store, without checksums."""
    lines = (_template() / "s.kps" / LEDGER).read_bytes().splitlines()
    yield b"\n".join(line.partition(b" ")[2] for line in lines)


# -- both ------------------------------------------------------------------------------------------


def description(data: bytes, folder: Path) -> None:
    """Read a store that describes itself by this JSON, as both backends keep it."""
    try:
        attrs = json.loads(data)
    except (ValueError, RecursionError):
        return
    backend = backend_for("memory://fuzz")
    try:
        convert(str(_template() / "s.h5"), "memory://fuzz")
        session = backend.begin()
        session.set_attrs({ROOT: attrs})
        session.commit("another description")
        _read_store("memory://fuzz")
    finally:
        backend.remove()


def descriptions() -> Iterator[bytes]:
    """Yield the description of a store."""
    about = kpstore.open(_template() / "s.h5", cache="off").session.attrs()[ROOT]
    yield json.dumps(about).encode()


# -- beside stores, and of kpstore itself ----------------------------------------------------------


def progress(data: bytes, folder: Path) -> None:
    """Ask a store for the progress of its run."""
    backend = backend_for(str(_template() / "s.h5"))
    assert backend.sidecar_dir is not None
    backend.sidecar_dir.mkdir(exist_ok=True)
    (backend.sidecar_dir / PROGRESS_FILE).write_bytes(data)
    read_progress(backend)


def progresses() -> Iterator[bytes]:
    """Yield the progress of a run."""
    yield json.dumps(asdict(Progress("videos", "holistic"))).encode()


def lock(data: bytes, folder: Path) -> None:
    """Be told who holds a lock."""
    path = folder / "commit.lock"
    # The second holder tries several times, with pauses, which would be most of the run.
    with refusing_lock(path, location="store", purpose="a commit"), patch("time.sleep"):
        path.write_bytes(data)
        try:
            with refusing_lock(path, location="store", purpose="a commit"):
                raise AssertionError("two holders of one lock")
        except BusyError:
            pass


def locks() -> Iterator[bytes]:
    """Yield what a holder writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "commit.lock"
        with refusing_lock(path, location="store", purpose="a commit"):
            yield path.read_bytes()


_SNAPSHOT = "A" * 20
_META = ArrayMeta((6, 2), "float32", 4, ("frame", "space"))


def decoded(data: bytes, folder: Path) -> None:
    """Look into the cache for a decoded array."""
    cache_of = DecodedCache(folder)
    (folder / _SNAPSHOT).mkdir()
    (folder / _SNAPSHOT / "points.kpstore.npy").write_bytes(data)
    found = cache_of.open(_SNAPSHOT, "points", _META)
    assert found is None or found.values.shape == _META.shape
    cache_of.entries(), cache_of.clear()


def decoded_seeds() -> Iterator[bytes]:
    """Yield a decoded array with its checksums."""
    file = io.BytesIO()
    np.save(file, np.ones(_META.shape, np.float32))
    yield file.getvalue() + bytes(8 * _META.n_chunks)


def kept_statistics(data: bytes, folder: Path) -> None:
    """Ask for statistics of which the cache has some."""
    kept = _kept()
    kept.write_bytes(data)
    _measured()


def kept_seeds() -> Iterator[bytes]:
    """Yield what the cache keeps of statistics."""
    _kept().unlink(missing_ok=True)
    _measured()
    yield _kept().read_bytes()


def _measured() -> None:
    store = kpstore.open(_template() / "s.h5", cache=_template() / "cache")
    statistics(store, "points", workers=1).to_json()


def _kept() -> Path:
    store = kpstore.open(_template() / "s.h5", cache=_template() / "cache")
    assert store.decoded_cache is not None
    return store.decoded_cache.statistics_path(store.snapshot, f"points_{POLICY}")


if __name__ == "__main__":
    make_kept()
