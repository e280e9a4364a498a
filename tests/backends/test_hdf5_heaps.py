"""What is looked at before HDF5's library may: free space that leads back to itself."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from kpstore.backends.hdf5_heaps import check_heaps, open_checked
from kpstore.errors import CorruptError

CIRCLE = (Path(__file__).parents[1] / "corpus/hdf5/free-space-in-a-circle").read_bytes()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("reserved", [b"\0\0\0", b"\1\2\3"])
def test_a_circle_is_refused(tmp_path: Path, userblock: int, reserved: bytes) -> None:
    content = CIRCLE.replace(b"HEAP\0\0\0\0", b"HEAP\0" + reserved)
    path = written(tmp_path / "x.h5", bytes(userblock) + content)
    with pytest.raises(CorruptError, match="leads back to itself"):
        check_heaps(path)


def test_a_circle_in_a_group_below_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["a/b/c"] = np.zeros(3)
    content = bytearray(path.read_bytes())
    heap = content.rindex(b"HEAP")
    data = int.from_bytes(content[heap + 24 : heap + 32], "little")
    content[heap + 16 : heap + 24] = (32).to_bytes(8, "little")
    content[data + 32 : data + 40] = (32).to_bytes(8, "little")
    with pytest.raises(CorruptError):
        check_heaps(written(path, bytes(content)))


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
        file.visititems(lambda name, item: None)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_any_bytes_are_left_to_the_library(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["a/b"] = np.zeros(3)
    content = path.read_bytes()
    for stop in range(0, len(content), 7):
        check_heaps(written(path, content[:stop]))
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=3).tolist():
            changed[place] = int(rng.integers(256))
        try:
            check_heaps(written(path, bytes(changed)))
        except CorruptError as error:
            assert "leads back" in str(error)  # noqa: PT017
    check_heaps(tmp_path / "no")
    check_heaps(tmp_path)


def test_a_group_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["aaa/b"] = np.zeros(3)
        group = file.create_group("zzz")
        address = h5py.h5o.get_info(group.id).addr
    content = bytearray(path.read_bytes())
    heap = content.index(b"HEAP", content.index(b"HEAP") + 1)
    data = int.from_bytes(content[heap + 24 : heap + 32], "little")
    content[heap + 16 : heap + 24] = (32).to_bytes(8, "little")
    content[data + 32 : data + 40] = (32).to_bytes(8, "little")
    link = content.index(address.to_bytes(8, "little"), content.index(b"SNOD"))
    content[link : link + 8] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(CorruptError):
        check_heaps(written(path, bytes(content)))
