"""The memory backend keeps the contract."""

import pytest

from kpstore.backends.memory import MemoryBackend
from tests.conftest import memory_location
from tests.contract.backend_contract import BackendContract


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend(memory_location())
