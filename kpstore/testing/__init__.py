"""Pytest suites for plug-ins: :class:`kpstore.testing.backends.BackendContract`."""

import pytest

pytest.register_assert_rewrite("kpstore.testing.backends")
