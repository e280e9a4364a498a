"""A Dask scheduler and workers on this machine, started by hand, and faults of workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import kpstore
from benchmarks.faults.numbered import WORKER

ROOT = Path(__file__).parents[2]
OTHER = {
    "kpstore": ("kpstore/extractors/base.py", "\n# changed\n"),
    "extractor": ("benchmarks/faults/numbered.py", "\nSCALE = 2\n"),
}
"""Other code, by what is other: a file, and what stands at its end."""


@dataclass
class Process:
    """A child process; what it says is kept, and can be waited for."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.child = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as said:
            for line in said:
                with self._news:
                    self.lines.append(line.rstrip())
                    self._news.notify_all()
        with self._news:
            self.lines.append("(ended)")
            self._news.notify_all()

    def wait_for(self, text: str) -> str:
        """Return the first line that holds a text; raise if the process ends without it."""
        with self._news:
            while True:
                for line in self.lines:
                    if text in line:
                        return line
                if self.lines and self.lines[-1] == "(ended)":
                    raise RuntimeError(
                        f"{self.command} ended without {text!r}:\n" + "\n".join(self.lines)
                    )
                self._news.wait()

    def kill(self) -> None:
        """End it at once (SIGKILL) and wait until it is gone."""
        self.child.kill()
        self.child.wait()
        self._reader.join()


def can_mount() -> bool:
    """Whether this machine lets us give a process its own view of the file system."""
    tool = shutil.which("unshare")
    return (
        tool is not None
        and subprocess.run([tool, "-m", "true"], capture_output=True, check=False).returncode == 0
    )


class ByHand:
    """A scheduler, and workers that are started one by one.

    A context manager that ends all of them.

    Parameters
    ----------
    folder : for copies of code, of stores, and whatever workers leave behind.

    Attributes
    ----------
    address, file : of the scheduler, and what it has written it to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workers: dict[str, Process] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.file = self._folder / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
        options += ["--scheduler-file", str(self.file)]
        self.scheduler = Process([sys.executable, "-m", "dask", "scheduler", *options])
        said = self.scheduler.wait_for("Scheduler at:")
        self.address = said[said.index("tcp://") :].strip()
        while not self.file.exists():  # it is written after that
            assert self.scheduler.child.poll() is None, self.scheduler.lines
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.kill()
        self.scheduler.kill()

    def start(
        self,
        name: str,
        *,
        threads: int = 1,
        path: Path | None = None,
        mount: str = "",
        nanny: bool = False,
        wait: bool = True,
    ) -> Process:
        """Start a worker.

        Parameters
        ----------
        path : a folder with other code (:meth:`other_code`, :meth:`other_numpy`), which it finds
            before ours.
        nanny : whether it is started again when it ends.
        mount : a shell command that changes what it sees of the file system, in a view of its own.
        """
        command = [
            sys.executable,
            "-m",
            "dask",
            "worker",
            self.address,
            "--name",
            name,
            "--nthreads",
            str(threads),
        ]
        command += [
            "--nanny" if nanny else "--no-nanny",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            str(self._folder),
        ]
        if mount:
            command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        paths = [str(path)] * (path is not None) + [
            str(ROOT),
            str(Path(kpstore.__file__).parents[1]),
        ]
        # In a folder of its own: what python finds first is then what the path says.
        environment = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONSAFEPATH": "1",
            WORKER: name,
        }
        self.workers[name] = worker = Process(command, environment, folder=self._folder)
        if wait:
            worker.wait_for("Registered to:")
        return worker

    def kill(self, name: str) -> None:
        """End a worker at once."""
        self.workers.pop(name).kill()

    def other_code(self, what: str) -> Path:
        """Return a folder with a copy of the code, changed as :data:`OTHER` says."""
        file, addition = OTHER[what]
        copy = self._folder / f"other-{what}"
        if not copy.exists():
            for package in {"kpstore", "benchmarks"}:
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(
                    Path(kpstore.__file__).parents[1] / package, copy / package, ignore=ignored
                )
            with (copy / file).open("a") as changed:
                changed.write(addition)
        return copy

    def other_numpy(self) -> Path:
        """Return a folder in which numpy says that it is of another version."""
        folder = self._folder / "other-numpy"
        about = folder / "numpy-0.1.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
        return folder


def change_view(process: Process, command: str) -> None:
    """Change what a running worker, started with a view of its own, sees of the file system."""
    subprocess.run(["nsenter", "-m", "-t", str(process.child.pid), "sh", "-c", command], check=True)
