"""Hypothesis profiles, and factories of small stores on every backend."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import kpstore
from kpstore import plugins
from kpstore.backends.memory import MemoryBackend

_QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
settings.register_profile("fast", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile("thorough", max_examples=500, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("KPSTORE_HYPOTHESIS", "fast"))

if "memory" not in plugins.names("kpstore.backends"):
    plugins.register("kpstore.backends", "memory", MemoryBackend)

_numbers = itertools.count()

NewStore = Callable[[], kpstore.Store]


def memory_location() -> str:
    """An address that no other test of this process has."""
    return f"memory://test-{next(_numbers)}"


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
    return {"memory": memory_location(), "icechunk": str(folder / "s.kps"), "hdf5": str(folder / "s.h5")}[backend]
