"""Fuzzed importers: a store that an import made is one that ``kpstore verify`` calls sound."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import kpstore
from benchmarks.fuzz.rules import Read, Seeds
from kpstore.inspect.verify import verify
from kpstore.interop.transfer import export_file, import_file
from kpstore.schema.index import VideoRecord
from kpstore.store.store import BaseStore, backend_for


def imports(format_name: str, file: str, *, in_folder: bool = False) -> Read:
    """Return a reading that imports a file and checks the store that it became."""

    def read(data: bytes, folder: Path) -> None:
        path = folder / file
        path.write_bytes(data)
        backend = backend_for("memory://fuzz")
        try:
            import_file(folder if in_folder else path, "memory://fuzz", format_name)
            problems = verify(BaseStore.open(backend)).problems
            if problems:
                raise AssertionError(f"imported, and then called wrong: {problems[0]}")
        finally:
            if backend.exists():
                backend.remove()

    return read


@cache
def _sample() -> BaseStore:
    """Return a small store that every format can hold."""
    from kpstore.schema.layout import keypoints_spec

    rng = np.random.default_rng(0)
    store = kpstore.create("memory://fuzz-sample", name="sample")
    spec = keypoints_spec()
    with store.transaction("sample") as tx:
        tx.add_videos(
            [
                VideoRecord(
                    f"v{n}", ("train", "dev")[n % 2], _paths(n), 25.0, 64, 48, {"gloss": "A B"}
                )
                for n in range(3)
            ]
        )
        tx.add_feature(spec, {"extractor": "sample"})
        for n in range(3):
            rows = spec.empty_rows(n + 1)
            rows.values[:] = rng.random(rows.values.shape)
            tx.write(spec.name, f"v{n}", rows.values)
    return kpstore.open("memory://fuzz-sample")


def _paths(number: int) -> tuple[str, ...]:
    return tuple(f"v{number}/images{frame:04d}.png" for frame in range(number + 1))


def exported(format_name: str, **options: Any) -> Seeds:
    """Return seeds: every file of the sample exported in this format."""

    def seeds() -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "out"
            export_file(_sample(), target, format_name, **options)
            files = [target] if target.is_file() else sorted(target.rglob("*"))
            yield from (p.read_bytes() for p in files if p.is_file() and p.suffix != ".json")

    return seeds


def embeddings() -> Iterator[bytes]:
    """Yield embeddings of an utterance, plain and packed."""
    for packed in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        packed(file, embedding=np.ones((512, 3), np.float32))
        yield file.getvalue()


def hdf5_files() -> Iterator[bytes]:
    """Yield an export, and small files of others: rows with and without text, in other layouts.

    The last have groups of HDF5's older kind and its newer in one another, and external files.
    """
    yield from exported("hdf5", compression="gzip")()
    for options in ({}, {"chunks": (2,)}, {"chunks": (2,), "compression": "lzf"}):
        file = io.BytesIO()
        with h5py.File(file, "w") as opened:
            opened["points"] = np.arange(12, dtype=np.float32).reshape(4, 3)
            ids = ["a", "a", "b", "b"]
            opened.create_dataset("video_ids", data=ids, dtype=h5py.string_dtype(), **options)
        yield file.getvalue()
    for newer in (False, True):
        file = io.BytesIO()
        with h5py.File(file, "w", track_order=newer) as opened:
            group = opened.create_group("a", track_order=not newer)
            group.create_group("b", track_order=newer)["points"] = np.zeros((4, 3), np.float32)
            group.create_dataset("c", (4,), "f4", external=[("elsewhere/x.raw", 0, 16)])
        yield file.getvalue()


# -- what lies inside of checksums -----------------------------------------------------------------


def inside_gzip(read: Read) -> Read:
    """Return a reading of the contents of a gzip file, whose checksum mutations would break."""
    return lambda data, folder: read(gzip.compress(data, 1), folder)


def unpacked(seeds: Seeds) -> Seeds:
    """Return the contents of gzip files."""
    return lambda: (gzip.decompress(seed) for seed in seeds())


def inside_npz(read: Read) -> Read:
    """Return a reading of an array in an npz file, which the first byte chooses.

    A zip file has a checksum of each of its files, which mutations would break.
    """

    def read_npz(data: bytes, folder: Path) -> None:
        seed = _npz()
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(seed)) as before, zipfile.ZipFile(file, "w") as after:
            names = before.namelist()
            chosen = names[data[0] % len(names)] if data else ""
            for name in names:
                after.writestr(name, data[1:] if name == chosen else before.read(name))
        read(file.getvalue(), folder)

    return read_npz


@cache
def _npz() -> bytes:
    return next(iter(exported("npz")()))


def arrays_of_npz() -> Iterator[bytes]:
    """Yield the arrays of an exported npz file, each after its number."""
    with zipfile.ZipFile(io.BytesIO(_npz())) as file:
        for number, name in enumerate(file.namelist()):
            yield bytes([number]) + file.read(name)


def npz_stats(data: bytes, folder: Path) -> None:
    """Import npz files beside which this JSON says what they hold."""
    (folder / "train_stats.json").write_bytes(data)
    imports("npz", "train_keypoints.npz", in_folder=True)(_npz(), folder)


NPZ_STATS = json.dumps(
    {"split": "train", "num_samples": 4, "num_videos": 2, "keypoint_shape": [143, 3], "x": 1}
)


# -- faces -----------------------------------------------------------------------------------------

_PERSON = {
    "features": [0.25, 1.5],
    "landmarks_2d": [[3, 4]] * 5,
    "landmarks_3d": [[0.5, 1, 2]] * 5,
    "box": [1, 2, 3, 4],
}
_FRAME = {"image_path": "a.jpg", **_PERSON, "spherical_angles": [1, 2, 3, 4, 5], "avg_angle": 3}
PERSONS = json.dumps(
    {
        "Ada": {
            "face_image_path": "f.jpg",
            **{f"face_{key}": value for key, value in _PERSON.items()},
            "video_data": [_FRAME],
            "feature_dim": 2,
            "dinov2_model": "dinov2_tiny",
        }
    }
)
