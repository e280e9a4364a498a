"""Which GPUs a process may use, by the names under which CUDA_VISIBLE_DEVICES gives them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_identities(visible: str | None, wanted: int, on_machine: int | None) -> tuple[str, ...]:
    """Return the first GPUs of those that the user lets a process use, at most as many as wanted.

    A worker that gets one of these as its ``CUDA_VISIBLE_DEVICES`` uses the GPU that the user
    meant, whatever number it has among the visible ones.

    Parameters
    ----------
    visible : value of ``CUDA_VISIBLE_DEVICES``: ``"2,3"``, ``"GPU-8932f937-…"``, ``"MIG-…"``;
        ``""`` for no GPU; None if it is not set, which means all of them. As in CUDA, an invalid
        name and all that follow it are ignored.
    wanted : number of GPUs.
    on_machine : number of GPUs of this machine; None if they were not counted.
    """
    if visible is None:
        return tuple(str(number) for number in range(min(wanted, on_machine or 0)))
    found: list[str] = []
    for name in (part.strip() for part in visible.split(",")):
        if not _is_identity(name, on_machine) or name in found:
            break
        found.append(name)
    return tuple(found[:wanted])


def _is_identity(name: str, on_machine: int | None) -> bool:
    if name.isdecimal():
        return on_machine is None or int(name) < on_machine
    return name.startswith(("GPU-", "MIG-"))


def gpu_of_worker(gpus: Sequence[str], name: str) -> str:
    """Return which of some GPUs a worker of a local cluster gets; ``""`` if ``gpus`` is empty.

    A local cluster numbers its workers, and a restarted worker keeps its number and so its GPU.
    """
    return gpus[int(name) % len(gpus)] if gpus else ""


def own_gpus(wanted: int) -> tuple[str, ...]:
    """Return :func:`gpu_identities` of this process."""
    visible = os.environ.get(VISIBLE)
    return gpu_identities(visible, wanted, _on_machine() if visible is None else None)


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use."""
    visible = os.environ.get(VISIBLE)
    return _on_machine() if visible is None else len(gpu_identities(visible, len(visible), None))


def _on_machine() -> int:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False)
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return sum(line.startswith("GPU ") for line in lines)
