"""How to run an ingest."""

from __future__ import annotations

from dataclasses import dataclass

from kpstore.errors import InvalidError
from kpstore.ingest.gpus import count_gpus
from kpstore.schema.feature import Compression


@dataclass(frozen=True)
class Options:
    """How to run an ingest; nothing here changes the numbers.

    Parameters
    ----------
    workers : Dask worker processes on this machine; 0 runs in this process.
    scheduler : address of a Dask scheduler to use instead.
    device : where all models run, ``"cpu"``, ``"cuda"`` or ``"cuda:0"``; by default on the CPU, or
        the GPUs asked for.
    gpus, workers_per_gpu : pin ``gpus * workers_per_gpu`` workers to GPUs; ``workers`` is then
        ignored.
    overwrite : extract again what is there already.
    retry_failed : extract again videos in which something failed.
    ignore_problems : go on although the source lists missing or unreadable videos.
    checkpoint_s, checkpoint_frames : commit when either has gone by.
    task_frames : frames per task; 0 sizes tasks to take about half a minute.
    name : name of the data set in a store that is made; the source's by default.
    compression : of the values of a feature that is made; one that is there keeps its own.
    """

    workers: int = 1
    scheduler: str | None = None
    gpus: int = 0
    workers_per_gpu: int = 1
    device: str = ""
    overwrite: bool = False
    retry_failed: bool = False
    ignore_problems: bool = False
    checkpoint_s: float = 300.0
    checkpoint_frames: int = 100_000
    task_frames: int = 0
    name: str = ""
    compression: Compression = "raw"

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 0),
            ("gpus", 0),
            ("workers_per_gpu", 1),
            ("checkpoint_frames", 1),
        ):
            if getattr(self, name) < least:
                raise InvalidError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.checkpoint_s <= 0:
            raise InvalidError(f"checkpoint_s is {self.checkpoint_s}; it must be more than 0")
        self._check_gpus()

    def _check_gpus(self) -> None:
        kind, _, number = self.device.partition(":")
        if kind not in ("", "cpu", "cuda") or (
            number and not (kind == "cuda" and number.isdecimal())
        ):
            raise InvalidError(f"device {self.device!r} is none; use cpu, cuda or cuda:0")
        if self.gpus and self.device:
            raise InvalidError(
                f"device {self.device!r} and {self.gpus} GPUs were asked for; choose one of them"
            )
        wanted = int(number or 0) + 1 if kind == "cuda" else self.gpus
        found = count_gpus() if wanted and self.scheduler is None else wanted
        if wanted > found:
            asked = (
                f"device {self.device!r}"
                if self.device
                else f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}"
            )
            option = "--device" if self.device else "--gpus"
            raise InvalidError(
                f"{asked} asked for, {found or 'none'} found on this machine; leave out {option} "
                "to use the CPU"
            )

    @property
    def runs_on(self) -> str:
        """The device that each worker's models are told."""
        return self.device or ("cuda" if self.gpus else "cpu")

    @property
    def n_workers(self) -> int:
        """Worker processes to start on this machine."""
        return self.gpus * self.workers_per_gpu if self.gpus else self.workers
