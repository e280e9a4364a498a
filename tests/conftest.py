"""Hypothesis profiles, and factories of small stores on every backend."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import kpstore
from tests.object_storage import KEYS, Bucket, new_bucket, served

# Two test processes share the cores already, and threads that wait for each other by spinning are
# slow on a busy machine. Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile(
    "fast", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_QUIET
)
settings.register_profile("thorough", max_examples=500, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("KPSTORE_HYPOTHESIS", "fast"))
COSTLY = settings(max_examples=settings.default.max_examples * 3 // 8)
"""For tests of which each example makes a store or a file."""

QUICK = (
    "contract",
    "schema",
    "store",
    "inspect",
    "views",
    "render",
    "cli/test_main",
    "cli/test_ingest",
    "test_layers",
)
"""What ``pytest --quick`` (``make quick``) runs: the folders and files where most mistakes show.

Of these it leaves out tests that are marked as slow; and those that run on every backend run on the
memory backend alone, for the contract holds for all of them.
"""

_numbers = itertools.count()

NewStore = Callable[[], kpstore.Store]


def memory_location() -> str:
    """An address that no other test of this process has."""
    return f"memory://test-{next(_numbers)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="run the part of the suite that takes less than a minute",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that a quick run skips; importing them takes as long as many tests."""
    place = collection_path.relative_to(Path(__file__).parent).as_posix()
    return (
        True
        if config.getoption("--quick") and place.endswith(".py") and not place.startswith(QUICK)
        else None
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that a quick run does without."""
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=[item for item in items if not _is_quick(item)])
        items[:] = [item for item in items if _is_quick(item)]


def _is_quick(item: pytest.Item) -> bool:
    if item.get_closest_marker("slow") is not None:
        return False
    call = getattr(item, "callspec", None)
    parameters = () if call is None else call.params.values()
    return "contract" in item.path.parts or not any(
        value in ("icechunk", "hdf5") for value in map(str, parameters)
    )


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over all that was imported: it takes a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests cache out of the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KPSTORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def memory_store() -> kpstore.Store:
    return kpstore.create(memory_location())


@pytest.fixture
def disk_store(tmp_path: Path) -> kpstore.Store:
    return kpstore.create(tmp_path / "disk.kps")


@pytest.fixture(params=["memory", "icechunk", "hdf5"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> kpstore.Store:
    """An empty store, on each backend in turn."""
    return kpstore.create(location_of(request.param, tmp_path))


def location_of(backend: str, folder: Path) -> str:
    """Return a place for a store that no other test uses."""
    return {
        "memory": memory_location(),
        "icechunk": str(folder / "s.kps"),
        "hdf5": str(folder / "s.h5"),
    }[backend]


@pytest.fixture(scope="session")
def object_server() -> Iterator[str]:
    """The endpoint of a server of S3, one for each test process."""
    with served() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(object_server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that nobody else uses, with its keys in the environment."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return new_bucket(object_server)
