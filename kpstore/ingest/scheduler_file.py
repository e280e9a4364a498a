"""The file in which a Dask scheduler says where it is, for machines that share a disk."""

from __future__ import annotations

import json
from pathlib import Path

from kpstore.errors import InvalidError
from kpstore.user_files import read_text

_MOST_BYTES = 2**20


def is_file(scheduler: str) -> bool:
    """Whether a scheduler is named by the file that it writes."""
    return "://" not in scheduler and scheduler.endswith(".json")


def address_in(file: str) -> str:
    """Return the address that a scheduler has written to a file.

    Dask itself would wait for a file that is not there.

    Raises
    ------
    NotFoundError, InvalidError
        If there is no such file, or it is another one.
    """
    try:
        address = json.loads(read_text(Path(file), _MOST_BYTES))["address"]
    except (ValueError, KeyError, TypeError, RecursionError):
        address = None
    if not isinstance(address, str):
        raise InvalidError(
            f"{file} is not a file that 'dask scheduler --scheduler-file {file}' writes; give that "
            "file, or the scheduler's address (tcp://HOST:8786)"
        )
    return address
