"""Files that somebody writes, replaces or removes while they are imported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from kpstore import plugins
from kpstore.errors import InvalidError, KpstoreError
from kpstore.interop.import_writer import ImportWriter
from kpstore.interop.transfer import import_file
from tests.interop import test_json, test_pickle
from tests.interop.test_documents import MADE


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name(".other"))
    path.with_name(".other").replace(path)


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Return a function that has something happen when the first video has been read."""

    def at_first_video(happens: Callable[[], None]) -> None:
        add, done = ImportWriter.add, []

        def changed_add(self: ImportWriter, video: Any) -> None:
            if not done:
                done.append(True)
                happens()
            add(self, video)

        monkeypatch.setattr(ImportWriter, "add", changed_add)

    return at_first_video


def pickled(folder: Path) -> Path:
    return test_pickle.write(folder / "x.pkl", test_pickle.raw_of(train={"a": 2, "b": 3}))


def persons(folder: Path) -> Path:
    people = {name: test_json.person(number, 2) for number, name in enumerate("abc")}
    return test_json.write(folder / "x.json", people)


@pytest.mark.parametrize("make", [pickled, persons, MADE["slt"]])
@pytest.mark.parametrize("change", [truncate, replace])
def test_a_file_that_changes_while_it_is_read_is_not_stored(
    tmp_path: Path, changing: Any, make: Callable[[Path], Path], change: Callable[[Path], None]
) -> None:
    source = make(tmp_path)
    changing(lambda: change(source))
    with pytest.raises(InvalidError, match=f"^{source} changed while it was read, .*complete$"):
        import_file(source, tmp_path / "s.kps")
    assert not (tmp_path / "s.kps").exists()


@pytest.mark.parametrize("name", plugins.names("kpstore.formats"))
@pytest.mark.parametrize("change", [truncate, replace, Path.unlink])
def test_whatever_happens_to_its_files_an_import_is_right_or_refused_in_one_line(
    tmp_path: Path, changing: Any, name: str, change: Callable[[Path], None]
) -> None:
    (tmp_path / "given").mkdir()
    source = MADE[name](tmp_path / "given")
    import_file(source, tmp_path / "right.kps", name)
    files = [p for p in (tmp_path / "given").rglob("*") if p.is_file() and p.name[0] != "."]
    changing(lambda: [change(file) for file in files])
    said = ""
    try:
        import_file(source, tmp_path / "s.kps", name)
    except (KpstoreError, OSError) as error:
        said = str(error)
    assert "\n" not in said
    assert (tmp_path / "s.kps").exists() == (not said)
    if not said:
        right, found = kpstore.open(tmp_path / "right.kps"), kpstore.open(tmp_path / "s.kps")
        assert found.index.ids.tolist() == right.index.ids.tolist()
        for feature in right.features:
            np.testing.assert_array_equal(found[feature][:], right[feature][:])
