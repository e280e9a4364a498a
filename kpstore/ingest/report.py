"""Progress of an ingest, in a file beside the store, and the report at its end."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from kpstore.backends.base import Backend
from kpstore.backends.optional import Sidecar
from kpstore.errors import InvalidError, KpstoreError, UnreachableError
from kpstore.schema.feature import State
from kpstore.store.store import BaseStore
from kpstore.store.video import Failure
from kpstore.visible import logger

_log = logger(__name__)

PROGRESS_FILE = "progress.json"
MAX_FAILURES = 50
"""Failures listed in a commit's metadata; the store itself keeps all of them."""


@dataclass(frozen=True)
class IngestReport:
    """Result of a run.

    Parameters
    ----------
    feature : name of the feature.
    snapshot : the version that holds the result.
    videos : videos of the source; ``videos_done`` and ``videos_failed`` were extracted by this run.
    videos_before : videos that were extracted before.
    frames : frames extracted by this run, failed ones included.
    frames_failed : frames that could not be read or extracted.
    failures : of the whole feature, with their reasons.
    seconds : wall time of the run.
    interrupted : whether it was stopped before the end.
    notes : oddities of the data set, differences from the store, and workers that were left out.
    """

    feature: str
    snapshot: str
    videos: int = 0
    videos_done: int = 0
    videos_failed: int = 0
    videos_before: int = 0
    frames: int = 0
    frames_failed: int = 0
    failures: Sequence[Failure] = ()
    seconds: float = 0.0
    workers: int = 0
    interrupted: bool = False
    notes: Sequence[str] = ()

    @property
    def frames_per_second(self) -> float:
        """Frames extracted per second of wall time."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {
            **asdict(self),
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames_per_second, 2),
        }


@dataclass
class Progress:
    """Progress of a run, as ``kpstore progress`` shows it.

    ``frames_done`` runs ahead of ``frames_committed``: the difference is what a kill would cost.
    ``died_at`` are ids of videos at which a worker may have died or hung, and that are not
    extracted yet, of whichever feature: the next run extracts them in processes of their own.
    """

    run_id: str
    feature: str
    pid: int = field(default_factory=os.getpid)
    started: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    workers: int = 0
    videos: int = 0
    videos_done: int = 0
    videos_before: int = 0
    frames: int = 0
    frames_done: int = 0
    frames_failed: int = 0
    frames_committed: int = 0
    checkpoints: int = 0
    running: bool = True
    died_at: list[str] = field(default_factory=list)

    def lose(self, videos: Iterable[str]) -> None:
        """Note videos at which a worker may have died."""
        self.died_at = list(dict.fromkeys([*self.died_at, *videos]))

    def settle(self, videos: Iterable[str]) -> None:
        """Note that videos are extracted, or have failed."""
        if self.died_at:
            done = set(videos)
            self.died_at = [video for video in self.died_at if video not in done]

    @property
    def frames_per_second(self) -> float:
        """Frames per second since the run began."""
        elapsed = self.updated - self.started
        return self.frames_done / elapsed if elapsed > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds that remain at the present rate; None before the first frame."""
        rate = self.frames_per_second
        return (self.frames - self.frames_done) / rate if rate > 0 else None

    def to_json(self) -> dict[str, object]:
        """Return the progress as JSON values."""
        return {
            **asdict(self),
            "frames_per_second": round(self.frames_per_second, 2),
            "eta_s": self.eta_s,
        }


class ProgressFile:
    """Keeps a run's progress in a file beside the store, for other processes to read."""

    def __init__(self, sidecar: Sidecar | None) -> None:
        self._sidecar = sidecar
        self._written = 0.0
        self._lock = threading.Lock()  # Dask reports frames in a thread of its own

    def write(self, progress: Progress, *, now: bool = False) -> None:
        """Write at most once a second."""
        if self._sidecar is None:
            return
        with self._lock:
            if not now and time.monotonic() - self._written < 1.0:
                return
            self._written = time.monotonic()
            progress.updated = time.time()
            try:
                self._sidecar.write(PROGRESS_FILE, json.dumps(asdict(progress)))
            except (OSError, UnreachableError) as error:  # which fail the next commit, too
                _log.warning("%s: %s", self._sidecar.place(PROGRESS_FILE), error)


def read_progress(backend: Backend) -> Progress | None:
    """Return the progress of the run that is writing a store, or of the last one.

    None if the store has had no run. ``running`` is False if no process holds the store any more.
    """
    sidecar = backend.sidecar
    if sidecar is None:
        return None
    try:
        progress = Progress(**json.loads(sidecar.read(PROGRESS_FILE)))
        _check_types(progress)
    except FileNotFoundError:
        return None
    except KpstoreError:
        raise
    except (ValueError, TypeError, RecursionError) as error:
        place = sidecar.place(PROGRESS_FILE)
        raise InvalidError(f"{place} cannot be read ({error}); delete it") from None
    progress.running = progress.running and sidecar.is_reserved()
    return progress


def _check_types(progress: Progress) -> None:
    for name, example in asdict(Progress("", "")).items():
        found = getattr(progress, name)
        kind = (int, float) if isinstance(example, float) else type(example)
        is_sound = isinstance(found, kind)
        if isinstance(found, list):
            is_sound = is_sound and all(isinstance(one, str) for one in found)
        elif isinstance(found, int | float):
            is_sound = is_sound and math.isfinite(found)
        if not is_sound:
            raise TypeError(f"{name} is {found!r}")


@dataclass(frozen=True)
class FeatureProgress:
    """Numbers of videos by state, for one feature."""

    feature: str
    done: int
    failed: int
    pending: int


def feature_progress(store: BaseStore) -> list[FeatureProgress]:
    """Return the numbers of videos by state, for every feature of a version."""

    def count(name: str, state: State) -> int:
        return int((store.states(name) == state).sum())

    order = (State.DONE, State.FAILED, State.PENDING)
    return [FeatureProgress(f, *(count(f, state) for state in order)) for f in store.features]
