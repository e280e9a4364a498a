"""The Icechunk backend keeps the contract."""

from pathlib import Path

import pytest

from kpstore.backends.icechunk import IcechunkBackend
from kpstore.testing.backends import BackendContract


class TestIcechunk(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> IcechunkBackend:
        return IcechunkBackend(str(tmp_path / "store"))
