"""Pytest suites for plug-ins: :class:`kpstore.testing.backends.BackendContract`."""

import pytest

pytest.register_assert_rewrite(
    *(f"kpstore.testing.{module}" for module in ("store_data", "arrays", "versions", "writers"))
)
