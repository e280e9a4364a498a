"""Errors of Dask about its scheduler, which reach users as one kind of ours."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from kpstore.errors import WorkersError, one_line


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
    except (OSError, TimeoutError, CancelledError, ClosedClientError) as error:
        raise WorkersError(f"the Dask scheduler at {address} is gone ({one_line(error)})") from None
