"""Tests for what others add to kpstore, with pytest: :class:`kpstore.testing.backends.BackendContract`."""

import pytest

pytest.register_assert_rewrite("kpstore.testing.backends")
