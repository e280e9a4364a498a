"""How to run an ingest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from kpstore.errors import InvalidError
from kpstore.ingest.gpus import count_gpus
from kpstore.machine import usable_cores
from kpstore.options import AGAIN, WHERE, Option, check_limits
from kpstore.schema.feature import Compression

MAX_DEFAULT_WORKERS = 4
DEFAULT_FRAME_TIMEOUT_S = 600.0
DEFAULT_WAIT_S = 300.0


@dataclass(frozen=True)
class Options:
    """How to run an ingest; nothing here changes the numbers.

    Parameters
    ----------
    name : name of the data set in a new store; by default the source's.
    compression : of the values of a new feature; an existing one keeps its own.
    workers : Dask worker processes on this machine; 0 runs in this process, None starts one per
        core, at most four, or a single one for ``device="cuda"``.
    gpus, workers_per_gpu : pin ``gpus * workers_per_gpu`` workers to GPUs; ``workers`` is then
        ignored.
    device : where all models run, ``"cpu"``, ``"cuda"`` or ``"cuda:0"``; by default on the CPU, or
        on the GPUs asked for.
    scheduler : address of a Dask scheduler to use instead, or the JSON file that it writes
        (``dask scheduler --scheduler-file``). Its workers may come and go at any time.
    wait_for_workers_s : how long to wait for a worker of that scheduler while there is none: at the
        start, and after all of them have gone.
    frame_timeout_s : how long one frame, or one batch of a model that takes several, may take in a
        worker process: the worker is replaced, the frame is tried once more alone, and then fails.
        0 for any time; None is ten minutes. Without worker processes nothing could be replaced: a
        frame that hangs is waited for, and any limit but 0 is refused.
    overwrite : extract videos again that are stored already.
    retry_failed : extract videos again in which something failed.
    ignore_problems : continue although the source lists missing or unreadable videos.
    checkpoint_s, checkpoint_frames : commit after this many seconds or frames, whichever is first.
    task_frames : frames per task; 0 sizes tasks to take about half a minute.
    """

    name: Annotated[str, Option("Name of the data set in a new store.")] = ""
    compression: Annotated[
        Compression,
        Option("Compression of a new feature: raw reads fastest, lz4 saves a fifth."),
    ] = "raw"
    workers: Annotated[
        int | None,
        Option(
            "Number of worker processes; 0 runs in this process. By default one per core, at most "
            f"{MAX_DEFAULT_WORKERS}.",
            least=0,
            default=None,
            panel=WHERE,
        ),
    ] = 1
    gpus: Annotated[int, Option("Number of GPUs to use.", least=0, panel=WHERE)] = 0
    device: Annotated[
        str,
        Option("cpu, cuda or cuda:0 for all workers; instead of --gpus.", "DEVICE", panel=WHERE),
    ] = ""
    workers_per_gpu: Annotated[
        int, Option("Number of worker processes per GPU.", least=1, panel=WHERE)
    ] = 1
    scheduler: Annotated[
        str | None,
        Option(
            "Use the workers of this Dask scheduler: its address, or its scheduler file.",
            "ADDRESS",
            panel=WHERE,
        ),
    ] = None
    wait_for_workers_s: Annotated[
        float,
        Option(
            "With --scheduler, wait for a worker while there is none, and then give up.",
            "SECONDS",
            flag="--wait-for-workers",
            least=0,
            panel=WHERE,
        ),
    ] = DEFAULT_WAIT_S
    frame_timeout_s: Annotated[
        float | None,
        Option(
            "Replace a worker that takes longer for a frame, or a batch; the frame fails if it "
            f"takes that long again. 0 waits for ever; {DEFAULT_FRAME_TIMEOUT_S:g} by default. "
            "Needs worker processes.",
            "SECONDS",
            flag="--frame-timeout",
            least=0,
            panel=WHERE,
        ),
    ] = None
    overwrite: Annotated[bool, Option("Extract all videos again.", panel=AGAIN)] = False
    retry_failed: Annotated[bool, Option("Extract videos with failures again.", panel=AGAIN)] = (
        False
    )
    ignore_problems: Annotated[
        bool, Option("Continue although some videos are missing or extra.", panel=AGAIN)
    ] = False
    checkpoint_s: Annotated[
        float,
        Option(
            "Commit at least every N minutes.",
            "N",
            flag="--checkpoint-minutes",
            above=0,
            factor=60.0,
            panel=AGAIN,
        ),
    ] = 300.0
    checkpoint_frames: Annotated[
        int, Option("Commit at least every N frames.", "N", least=1, panel=AGAIN)
    ] = 100_000
    task_frames: int = 0

    def __post_init__(self) -> None:
        if self.workers is None:
            on_gpu = self.device.startswith("cuda")
            found = 1 if on_gpu else min(usable_cores(), MAX_DEFAULT_WORKERS)
            object.__setattr__(self, "workers", found)
        check_limits(self)
        self._check_gpus()
        if self.in_this_process and self.frame_timeout_s:
            raise InvalidError(
                f"--frame-timeout {self.frame_timeout_s:g} (frame_timeout_s) needs a worker "
                "process, which is replaced when a frame hangs; use --workers 1, or leave it out"
            )

    def _check_gpus(self) -> None:
        kind, _, number = self.device.partition(":")
        if kind not in ("", "cpu", "cuda") or (
            number and not (kind == "cuda" and number.isdecimal())
        ):
            raise InvalidError(f"device {self.device!r} is unknown; use cpu, cuda or cuda:0")
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
    def in_this_process(self) -> bool:
        """Whether there are no worker processes."""
        return self.scheduler is None and self.n_workers == 0

    @property
    def frame_limit_s(self) -> float:
        """How long a frame may take; 0 for any time."""
        if self.in_this_process:
            return 0.0
        given = self.frame_timeout_s
        return DEFAULT_FRAME_TIMEOUT_S if given is None else given

    @property
    def runs_on(self) -> str:
        """The device that each worker's models are told."""
        return self.device or ("cuda" if self.gpus else "cpu")

    @property
    def n_workers(self) -> int:
        """Worker processes to start on this machine."""
        return self.gpus * self.workers_per_gpu if self.gpus else self.workers or 0
