"""The memory in which worker processes hand over batches: what is free, and what fits into it.

PyTorch's workers put tensors into files in ``/dev/shm``, which is small in many containers (Docker:
64 MB). A worker that finds it full only prints a traceback, and whoever waits for its batch waits
for ever.
"""

from __future__ import annotations

import os
import sys

from kpstore.errors import UnsupportedError, one_line

FOLDER = "/dev/shm"


def free_bytes() -> int | None:
    """Return the free bytes of shared memory; None where it is not a folder (macOS)."""
    try:
        about = os.statvfs(FOLDER)
    except OSError:
        return None
    return about.f_bavail * about.f_frsize


def workers_of_this() -> int:
    """Return how many workers the DataLoader has whose worker this process is; 0 if it is none."""
    torch = sys.modules.get("torch.utils.data")
    about = torch and torch.get_worker_info()
    return 0 if about is None else int(about.num_workers)


def batches_ahead(batch_bytes: int, n_workers: int, free: int | None) -> int | None:
    """Return how many batches workers may make ahead; None if nothing limits them.

    The loop holds one batch while it takes the next, and each worker has room for one more, so that
    two that look at the same time both find room.

    Raises
    ------
    UnsupportedError
        If not even one for each worker fits.
    """
    if free is None or batch_bytes == 0:
        return None
    n_ahead = free // batch_bytes - n_workers - 2
    if n_ahead < n_workers:
        raise _too_small(f"{2 * n_workers + 2} batches of {_mib(batch_bytes)}", free)
    return n_ahead


def check_room(batch_bytes: int, n_workers: int, free: int | None) -> None:
    """Raise :class:`UnsupportedError` if a worker cannot hand over a batch."""
    if free is not None and n_workers * batch_bytes > free:
        what = f"a batch of {_mib(batch_bytes)} from each of {n_workers} workers"
        raise _too_small(what, free, "a lower prefetch, ")


def check_ended(error: Exception) -> None:
    """Raise :class:`UnsupportedError` if a worker ended without a word, instead of PyTorch's."""
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
        raise UnsupportedError(
            "the system ended a worker of the loader: memory ran out (fewer workers need less), "
            f"{FOLDER} is full, or a file of the store was cut short while it was mapped ('kpstore "
            f"verify' finds that; check='always' maps nothing) ({one_line(error)})"
        ) from None


def _too_small(what: str, free: int, too: str = "") -> UnsupportedError:
    return UnsupportedError(
        f"workers hand over batches in {FOLDER}, where {_mib(free)} are free and {what} must fit; "
        f"use threads (workers=0), smaller batches, {too}or fewer workers, let go of batches that "
        "are kept, or give the container more (docker run --shm-size=8g)"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.3g} MiB"
