"""Decoded arrays on disk: built once even if many ask, whole or not at all, within a limit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta
from kpstore.backends.chunks import NearChunks
from kpstore.backends.locks import is_held, waiting_lock
from kpstore.errors import InvalidError
from kpstore.store.cache import DecodedCache, default_folder

META = ArrayMeta((100, 4), "float32", 16, ("frame", "x"), codec="lz4")
VALUES = np.arange(400, dtype=np.float32).reshape(100, 4)
N_BYTES = 1600


class FakeChunks(NearChunks):
    """Chunks of ``VALUES`` that note in a file that they were asked for."""

    mapped = None
    how = "by a fake"

    def __init__(self, log: Path | None = None, *, pause: float = 0.0, scale: float = 1.0) -> None:
        self._log, self._pause, self._scale = log, pause, scale

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{number}\n")
        time.sleep(self._pause)
        part = VALUES[number * 16 : (number + 1) * 16] * self._scale
        out[: len(part)] = part


def build(
    cache: DecodedCache, name: str = "a", snapshot: str = "S1", **how: Any
) -> NDArray[Any] | None:
    built = cache.build(snapshot, name, META, FakeChunks(**how))
    return None if built is None else built.values


def test_what_was_built_is_found_again(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path)
    assert cache.open("S1", "a", META) is None
    built = build(cache)
    assert built is not None
    np.testing.assert_array_equal(built, VALUES)
    assert not built.flags.writeable
    again = DecodedCache(tmp_path).open("S1", "a", META)
    assert again is not None
    np.testing.assert_array_equal(again.values, VALUES)
    assert cache.open("S2", "a", META) is None
    assert [(e.snapshot, e.name, e.size_bytes >= N_BYTES) for e in cache.entries()] == [
        ("S1", "a", True)
    ]


BUILDER = """
import sys
from pathlib import Path
from tests.store.test_cache import META, VALUES, FakeChunks
from kpstore.store.cache import DecodedCache

folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
built = DecodedCache(folder).build("S1", "a", META, FakeChunks(log, pause=pause))
assert built is not None and (built.values == VALUES).all()
print("equal", flush=True)
"""


def start_builder(folder: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), str(pause)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    builders = [start_builder(folder, log, 0.01) for _ in range(5)]
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("go\n")
        builder.stdin.flush()
    for builder in builders:
        assert builder.communicate()[0] == "equal\n"
    assert log.read_text().split() == [str(number) for number in range(7)]


def test_a_killed_builder_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    builder = start_builder(folder, log, 1000.0)
    assert builder.stdin is not None
    builder.stdin.write("go\n")
    builder.stdin.flush()
    while not log.exists():
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate()
    left = list(folder.glob("*/.*"))
    assert len(left) == 1
    cache = DecodedCache(folder)
    assert cache.open("S1", "a", META) is None
    assert cache.entries() == []
    np.testing.assert_array_equal(build(cache), VALUES)
    assert not list(folder.glob("*/.*"))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    class Torn(FakeChunks):
        def read_into(self, number: int, out: NDArray[Any]) -> None:
            if number == 3:
                raise ValueError("torn")
            super().read_into(number, out)

    with pytest.raises(ValueError, match="torn"):
        DecodedCache(tmp_path).build("S1", "a", META, Torn())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_what_was_opened_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, limit_bytes=2 * N_BYTES + 600)
    for i, name in enumerate(("a", "b")):
        assert build(cache, name) is not None
        os.utime(tmp_path / "S1" / f"{name}.kpstore.npy", (i, i))
    mapped = cache.open("S1", "a", META)
    assert [entry.name for entry in cache.entries()] == ["b", "a"]
    assert build(cache, "c") is not None
    assert [entry.name for entry in cache.entries()] == ["a", "c"]
    os.utime(tmp_path / "S1" / "a.kpstore.npy", (0, 0))
    assert build(cache, "d") is not None
    assert mapped is not None
    np.testing.assert_array_equal(mapped.values, VALUES)  # removed, and still readable


def test_what_is_larger_than_the_limit_is_not_cached(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path, limit_bytes=3000)
    assert build(cache) is not None
    big = ArrayMeta((1000, 4), "float32", 16, ("frame", "x"), codec="lz4")
    assert cache.build("S1", "big", big, FakeChunks()) is None
    assert [entry.name for entry in cache.entries()] == ["a"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY torn", b"x" * 100])
def test_a_file_that_is_not_whole_is_built_again(tmp_path: Path, content: bytes) -> None:
    cache = DecodedCache(tmp_path)
    build(cache)
    (tmp_path / "S1" / "a.kpstore.npy").write_bytes(content)
    assert cache.open("S1", "a", META) is None
    np.testing.assert_array_equal(build(cache), VALUES)


def test_an_array_of_another_shape_or_type_is_not_taken(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path)
    build(cache)
    for other in (
        ArrayMeta((99, 4), "float32", 16, ("frame", "x")),
        ArrayMeta((100, 4), "int32", 16, ("frame", "x")),
    ):
        assert cache.open("S1", "a", other) is None
    cut = (tmp_path / "S1" / "a.kpstore.npy").read_bytes()[:-16]
    (tmp_path / "S1" / "a.kpstore.npy").write_bytes(cut)
    assert cache.open("S1", "a", META) is None


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert build(DecodedCache(tmp_path / "file" / "cache")) is None
    assert "'a' is read without a cache" in caplog.text


def test_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("KPSTORE_CACHE_GB", "0.5")
    assert default_folder() == tmp_path / "here"
    assert DecodedCache().limit_bytes == 500_000_000
    for word in ("inf", "nan"):
        monkeypatch.setenv("KPSTORE_CACHE_GB", word)
        with pytest.raises(InvalidError, match=f"KPSTORE_CACHE_GB='{word}' is not a number"):
            DecodedCache().limit_bytes  # noqa: B018
    monkeypatch.setenv("KPSTORE_CACHE_GB", "plenty")
    with pytest.raises(
        InvalidError, match="KPSTORE_CACHE_GB='plenty' is not a number of gigabytes"
    ):
        DecodedCache(tmp_path).build("S1", "a", META, FakeChunks())
    monkeypatch.delenv("KPSTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "kpstore"


@pytest.mark.parametrize(
    ("snapshot", "name"), [("..", "a"), ("S1", "../a"), ("S1", "a/b"), ("", "a"), ("S1", ".")]
)
def test_names_stay_within_the_folder(tmp_path: Path, snapshot: str, name: str) -> None:
    with pytest.raises(InvalidError, match="the cache takes letters, digits and underscores"):
        DecodedCache(tmp_path).build(snapshot, name, META, FakeChunks())


def test_clearing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "features.npy", VALUES)
    build(DecodedCache(tmp_path))
    assert DecodedCache(tmp_path).clear() >= N_BYTES
    assert (tmp_path / "mine" / "features.npy").exists()
    assert not (tmp_path / "S1").exists()


def test_clearing_takes_what_a_killed_builder_left(tmp_path: Path) -> None:
    (tmp_path / "S1").mkdir()
    (tmp_path / "S1" / ".torn.part").write_bytes(b"x" * 100)
    assert DecodedCache(tmp_path).clear() == 100
    assert not list((tmp_path / "S1").iterdir())
    (tmp_path / "S1" / ".torn.part").write_bytes(b"x" * 100)
    with waiting_lock(tmp_path / ".lock"):
        assert DecodedCache(tmp_path).clear() == 0, "somebody decodes now, and it may be theirs"


def test_nothing_is_written_through_a_link(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "S1").symlink_to(tmp_path / "elsewhere")
    assert build(DecodedCache(tmp_path / "cache")) is None
    assert "is a link" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())


def test_building_while_another_clears(tmp_path: Path) -> None:
    """Clearing removes empty folders, also the one that was made a moment ago."""
    cache, done = DecodedCache(tmp_path), threading.Event()

    def clear() -> None:
        while not done.is_set():
            cache.clear()
            with suppress(OSError):
                (tmp_path / "S1").rmdir()

    clearer = threading.Thread(target=clear)
    clearer.start()
    try:
        for _ in range(100):
            DecodedCache(tmp_path).build("S1", "a", META, FakeChunks())
    finally:
        done.set()
        clearer.join()
    assert build(cache) is not None


def test_a_fork_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A loader's worker that is forked while an array is decoded has the lock's file open, too."""
    with waiting_lock(tmp_path / ".lock"):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        assert not is_held(tmp_path / ".lock")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_clearing_takes_what_is_asked(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path)
    for snapshot in ("S1", "S2"):
        mapped = build(cache, snapshot=snapshot)
    assert N_BYTES <= cache.clear(["S1", "S3"]) < 2 * N_BYTES
    assert [entry.snapshot for entry in cache.entries()] == ["S2"]
    assert cache.clear() >= N_BYTES
    assert cache.entries() == []
    np.testing.assert_array_equal(mapped, VALUES)
