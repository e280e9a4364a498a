"""The HDF5 backend keeps the contract."""

from pathlib import Path

import pytest

from kpstore.backends.hdf5 import HDF5Backend
from kpstore.testing.backends import BackendContract


class TestHDF5(BackendContract):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> HDF5Backend:
        return HDF5Backend(str(tmp_path / "store.h5"))
