"""Stores that somebody moves, removes, replaces or cuts short while they are open."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kpstore
from kpstore.errors import CorruptError, KpstoreError, NotFoundError
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import Compression, FeatureRows
from tests.fakes import FakeExtractor, FakeSource, fake_spec, record
from tests.processes import finish
from tests.store.data import copy_store

N_FRAMES, CHUNK_ROWS = 4096, 1024


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N_FRAMES, 5, 3)).astype(np.float32)


def make(path: Path, seed: int, compression: Compression = "raw") -> kpstore.Store:
    store = kpstore.create(path)
    with store.transaction("fill") as tx:
        tx.add_videos([record("a", N_FRAMES, "train")])
        spec = replace(fake_spec(CHUNK_ROWS), compression=compression)
        tx.add_feature(spec, {"extractor": "fake"})
        detected = np.ones((N_FRAMES, 2), dtype=bool)
        tx.write("points", "a", FeatureRows(values(seed), {"detected": detected}))
    return store.at()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name(f"other{path.suffix}")
    make(other, 9)
    moved(path)
    other.rename(path)


SAID = {moved: "was moved or removed", removed: "was moved or removed", replaced: "another store"}


@pytest.fixture(params=["s.kps", "s.h5"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stores of seed 0, by ending."""
    folder = tmp_path_factory.mktemp("built")
    return {suffix: make(folder / f"s{suffix}", 0).location for suffix in (".kps", ".h5")}


@pytest.fixture
def store(path: Path, built: dict[str, str]) -> kpstore.Store:
    """A store of seed 0 at ``path``."""
    return kpstore.open(copy_store(built[path.suffix], path.parent), mode="a")


@pytest.fixture(params=list(SAID), ids=lambda taken: taken.__name__)
def take(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    found: Callable[[Path], None] = request.param
    return found


def files(path: Path) -> dict[Path, bytes]:
    """All that lies in the folder, but for what was moved away, and work beside an HDF5 file."""
    every = (file for file in path.parent.rglob("*") if file.is_file())
    past = ("elsewhere", ".s.h5.kpstore", ".writing-")
    return {f: f.read_bytes() for f in every if not any(name in str(f) for name in past)}


@pytest.mark.parametrize("compression", ["raw", "zstd"])
def test_whoever_has_it_open_reads_what_it_was_or_is_told(
    path: Path, take: Callable[[Path], None], compression: Compression
) -> None:
    store = make(path, 0, compression)
    frames = store.frames("points")
    np.testing.assert_array_equal(store["points"][:2], values(0)[:2])
    take(path)
    for read in (lambda: store["points"][:], lambda: frames.batch(range(N_FRAMES))["points"]):
        said, found = "", values(0)
        try:
            found = np.asarray(read())
        except NotFoundError as error:
            said = str(error)
        assert (SAID[take] in said) == bool(said)
        assert "\n" not in said
        np.testing.assert_array_equal(found, values(0))


def test_what_asks_for_its_versions_says_what_happened(
    path: Path, store: kpstore.Store, take: Callable[[Path], None]
) -> None:
    take(path)
    before = files(path)
    for ask in (
        store.at,
        store.history,
        lambda: store.tag("mine"),
        lambda: store.rollback(store.snapshot),
        lambda: store.transaction("mine").__enter__(),
    ):
        with pytest.raises(NotFoundError, match=SAID[take]) as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert files(path) == before
    assert path.exists() == (take is replaced)


def test_a_transaction_goes_nowhere_else(
    path: Path, store: kpstore.Store, take: Callable[[Path], None]
) -> None:
    before: dict[Path, bytes] = {}

    def work() -> None:
        with store.transaction("mine") as tx:
            tx.set_splits({"a": "dev"})
            take(path)
            before.update(files(path))

    with pytest.raises(NotFoundError, match=SAID[take]):
        work()
    assert files(path) == before
    if path.exists():
        assert kpstore.open(path).history()[0].message == "fill"


def test_an_ingest_ends_in_one_line(path: Path, take: Callable[[Path], None]) -> None:
    lengths = {f"v{n}": 12 for n in range(9)}
    options = Options(workers=0, task_frames=24, checkpoint_frames=24)

    class TakesAway(FakeExtractor):
        def extract(self, images):  # type: ignore[no-untyped-def]
            if path.exists() and not path.with_name("taken").exists():
                path.with_name("taken").touch()
                take(path)
            return super().extract(images)

    said = f"{SAID[take]}|its store was moved, removed or replaced"
    with pytest.raises(NotFoundError, match=said) as raised:
        run_ingest(FakeSource(lengths), path, TakesAway(chunk_rows=8), options)
    assert "\n" not in str(raised.value)


def test_an_open_store_is_none_the_wiser_about_what_it_may_see(
    path: Path, store: kpstore.Store
) -> None:
    """Commits, a garbage collection and a rename of others' temporary files are no replacement."""
    writer = kpstore.open(path, mode="a")
    for split in ("dev", "test"):
        with writer.transaction(split) as tx:
            tx.set_splits({"a": split})
    assert store.at().history()[0].message == "test"
    first = writer.history()[-1].id
    kept = writer.rollback(first)
    assert store.at().snapshot == first
    writer.rollback(kept)
    assert len(store.at().history()) == 4


CUT = """
import os, sys
from pathlib import Path
import numpy as np
import kpstore
from kpstore.errors import KpstoreError
path, check = Path(sys.argv[1]), sys.argv[2]
store = kpstore.open(path, check=check, cache="off")
store["points"][:1]
for file in [path] if path.is_file() else (path / "chunks").iterdir():
    os.truncate(file, os.stat(file).st_size // 3)
try:
    store["points"][:]
except KpstoreError as error:
    print(error)
"""


@pytest.mark.parametrize(("check", "compression"), [("always", "raw"), ("first", "zstd")])
def test_chunks_that_are_cut_short_are_one_line(
    path: Path, check: str, compression: Compression
) -> None:
    make(path, 0, compression)
    done = finish([sys.executable, "-c", CUT, path, check])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert str(path) in done.stdout


@pytest.mark.usefixtures("store")
def test_a_store_that_was_cut_short_before_is_no_longer_mapped(path: Path) -> None:
    for file in [path] if path.is_file() else (path / "chunks").iterdir():
        os.truncate(file, os.stat(file).st_size // 3)
    with pytest.raises((CorruptError, KpstoreError)):
        kpstore.open(path)["points"][:]


LOADING = """
import os, sys
from pathlib import Path
import kpstore
from kpstore.errors import KpstoreError

def same(sample):
    return sample

def main():
    path = Path(sys.argv[1])
    view = kpstore.open(path, cache="off").frames("points", transform=same)
    batches = iter(kpstore.loader(view, batch_size=8, workers=1, prefetch=1))
    next(batches)
    for file in [path] if path.is_file() else (path / "chunks").iterdir():
        os.truncate(file, 4096)
    try:
        for _ in batches:
            pass
    except KpstoreError as error:
        print(error)

if __name__ == "__main__":
    main()
"""


@pytest.mark.usefixtures("store")
def test_a_loaders_worker_that_the_system_ends_over_a_cut_file_is_one_line(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(LOADING)
    done = finish([sys.executable, tmp_path / "script.py", path])
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "cut short" in done.stdout or "is damaged" in done.stdout
    assert "Traceback" not in done.stderr
