"""Errors of Dask about its scheduler, which reach users as one kind of ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from kpstore.errors import WorkersError, one_line


def gone(address: str, why: str = "") -> WorkersError:
    """Return the error for a scheduler that is gone."""
    return WorkersError(f"the Dask scheduler at {address} is gone{f' ({why})' if why else ''}")


@contextmanager
def scheduler_told(address: str) -> Iterator[None]:
    """Turn what Dask raises without a scheduler, or with a closed client, into one error.

    Raises
    ------
    WorkersError
        If the scheduler at ``address`` is gone, does not answer, or was disconnected.
    """
    from distributed.client import ClosedClientError

    try:
        yield
    except (OSError, CancelledError, ClosedClientError) as error:
        raise gone(address, one_line(error)) from None
