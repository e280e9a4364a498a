"""Memory of an epoch, measured in a separate process: ``python -m kpstore.bench.peak``."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import kpstore.api
from kpstore.store.store import BaseStore
from kpstore.views.loader import loader
from kpstore.visible import logger

_log = logger(__name__)

_BATCH = 256
_EVERY = 0.01
"""Seconds between two measurements."""


@dataclass(frozen=True)
class PeakMemory:
    """Memory of an epoch at its peak, above a process that has loaded torch and kpstore, in MiB.

    Parameters
    ----------
    own : of the process alone.
    with_mapped : with the pages of mapped files. They are the system's cache: shared by all
        processes that map the same files, and freed when memory is needed.
    """

    own: float
    with_mapped: float


def peak_of_epoch(store: BaseStore, feature: str, cache: str, n_rows: int) -> PeakMemory | None:
    """Return the peak of one epoch of the first rows by :func:`kpstore.loader`.

    None if it could not be measured.
    """
    if not Path("/proc/self/status").exists():
        return None
    given = [store.location, store.snapshot, feature, cache, str(n_rows)]
    command = [sys.executable, "-m", __name__, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        _log.warning(
            "the peak memory of an epoch could not be measured: %s",
            done.stderr.strip().rpartition("\n")[2],
        )
        return None
    return PeakMemory(**json.loads(done.stdout))


def _resident() -> tuple[int, int]:
    """Return this process's own memory, and with the files that it maps, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["RssAnon"][0]), int(fields["VmRSS"][0])


def _main(location: str, at: str, feature: str, cache: str, n_rows: str) -> None:
    import torch.utils.data  # noqa: F401 - part of what the epoch is measured against

    before, peak = _resident(), list(_resident())
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY):
            peak[:] = map(max, peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        view = kpstore.api.open(location, at, cache=cache).frames(feature)
        part = view if int(n_rows) >= len(view) else view.subset(range(int(n_rows)))
        for _ in loader(part, _BATCH, rank=0, world_size=1):
            pass
    finally:
        over.set()
        watcher.join()
    own, all_of_it = (
        round((most - first) / 1024, 1) for most, first in zip(peak, before, strict=True)
    )
    print(json.dumps({"own": own, "with_mapped": all_of_it}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
