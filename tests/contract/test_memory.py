"""The memory backend keeps the contract."""

import pytest

from kpstore.backends.memory import MemoryBackend
from kpstore.testing.backends import BackendContract
from tests.conftest import memory_location


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend(memory_location())
