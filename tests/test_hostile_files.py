"""Files of strangers: bounded time and memory, at most one clear line (benchmarks/fuzz).

What fuzzing found is in ``tests/corpus``; what people think of first is made here. All of it is
read in one process, whose memory is watched.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import icechunk
import numpy as np
import pytest
import zarr
from PIL import Image

import kpstore
from benchmarks.fuzz.rules import forget_peak, peak_bytes
from kpstore.budget import MemoryBudget
from kpstore.cli.main import run
from kpstore.errors import InvalidError
from kpstore.extractors.checkpoint_files import load_tensors
from kpstore.ingest.options import Options
from kpstore.ingest.run import plan_ingest
from kpstore.schema.feature import FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError
from kpstore.sources.images import read_image
from kpstore.user_files import read_json
from tests.conftest import memory_location
from tests.fakes import FakeExtractor, FakeSource, record

ROOT = Path(__file__).parents[1]
CORPUS = Path(__file__).parent / "corpus"
MIB = 2**20
PACKED_FRAMES = 2**15
LARGE_LIST = 5 * 2**19
"""Lists in a list of JSON that take more memory than ten times the file and 256 MiB."""
LISTS = ("splits", "lip_list", "face_list")


def nested_lists() -> list[object]:
    """A list of ten times a list of ten times a list …: a billion values, ten lists in a pickle."""
    found: list[object] = [1]
    for _ in range(9):
        found = [found] * 10
    return found


def colliding_keys(n: int) -> bytes:
    """A pickle of a dict whose keys have one hash; making it here would take as long."""
    prime = 2**61 - 1
    keys = b"".join(
        b"\x8a\x0c" + (prime * (k + 2**8)).to_bytes(12, "little") + b"K\x01" for k in range(n)
    )
    return b"\x80\x02}(" + keys + b"u."


def deflated_zeros(mib: int) -> bytes:
    """Zeros packed by zlib: one packed MiB, repeated, as packing them all would take long."""
    packer = zlib.compressobj(1)
    first, later = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    checksum = (mib * MIB % 65521) << 16 | 1
    return first + later * (mib - 1) + b"\x03\0" + struct.pack(">I", checksum)


def npz(*arrays: tuple[str, tuple[int, ...], str, int]) -> bytes:
    """An npz file of constant arrays: name, shape, dtype, and MiB that are there (0: all)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, shape, dtype, mib in arrays:
            head = str({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
            size = mib * MIB or int(np.prod(shape)) * np.dtype(dtype).itemsize
            block = (b"a\0\0\0" if "U" in dtype else bytes(4)) * (MIB // 4)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
                for start in range(0, size, MIB):
                    member.write(block[: size - start])
    return file.getvalue()


def ids(n: int) -> tuple[tuple[str, tuple[int, ...], str, int], ...]:
    return ("video_ids", (n,), "<U1", 0), ("image_paths", (n,), "<U1", 0)


def packed_npz() -> bytes:
    """A sound video of which a file keeps a hundredth."""
    return npz(("keypoints", (PACKED_FRAMES, 143, 3), "<f8", 0), *ids(PACKED_FRAMES))


def packed_hdf5() -> bytes:
    def fill(file: h5py.File) -> None:
        shape, chunks = (PACKED_FRAMES, 2400), (2**9, 2400)
        file.create_dataset("rows", shape, "u1", chunks=chunks, compression="gzip")[:] = 1

    return hdf5(fill)


def yaml_bomb(open_: str, close: str) -> bytes:
    levels = [f"a{i}: &a{i} {open_}{', '.join([f'*a{i - 1}'] * 9)}{close}" for i in range(1, 12)]
    return "\n".join(["a0: &a0 {k: 1}", *levels]).encode()


def hdf5(fill: Callable[[h5py.File], None]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        fill(opened)
    return file.getvalue()


def unwritten_rows(file: h5py.File) -> None:
    file.create_dataset("keypoints", (10**8, 143, 3), "f4", chunks=(1024, 143, 3))


def unwritten_texts(file: h5py.File) -> None:
    file.create_dataset("keypoints", (10**9, 4), "u1", chunks=(2**20, 4))
    file.create_dataset("video_ids", (10**9,), h5py.string_dtype(), chunks=(2**20,))


def wide_chunk(file: h5py.File) -> None:
    """One row of a file of a kilobyte, in a chunk of 600 MiB."""
    rows = file.create_dataset("rows", (1, 3), "u1", chunks=(200 * MIB, 3), maxshape=(None, 3))
    rows.id.write_direct_chunk((0, 0), b"x")


def inflated_chunk(file: h5py.File) -> None:
    """A chunk of a megabyte that becomes 400: HDF5's library makes as much room as it takes."""
    rows = file.create_dataset("rows", (MIB, 1), "u1", chunks=(MIB, 1), compression="gzip")
    rows.id.write_direct_chunk((0, 0), deflated_zeros(400))


def long_text(length: int) -> bytes:
    """An export that describes itself by a text of a length that it does not have."""

    def fill(file: h5py.File) -> None:
        file.attrs["kpstore_export"] = 1
        about = file.create_dataset("_kpstore_export_about", data="{}", dtype=h5py.string_dtype())
        places.append(about.id.get_offset())

    places: list[int] = []
    content = bytearray(hdf5(fill))
    content[places[0] : places[0] + 4] = struct.pack("<I", length)
    return bytes(content)


def shared_text() -> bytes:
    """Texts of a thousand rows that are one text of a megabyte in the file."""

    def fill(file: h5py.File) -> None:
        file.create_dataset("rows", data=np.zeros((1000, 1), np.float32))
        ids = file.create_dataset("video_ids", (1000,), h5py.string_dtype())
        ids[:] = ["a" * MIB, *(str(number) for number in range(999))]
        places.append(ids.id.get_offset())

    places: list[int] = []
    content = bytearray(hdf5(fill))
    first = content[places[0] : places[0] + 16]
    content[places[0] : places[0] + 16_000] = bytes(first) * 1000
    return bytes(content)


def same_path() -> bytes:
    """An export of a video all of whose frames have one path, of which there is one in the file."""
    with tempfile.TemporaryDirectory() as folder:
        file, n = Path(folder, "a.h5"), 20_000
        spec = FeatureSpec("one", (1,), ("x",), dtype="uint8")
        store = kpstore.create(f"{folder}/s.kps")
        with store.transaction("first") as tx:
            paths = ["a" * 30_000, *(str(number) for number in range(n - 1))]
            tx.add_videos([VideoRecord("a", "train", tuple(paths))])
            tx.add_feature(spec, {"extractor": "sample"})
            tx.write("one", "a", np.zeros((n, 1), np.uint8))
        run(["export", "hdf5", f"{folder}/s.kps", str(file)])
        with h5py.File(file, "r+") as opened:
            del opened["image_path"]
            array = opened.create_dataset("image_path", data=paths, dtype=h5py.string_dtype())
            at = array.id.get_offset()
        content = bytearray(file.read_bytes())
        content[at : at + 16 * n] = bytes(content[at : at + 16]) * n
        return bytes(content)


def wide_texts(file: h5py.File) -> None:
    """Two texts in a chunk with room for references of a gigabyte, which is packed well."""
    file.create_dataset("rows", data=np.zeros((2, 1), np.float32))
    ids = file.create_dataset(
        "video_ids", (2,), h5py.string_dtype(), chunks=(64 * MIB,), maxshape=(None,), compression=1
    )
    ids.id.write_direct_chunk((0,), deflated_zeros(1024))


def small_chunks(file: h5py.File) -> None:
    """A text in each chunk, as netCDF makes them where rows can be added."""
    n = 30_000
    file.create_dataset("rows", data=np.zeros((n, 1), np.float32))
    ids = file.create_dataset("video_ids", (n,), h5py.string_dtype(), chunks=(1,))
    ids[:] = ["a"] * (n - 1) + [""]


def same_frame() -> bytes:
    n = 10**5
    columns = {"image_paths": [f"a/{k}.png" for k in range(n)], "video_ids": ["a"] * n}
    return pickle.dumps({"train": {"keypoints": [np.zeros((143, 3), np.float32)] * n, **columns}})


def nested_facts() -> bytes:
    return pickle.dumps({"keypoints": [], "image_paths": [], "dataset_info": nested_lists()})


def large_value() -> bytes:
    """A text of 600 MiB in as many members, of which one is packed."""
    before = b"\x80\x04\x8e" + struct.pack("<Q", 600 * MIB)
    return gzip.compress(before) + gzip.compress(bytes(MIB), 1) * 600 + gzip.compress(b".")


def no_people() -> bytes:
    """A .pose file of four billion frames in which there is nobody."""
    from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

    component = PoseHeaderComponent("A", ["a"], [], [], "XYC")
    file = io.BytesIO()
    PoseHeader(0.2, PoseHeaderDimensions(8, 6, 0), [component]).write(file)
    return file.getvalue() + struct.pack("<fIH", 25.0, 2**32 - 1, 0)


def object_array() -> bytes:
    """An npz file whose ids are a pickle of six million empty dicts."""
    file = io.BytesIO(npz(("keypoints", (1, 143, 3), "<f4", 0), ("image_paths", (1,), "<U1", 0)))
    head = str({"descr": "|O", "fortran_order": False, "shape": (1,)}).ljust(117) + "\n"
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
        archive.writestr("video_ids.npy", start + b"\x80\x02" + b"}" * 6 * 10**6 + b".")
    return file.getvalue()


def many_runs() -> bytes:
    """An npz file of a few kilobytes in which each of two million rows is of another video."""
    n = 2 * MIB
    file = io.BytesIO(npz(("keypoints", (n, 1), "<f4", 0), ("image_paths", (n,), "<U1", 0)))
    head = str({"descr": "<U1", "fortran_order": False, "shape": (n,)}).ljust(117) + "\n"
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()
        archive.writestr("video_ids.npy", start + b"a\0\0\0b\0\0\0" * (n // 2))
    return file.getvalue()


LARGE = "would take .* MiB of memory"
INPUTS: list[tuple[str, str, str, Callable[[], bytes]]] = [
    ("pickle", "same frame", LARGE, same_frame),
    ("pickle", "bomb", "holds a list", lambda: pickle.dumps(nested_lists())),
    ("pickle", "bomb in facts", "too deep or too large", nested_facts),
    (
        "pickle",
        "deep",
        "holds a list",
        lambda: b"\x80\x04" + b"]" * 9**5 + b"a" * (9**5 - 1) + b".",
    ),
    ("pickle", "colliding keys", "integers of more than 64 bits", lambda: colliding_keys(10**5)),
    ("pickle", "dicts", LARGE, lambda: b"\x80\x02" + b"}" * 8 * MIB + b"."),
    ("pickle", "tuples", LARGE, lambda: b"\x80\x02N" + b"\x85" * 8 * MIB + b"."),
    ("npz", "dicts", LARGE, object_array),
    ("npz", "runs", LARGE, many_runs),
    ("pickle", "long text", "cannot be read as a pickle", lambda: b"I" + b"9" * 10**5 + b"\n."),
    (
        "slt",
        "bomb",
        "a list, not a dict",
        lambda: gzip.compress(pickle.dumps(nested_lists())),
    ),
    ("slt", "one large value", LARGE, large_value),
    ("slt", "lists", LARGE, lambda: gzip.compress(b"\x80\x02" + b"]" * 4 * MIB + b".", 1)),
    ("embeddings", "zeros", LARGE, lambda: npz(("embedding", (512, 2**17), "<f4", 0))),
    ("pose", "nobody", LARGE, no_people),
    ("npz", "one row", "rows of", lambda: npz(("keypoints", (1, 300 * MIB), "|u1", 0), *ids(1))),
    ("npz", "zeros", LARGE, lambda: npz(("keypoints", (2**18, 143, 3), "<f4", 0), *ids(2**18))),
    ("npz", "claims", "but holds", lambda: npz(("keypoints", (2**40, 143, 3), "<f4", 1), *ids(1))),
    ("json", "long integer", "digits", lambda: b'{"A": {"face_features": [' + b"9" * 70_000),
    ("json", "long key", "it is 1", lambda: b'{"' + b"a" * 10**6 + b'": 1}'),
    ("json", "lists", LARGE, lambda: b'{"A": {"x": [' + b"[]," * LARGE_LIST + b"1]}}"),
    ("json", "deep", "deep", lambda: b'{"Ada":' * 10**5),
    ("lip_config", "merge bomb", "more than 100,000", lambda: yaml_bomb("{<<: [", "]}")),
    ("lip_config", "list bomb", "more than 100,000", lambda: yaml_bomb("[", "]")),
    ("lip_config", "deep", "nested more than 100 deep", lambda: b"[" * 10**5),
    ("hdf5", "unwritten rows", LARGE, lambda: hdf5(unwritten_rows)),
    ("hdf5", "unwritten texts", LARGE, lambda: hdf5(unwritten_texts)),
    ("hdf5", "wide chunk", LARGE, lambda: hdf5(wide_chunk)),
    ("hdf5", "inflated chunk", "becomes more than", lambda: hdf5(inflated_chunk)),
    ("hdf5", "long text", LARGE, lambda: long_text(2**32 - 1)),
    ("hdf5", "longer text", "lacks a text", lambda: long_text(2**20)),
    ("hdf5", "shared text", LARGE, shared_text),
    ("hdf5", "same path", "texts of image_path " + LARGE, same_path),
    ("hdf5", "wide texts", "texts of video_ids " + LARGE, lambda: hdf5(wide_texts)),
    ("hdf5", "small chunks", "row 29999 of rows has an empty", lambda: hdf5(small_chunks)),
    ("splits", "cells", LARGE, lambda: b"video_id,split\n" + b"," * 5 * MIB),
    ("lip_list", "lists", LARGE, lambda: b"[" + b"[]," * 4 * MIB + b"1]"),
    *((name, "deep", "nested too deeply", lambda: b"[" * 10**6) for name in LISTS),
    *((name, "long integer", "digits", lambda: b"[" + b"9" * 10**5 + b"]") for name in LISTS),
]
"""Target, name, what its clear line says, and bytes of each input."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, object]]:
    folder = tmp_path_factory.mktemp("inputs")
    if CORPUS.is_dir():
        shutil.copytree(CORPUS, folder, dirs_exist_ok=True)
    for target, name, _, make in INPUTS:
        (folder / target).mkdir(exist_ok=True)
        (folder / target / name).write_bytes(make())
    command = [sys.executable, "-m", "benchmarks.fuzz.replay", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(list(folder.glob("*/*"))), done.stderr[-2000:]
    return {(outcome["target"], outcome["file"]): outcome for outcome in found}


def test_no_file_breaks_a_rule(outcomes: dict[tuple[str, str], dict[str, object]]) -> None:
    assert {key: found["wrong"] for key, found in outcomes.items() if found["wrong"]} == {}


@pytest.mark.parametrize(("target", "name", "says"), [row[:3] for row in INPUTS])
def test_what_is_refused_says_why(
    outcomes: dict[tuple[str, str], dict[str, object]], target: str, name: str, says: str
) -> None:
    said = str(outcomes[target, name]["said"])
    assert re.search(says, said), said[:300]


def small_store(path: Path) -> Path:
    spec = FeatureSpec("points", (2, 3), ("point", "space"), chunk_rows=4)
    with kpstore.create(path).transaction("first") as tx:
        tx.add_videos([VideoRecord("a", "train", ("a/0.png", "a/1.png"), 25.0, 8, 6)])
        tx.add_feature(spec, {"extractor": "sample"})
        tx.write("points", "a", np.ones((2, 2, 3), np.float32))
    return path


def in_icechunk(change: Callable[[zarr.Group], object]) -> Callable[[Path], Path]:
    """Return what makes a store that other software has changed."""

    def make(folder: Path) -> Path:
        path = small_store(folder / "s.kps")
        storage = icechunk.local_filesystem_storage(str(path))
        session = icechunk.Repository.open(storage).writable_session("main")
        change(zarr.open_group(session.store, mode="r+"))
        session.commit("hostile")
        return path

    return make


def longer(names: str, n_rows: int) -> Callable[[zarr.Group], None]:
    def change(group: zarr.Group) -> None:
        for name in names.split():
            group[name].resize((n_rows, *group[name].shape[1:]))

    return change


def wide_chunks(group: zarr.Group) -> None:
    del group["points"]
    group.create_array("points", shape=(2, 2, 3), chunks=(10**9, 2, 3), dtype="f4")


def packed_paths(group: zarr.Group) -> None:
    """Paths of 300 MiB that are a file of kilobytes."""
    group["image_path"].resize((2100,))
    group["image_path"][:] = np.array(["x" * 150_000] * 2100, dtype=object)


def unwritten_records(folder: Path) -> Path:
    path = small_store(folder / "s.h5")
    with h5py.File(path, "r+") as file:
        del file["_kpstore/tree"]
        file.create_dataset("_kpstore/tree", (10**11,), "u1", chunks=(2**20,))
    return path


VIDEO_ARRAYS = "video_id split n_frames fps width height points_state points_failure"
STORES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "videos": (in_icechunk(longer(VIDEO_ARRAYS, 10**7)), "its list of videos " + LARGE),
    "rows": (in_icechunk(longer("points", 10**15)), "chunks and take .* MiB of memory, 256 are"),
    "chunks": (in_icechunk(wide_chunks), "rows in a chunk take 22,888 MiB"),
    "paths": (in_icechunk(packed_paths), "it becomes 300 MiB"),
    "one column": (in_icechunk(longer("width", 10**11)), "has 100000000000 rows"),
    "records": (unwritten_records, "which are not bytes there"),
}


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, int]]:
    """Bytes of each store, what reading it said, and how much memory that took, in one process."""
    folder = tmp_path_factory.mktemp("stores")
    paths = [make(_new(folder / kind)) for kind, (make, _) in STORES.items()]
    code = "import sys; from tests.test_hostile_files import peaks; peaks(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, [small_store(folder / "warm.kps"), *paths])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert len(found) == 1 + len(paths), done.stderr[-2000:]
    sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in paths]
    return {
        kind: (size, told, taken)
        for kind, size, (told, taken) in zip(STORES, sizes, found[1:], strict=True)
    }


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", STORES)
def test_a_strangers_store_that_claims_more_than_it_holds_is_refused_in_bounded_memory(
    readings: dict[str, tuple[int, str, int]], kind: str
) -> None:
    size, told, taken = readings[kind]
    assert re.search(STORES[kind][1], told), told
    assert "internal error" not in told
    assert taken <= 10 * size + 256 * MIB


def peaks(paths: list[str]) -> None:
    """Read stores by commands; print on stderr what each said, and how much memory it took."""
    for path in paths:
        before = forget_peak()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            for command in ("info", "verify", "stats"):
                run([command, path])
            run(["export", "hdf5", path, f"{path}.out.h5"])
        print(json.dumps([said.getvalue(), peak_bytes() - before]), file=sys.stderr)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_picture_that_unpacks_to_much_more_than_its_file_is_a_failed_frame(
    tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"a{suffix}"
    # Packed well and soon: by default WebP takes seconds
    packed: dict[str, dict[str, Any]] = {
        ".tif": {"compression": "tiff_deflate"},
        ".webp": {"lossless": True, "quality": 0, "method": 0},
    }
    Image.new("L", (9000, 9000)).save(file, **packed.get(suffix, {}))
    before = forget_peak()
    found = read_image(file)
    assert isinstance(found, FrameError)
    assert re.search("pixels " + LARGE, found.reason)
    assert peak_bytes() - before < 256 * MIB


@pytest.mark.parametrize("turned", [1, 6])
def test_a_large_picture_is_in_memory_once(tmp_path: Path, turned: int) -> None:
    file, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = turned
    Image.new("RGB", (6000, 6000), (1, 2, 3)).save(file, exif=exif)
    read_image(file)
    before = forget_peak()
    found = read_image(file)
    assert not isinstance(found, FrameError)
    assert found.shape == (6000, 6000, 3)
    assert (found == (1, 2, 3)).all()
    assert peak_bytes() - before < 10 * file.stat().st_size + 256 * MIB


def test_a_blurred_picture_of_fifty_megapixels_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.new("RGB", (8688, 5792)).save(file, quality=75)
    assert not isinstance(read_image(file), FrameError)


def test_a_checkpoint_that_unpacks_to_much_more_than_its_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("weights/data.pkl", bytes(300 * MIB))
    with pytest.raises(InvalidError, match="what is packed in it " + LARGE):
        load_tensors(file)


@pytest.mark.parametrize(("format_name", "make"), [("npz", packed_npz), ("hdf5", packed_hdf5)])
def test_what_is_packed_very_well_is_read_when_the_user_allows_it(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    format_name: str,
    make: Callable[[], bytes],
) -> None:
    file, store = tmp_path / "x", tmp_path / "o.h5"
    file.write_bytes(make())
    command = ["import", format_name, str(file), str(store)]
    assert run(command) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    way_out = re.search(r"--max-memory \dGiB", said)
    assert way_out, said
    assert not store.exists()
    assert run([*command, *way_out[0].split()]) == 0
    assert kpstore.open(store).index.total_frames == PACKED_FRAMES


def a_picture(folder: Path) -> Callable[[], object]:
    file = folder / "a.png"
    Image.new("L", (9000, 8000)).save(file)

    def read() -> object:
        found = read_image(file)
        if isinstance(found, FrameError):
            raise InvalidError(found.reason)
        return found

    return read


def a_list(folder: Path) -> Callable[[], object]:
    file = folder / "a.json"
    file.write_bytes(b"[" + b"[]," * LARGE_LIST + b"1]")
    return lambda: read_json(file)


def a_store_of_large_chunks(folder: Path) -> Callable[[], object]:
    store = kpstore.create(folder / "s.kps")
    with store.transaction("as earlier commits made them") as tx:
        tx.add_videos([record("a", 2)])
        tx.add_feature(FeatureSpec("wide", (2**20,), ("x",), chunk_rows=128), {"extractor": "a"})
    return lambda: kpstore.open(folder / "s.kps")["wide"][:2, :3]


@pytest.mark.parametrize("make", [a_picture, a_list, a_store_of_large_chunks])
def test_what_no_option_allows_is_read_when_the_environment_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Callable[[], object]]
) -> None:
    monkeypatch.setenv("KPSTORE_MAX_MEMORY", "1GiB")
    read = make(tmp_path)
    monkeypatch.delenv("KPSTORE_MAX_MEMORY")
    with pytest.raises(InvalidError, match="if you trust") as refused:
        read()
    way_out = re.search(r"set (KPSTORE_MAX_MEMORY)=(\dGiB)$", str(refused.value))
    assert way_out, refused.value
    monkeypatch.setenv(way_out[1], "300MiB")
    with pytest.raises(InvalidError, match="memory"):
        read()
    monkeypatch.setenv(way_out[1], way_out[2])
    read()


def test_an_environment_that_allows_no_size_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPSTORE_MAX_MEMORY", "much")
    with pytest.raises(InvalidError, match=r"^KPSTORE_MAX_MEMORY: 'much' is no size"):
        MemoryBudget("a file", 0, fixed=True).check(2**30, "a picture")
    # Before anything is read: each video that is refused for it would count as damaged.
    with pytest.raises(InvalidError, match=r"^KPSTORE_MAX_MEMORY: 'much' is no size"):
        plan_ingest(
            FakeSource({"v": 1}),
            memory_location(),
            FakeExtractor(),
            Options(ignore_problems=True),
        )
    monkeypatch.setenv("KPSTORE_MAX_MEMORY", "9" * 400)
    MemoryBudget("a file", 0, fixed=True).check(2**60, "a picture")


@pytest.mark.parametrize("format_name", ["pickle", "npz", "pose", "embeddings", "slt"])
def test_a_pipe_in_a_folder_is_never_opened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], format_name: str
) -> None:
    names = ("temp_split_0_gpu0.pkl", "train_keypoints.npz", "a.pose", "a_embedding.npz", "x.train")
    for name in names:
        os.mkfifo(tmp_path / name)
    assert run(["import", format_name, str(tmp_path), str(tmp_path.parent / "o.h5")]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("kind", "says"), [("fifo", "is a pipe"), ("device", "is a device")])
@pytest.mark.parametrize(
    "command",
    [
        "import pickle NAME STORE.h5",
        "import json NAME STORE.h5",
        "splits set STORE.kps NAME",
        "ingest videos FOLDER new.kps --workers 0",
    ],
)
def test_what_is_no_file_is_never_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    says: str,
    command: str,
) -> None:
    """Opening a FIFO waits for a writer that never comes; a device may never end."""
    monkeypatch.chdir(tmp_path)
    kpstore.create("STORE.kps")
    Path("FOLDER").mkdir()
    name = Path("FOLDER") / "x.mp4"
    if kind == "fifo":
        os.mkfifo(name)
    else:
        name.symlink_to("/dev/zero")
    assert run(command.replace("NAME", str(name)).split()) == 2
    assert says in capfd.readouterr().err
