"""A few random corruptions of each backend: read equal, an error in one line, or found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.faults.corruption import run
from benchmarks.faults.damage import damage


@pytest.mark.parametrize("backend", ["icechunk", "hdf5"])
def test_random_damage_is_never_read_as_data(tmp_path: Path, backend: str) -> None:
    """In a process of its own, which HDF5's library may end."""
    assert run(backend, 3, 12, tmp_path) == {
        "attempts": 3,
        "survived": 3,
        "lost_or_wrong": 0,
        "unclear_message": 0,
    }
    journal = (tmp_path / f"corruption-{backend}-12.jsonl").read_text()
    assert run(backend, 3, 12, tmp_path)["attempts"] == 3
    assert (tmp_path / f"corruption-{backend}-12.jsonl").read_text() == journal, (
        "what was tried is not tried again"
    )


def test_damage_is_of_every_kind_and_the_same_for_a_seed(tmp_path: Path) -> None:
    told = []
    for number in range(40):
        folders = [tmp_path / f"{number}-{copy}" for copy in "ab"]
        for folder in folders:
            folder.mkdir()
            for name in "xyz":
                (folder / name).write_bytes(random.Random(name).randbytes(300))
        one, other = (damage(folder, random.Random(number)) for folder in folders)
        assert one == other
        contents = [
            {path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders
        ]
        assert (
            contents[0]
            == contents[1]
            != {name: random.Random(name).randbytes(300) for name in "xyz"}
        )
        told.append(one.split()[0])
    assert set(told) == {"flip", "truncate", "zero", "delete", "swap"}
