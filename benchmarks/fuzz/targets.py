"""What is fuzzed: readers of foreign files, of lists, and of stores on both backends.

A target reads a file of arbitrary bytes as people read it. It passes if that works, or ends in one
clear line (:class:`kpstore.errors.KpstoreError`); if what was imported is a store that ``kpstore
verify`` calls sound; and if it stays within :data:`CPU_S` and the memory bound.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import kpstore
from kpstore.backends.base import Backend
from kpstore.errors import KpstoreError
from kpstore.inspect.verify import verify, verify_all
from kpstore.interop.split_files import read_splits
from kpstore.interop.transfer import export_file, import_file
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.lip_lists import list_folders, read_lists
from kpstore.sources.phoenix import PhoenixSource
from kpstore.store.store import BaseStore, backend_for

CPU_S = 10
"""CPU seconds that one input may take."""
MEMORY_BYTES = 256 * 2**20
"""Memory that one input may take beyond ten times its size."""


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed.

    Parameters
    ----------
    name : of the target.
    read : reads a file of the bytes given; the folder is empty and of this input alone.
    seeds : yields sound inputs to begin with.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], Iterator[bytes]]

    def check(self, data: bytes) -> str | None:
        """Read an input; return the clear line that it ended in, None if it was read.

        Raises
        ------
        Exception
            Whatever should not have come out.
        """
        with tempfile.TemporaryDirectory(prefix="kpstore-fuzz-") as folder:
            try:
                self.read(data, Path(folder))
            except (KpstoreError, PermissionError) as error:
                # What others wrote into it is made visible where it is printed.
                if not str(error).strip():
                    raise AssertionError("an error without a message") from error
                return str(error)
        return None


# -- foreign files ---------------------------------------------------------------------------------


def _imports(
    format_name: str, file: str, *, in_folder: bool = False
) -> Callable[[bytes, Path], None]:
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
            _removed(backend)

    return read


def _removed(backend: Backend) -> None:
    if backend.exists():
        backend.remove()


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


def _exported(format_name: str, **options: Any) -> Callable[[], Iterator[bytes]]:
    """Return seeds: every file of the sample exported in this format."""

    def seeds() -> Iterator[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "out"
            export_file(_sample(), target, format_name, **options)
            files = [target] if target.is_file() else sorted(target.rglob("*"))
            yield from (p.read_bytes() for p in files if p.is_file() and p.suffix != ".json")

    return seeds


def _texts(*texts: str) -> Callable[[], Iterator[bytes]]:
    return lambda: (text.encode() for text in texts)


# -- lists -----------------------------------------------------------------------------------------


def _lists(read: Callable[[Path], object], file: str) -> Callable[[bytes, Path], None]:
    """Return a reading of one file by a function."""

    def read_file(data: bytes, folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        read(path)

    return read_file


_PHOENIX = "annotations/manual/PHOENIX-2014-T.dev.corpus.csv"


def _phoenix(path: Path) -> None:
    frames = path.parents[2] / "features/fullFrame-210x260px/dev/a"
    frames.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(frames / "0.png")
    PhoenixSource(str(path.parents[2]), splits=("dev",)).scan()


def _lip_lists(path: Path) -> None:
    config = path.parents[1] / "conf" / "conf.yaml"
    config.parent.mkdir()
    config.write_text("datamodule: {data_config: {train_dir: lists}}")
    list(read_lists(config))


# -- stores ----------------------------------------------------------------------------------------


def _read_store(location: str) -> None:
    """Read a store as people do, and check it."""
    try:
        store = kpstore.open(location, cache="off")
        repr(store), store.tags, store.branches, [str(commit) for commit in store.history()]
        for name in store.session.names():
            store[name][:]
        store.videos.to_csv()
    finally:
        verify_all(location)


def _hdf5_store(data: bytes, folder: Path) -> None:
    (folder / "s.h5").write_bytes(data)
    _read_store(str(folder / "s.h5"))


@cache
def _template(suffix: str) -> Path:
    """Return a folder that holds a small store of two versions and a tag."""
    folder = Path(tempfile.mkdtemp(prefix="kpstore-fuzz-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    spec = FeatureSpec("points", (2, 3), ("point", "space"), chunk_rows=4)
    with kpstore.create(folder / f"s{suffix}").transaction("first") as tx:
        tx.add_videos(
            [VideoRecord("a", "train", ("a/0.png", "a/1.png"), 25.0, 8, 6, {"gloss": "G"})]
        )
        tx.add_feature(spec, {"extractor": "sample"})
        tx.write("points", "a", np.ones((2, 2, 3), np.float32))
    store = kpstore.open(folder / f"s{suffix}", mode="a")
    store.tag("t")
    with store.transaction("second") as tx:
        tx.set_splits({"a": "dev"})
    return folder


def _icechunk_store(data: bytes, folder: Path) -> None:
    """Replace one file of the store, which the first byte chooses, by the other bytes."""
    shutil.copytree(_template(".kps"), folder, dirs_exist_ok=True)
    files = [path for path in sorted((folder / "s.kps").rglob("*")) if path.is_file()]
    if data:
        files[data[0] % len(files)].write_bytes(data[1:])
    _read_store(str(folder / "s.kps"))


def _files_of_icechunk() -> Iterator[bytes]:
    files = [path for path in sorted((_template(".kps") / "s.kps").rglob("*")) if path.is_file()]
    yield from (bytes([number]) + path.read_bytes() for number, path in enumerate(files[:256]))


def _file_of_hdf5() -> Iterator[bytes]:
    yield (_template(".h5") / "s.h5").read_bytes()


_PERSON = {
    "features": [0.25, 1.5],
    "landmarks_2d": [[3, 4]] * 5,
    "landmarks_3d": [[0.5, 1, 2]] * 5,
    "box": [1, 2, 3, 4],
}
_FRAME = {"image_path": "a.jpg", **_PERSON, "spherical_angles": [1, 2, 3, 4, 5], "avg_angle": 3}
_PERSONS = json.dumps(
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
_SPLITS = (
    "video_id,split\na,train\nb,dev\n",
    "sep=;\nname;subset\na;train\n",
    '{"a": "train"}',
    '{"train": ["a", "b"]}',
)
_PHOENIX_LIST = "name|video|start|end|speaker|orth|translation\na|a/1/*.png|-1|-1|S1|G|text\n"
_LIP_CONFIG = "datamodule:\n  data_config:\n    train_dir: &t lists\n    test_dir: *t\n"
_LIP_LIST = '[["a.wav", "a.npz", 32000]]'
_FACE_LIST = json.dumps(list(range(68)))


def _embeddings() -> Iterator[bytes]:
    for packed in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        packed(file, embedding=np.ones((512, 3), np.float32))
        yield file.getvalue()


TARGETS = {
    target.name: target
    for target in (
        Target("pickle", _imports("pickle", "x.pkl"), _exported("pickle")),
        Target("json", _imports("json", "x.json"), _texts(_PERSONS)),
        Target("npz", _imports("npz", "train_keypoints.npz"), _exported("npz")),
        Target(
            "embeddings", _imports("embeddings", "a_embedding.npz", in_folder=True), _embeddings
        ),
        Target("pose", _imports("pose", "a.pose"), _exported("pose")),
        Target("slt", _imports("slt", "x.train"), _exported("slt")),
        Target("hdf5", _imports("hdf5", "x.h5"), _exported("hdf5")),
        Target("splits", _lists(read_splits, "splits.csv"), _texts(*_SPLITS)),
        Target("phoenix", _lists(_phoenix, _PHOENIX), _texts(_PHOENIX_LIST)),
        Target("lip_config", _lists(list_folders, "conf.yaml"), _texts(_LIP_CONFIG)),
        Target("lip_list", _lists(_lip_lists, "lists/s1.json"), _texts(_LIP_LIST)),
        Target("face_list", _lists(load_face_list, "faces.json"), _texts(_FACE_LIST)),
        Target("store_hdf5", _hdf5_store, _file_of_hdf5),
        Target("store_icechunk", _icechunk_store, _files_of_icechunk),
    )
}
