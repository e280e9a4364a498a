"""What every backend must do.

A test module of a new backend needs one class, and pytest finds the rest::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(str(tmp_path / "store.mine"))
"""

from kpstore.testing.arrays import ArrayContract
from kpstore.testing.versions import VersionContract
from kpstore.testing.writers import WriterContract


class BackendContract(ArrayContract, VersionContract, WriterContract):
    """Tests for a subclass whose fixture ``backend`` returns a backend at a free place."""
