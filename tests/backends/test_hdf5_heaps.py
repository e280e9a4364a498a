"""What is looked at before HDF5's library may: free space that leads back to itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from kpstore.backends import hdf5_heaps
from kpstore.backends.hdf5_heaps import check_root, open_checked
from kpstore.backends.hdf5_items import datasets_of, item_of, look_through, remove_item
from kpstore.errors import CorruptError, InvalidError

CIRCLE = (Path(__file__).parents[1] / "corpus/hdf5/free-space-in-a-circle").read_bytes()
REFUSED = OSError, RuntimeError, ValueError, KeyError, TypeError, CorruptError, InvalidError


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("reserved", [b"\0\0\0", b"\1\2\3"])
def test_a_circle_is_refused(tmp_path: Path, userblock: int, reserved: bytes) -> None:
    content = CIRCLE.replace(b"HEAP\0\0\0\0", b"HEAP\0" + reserved)
    path = written(tmp_path / "x.h5", bytes(userblock) + content)
    with pytest.raises(CorruptError, match="leads back to itself"):
        check_root(path)


def with_circles(path: Path, address: int = 8, length: int = 8) -> Path:
    """Let the free space of all heaps of a file lead back to itself.

    Addresses and lengths have so many bytes.
    """
    content, heap = bytearray(path.read_bytes()), -1
    base = content.index(b"\x89HDF")
    while (heap := content.find(b"HEAP\0", heap + 1)) >= 0:
        free, at = heap + 8 + length, heap + 8 + 2 * length
        size = int.from_bytes(content[heap + 8 : free], "little")
        data = base + int.from_bytes(content[at : at + address], "little")
        n_bytes = 2 * length
        part = (size - n_bytes).to_bytes(length, "little")
        content[free:at] = part
        content[data + size - n_bytes : data + size] = part + n_bytes.to_bytes(length, "little")
    return written(path, bytes(content))


def deep(file: h5py.File) -> None:
    file.create_group("a", track_order=False)["b/c"] = np.zeros(3)


def among_many(file: h5py.File) -> None:
    for number in range(30):
        file.create_group(f"g{number}", track_order=number != 20)


def after_many_attributes(file: h5py.File) -> None:
    """Let the message that names the heap lie in a continued header."""
    deep(file)
    for number in range(40):
        file["a"].attrs[f"x{number}"] = np.zeros(20)


def of_external_files(file: h5py.File) -> None:
    file.create_dataset("a", (3,), "f4", external=[("a-file-elsewhere.raw", 0, 12)])


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("make", [deep, among_many, after_many_attributes, of_external_files])
def test_a_circle_in_an_object_is_refused_before_it_is_opened(
    tmp_path: Path,
    make: Callable[[h5py.File], None],
    track_order: bool,
    userblock: int,
    libver: str,
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(
        path, "w", track_order=track_order, userblock_size=userblock, libver=libver
    ) as file:
        make(file)
    if b"HEAP\0" not in path.read_bytes():
        assert libver == "latest"
        return
    with open_checked(path) as file:
        assert len(list(datasets_of(file))) <= 1
    with_circles(path)
    if track_order or libver == "latest":  # the root has no heap
        with open_checked(path) as file, pytest.raises(CorruptError, match="leads back to itself"):
            list(datasets_of(file))
        with open_checked(path) as file, pytest.raises(CorruptError, match="leads back to itself"):
            item_of(file, "a" if "a" in file else "g20")
    with pytest.raises(CorruptError), open_checked(path) as file:
        list(datasets_of(file))


@pytest.mark.parametrize(("address", "length"), [(8, 4), (4, 8), (4, 4), (2, 8), (8, 2)])
def test_addresses_and_lengths_may_have_other_sizes(
    tmp_path: Path, address: int, length: int
) -> None:
    path, how = tmp_path / "x.h5", h5py.h5p.create(h5py.h5p.FILE_CREATE)
    how.set_sizes(address, length)
    old = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    old.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST)
    with h5py.File(h5py.h5f.create(str(path).encode(), fcpl=how, fapl=old)) as file:
        file.create_group("a").create_group("b")
    with open_checked(path) as file:
        assert list(item_of(file, "a")) == ["b"]
    with pytest.raises(CorruptError, match="leads back to itself"):
        open_checked(with_circles(path, address, length))


def test_sizes_that_are_not_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        deep(file)
    content = bytearray(path.read_bytes())
    content[13] = 16
    with pytest.raises(CorruptError, match="addresses of 16 bytes"):
        open_checked(written(path, bytes(content)))


def test_heaps_are_followed_once_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", track_order=True) as file:
        for number in range(5):
            file.create_group(f"g{number}", track_order=False)["a"] = np.zeros(2)
    monkeypatch.setattr(hdf5_heaps, "_MOST_PARTS", 5)
    with open_checked(path) as file:
        assert len(list(datasets_of(file))) == 5
    monkeypatch.setattr(hdf5_heaps, "_MOST_PARTS", 4)
    for mode in ("r", "r+"):
        with h5py.File(path, mode) as file, pytest.raises(CorruptError, match="in over 4 parts"):
            list(datasets_of(file))


def test_a_name_that_is_a_path_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["xxy"] = np.zeros(3)
        file["x"] = h5py.ExternalLink("secret.h5", "/")
    path.write_bytes(path.read_bytes().replace(b"xxy", b"x/y"))
    with open_checked(path) as file:
        assert "x/y" in list(file)
        with pytest.raises(InvalidError, match="the name 'x/y', which HDF5 would follow as a path"):
            list(datasets_of(file))
        with pytest.raises(InvalidError, match="a link into another file"):
            item_of(file, "x/y")


def test_a_header_without_an_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        after_many_attributes(file)
    monkeypatch.setattr(hdf5_heaps, "_MOST_BYTES", 5000)
    with open_checked(path) as file, pytest.raises(CorruptError, match="over 5,000 bytes"):
        item_of(file, "a")
    with h5py.File(path, "r+") as file:  # what is read may not be what was written
        item_of(file, "a")


@pytest.mark.parametrize("seed", range(40))
def test_files_whose_groups_were_deleted_are_sound(tmp_path: Path, seed: int) -> None:
    """What is left of a heap lies in the file, and may be anything."""
    rng, path = np.random.default_rng(seed), tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        for turn in range(30):
            group = f"g{rng.integers(4)}"
            if rng.random() < 0.3 and group in file:
                del file[group]
            else:
                name = "d" * int(rng.integers(1, 60)) + str(turn)
                file[f"{group}/{name}"] = np.zeros(int(rng.integers(70)))
            if rng.random() < 0.3:
                file.flush()
        file["other"] = np.frombuffer(CIRCLE, np.uint8)
    with open_checked(path) as file:
        list(datasets_of(file))


def test_names_that_are_not_utf8_are_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.zeros(3)
        group = h5py.Group(h5py.h5g.create(file.id, b"a\xff"))
        group["y"] = np.zeros(3)
        assert sorted(name for name, _ in datasets_of(file)) == ["a\\xff/y", "x"]


def test_what_is_removed_is_looked_at(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", track_order=True) as file:
        deep(file)
    with_circles(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        with pytest.raises(CorruptError):
            remove_item(file, "a")
        with pytest.raises(CorruptError):
            look_through(file["/"])


def visit(path: Path) -> None:
    with contextlib.suppress(*REFUSED), open_checked(path) as file:
        list(datasets_of(file))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_any_bytes_are_left_to_the_library(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["a/b"] = np.zeros(3)
    content = path.read_bytes()
    for stop in range(0, len(content), 7):
        visit(written(path, content[:stop]))
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=3).tolist():
            changed[place] = int(rng.integers(256))
        visit(written(path, bytes(changed)))
    check_root(tmp_path / "no")
    check_root(tmp_path)
