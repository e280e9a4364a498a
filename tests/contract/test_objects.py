"""The contract of backends, kept by stores in object storage."""

from __future__ import annotations

import pytest

from kpstore.backends.icechunk_objects import IcechunkObjects
from kpstore.testing.backends import BackendContract
from tests.object_storage import Bucket


class TestObjects(BackendContract):
    @pytest.fixture
    def backend(self, bucket: Bucket) -> IcechunkObjects:
        return IcechunkObjects(bucket.address("store"))
