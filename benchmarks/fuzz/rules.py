"""What a file of a stranger may do: be read, or be refused in one clear line, within bounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kpstore.errors import KpstoreError

CPU_S = 10
"""CPU seconds that one input may take."""
MEMORY_BYTES = 256 * 2**20
"""Memory that one input may take beyond ten times its size."""

Read = Callable[[bytes, Path], None]
"""Reads an input as people read it; the folder is empty and of this input alone."""
Seeds = Callable[[], Iterator[bytes]]
"""Yields sound inputs to begin with."""


@dataclass(frozen=True)
class Reading:
    """What came of one input.

    Parameters
    ----------
    said : the clear line that it ended in; None if it was read.
    error : what should not have happened; None if nothing did.
    cpu_s : CPU time, seconds.
    memory : bytes that the process took beyond what it had before.
    """

    said: str | None
    error: Exception | None
    cpu_s: float
    memory: int


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed.

    Parameters
    ----------
    name : of the target.
    read : passes if it returns, or ends in one clear line.
    seeds : sound inputs.
    memory : bytes that an input may take beyond ten times its size.
    inputs : the fewest that a run of ``benchmarks.fuzz`` tries.
    """

    name: str
    read: Read
    seeds: Seeds
    memory: int = MEMORY_BYTES
    inputs: int = 0

    def warm(self) -> None:
        """Read the seeds: what a first reading imports and keeps is not of any input."""
        for seed in self.seeds():
            self._said(seed)

    def check(self, data: bytes) -> Reading:
        """Read an input within the bounds."""
        before, start = forget_peak(), time.process_time()
        said: str | None = None
        error: Exception | None = None
        try:
            said = self._said(data)
        except Exception as found:  # the very thing that is looked for
            error = found
        cpu_s, memory = time.process_time() - start, peak_bytes() - before
        if cpu_s > CPU_S:
            error = error or AssertionError(f"took {cpu_s:.0f} CPU seconds")
        if memory > 10 * len(data) + self.memory:
            error = error or AssertionError(f"took {memory >> 20} MiB for {len(data)} bytes")
        return Reading(said, error, round(cpu_s, 3), memory)

    def _said(self, data: bytes) -> str | None:
        with tempfile.TemporaryDirectory(prefix="kpstore-fuzz-") as folder:
            try:
                self.read(data, Path(folder))
            except (KpstoreError, PermissionError) as error:
                # What others wrote into it is made visible where it is printed.
                if not str(error).strip():
                    raise AssertionError("an error without a message") from error
                return str(error)
        return None


def forget_peak() -> int:
    """Let the kernel begin anew to measure the most memory; return what is taken now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that was taken since, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def texts(*seeds: str) -> Seeds:
    """Return seeds that are text."""
    return lambda: (seed.encode() for seed in seeds)


def at(file: str, read: Callable[[Path], object]) -> Read:
    """Return a reading of one file of this name by a function."""

    def read_file(data: bytes, folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        read(path)

    return read_file
