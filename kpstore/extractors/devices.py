"""Devices and precisions of torch models, and what the last bits of values depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
"""TF32 is float32 of which a GPU multiplies ten bits; tensors stay float32."""
StoredType = Literal["float32", "float16"]

TORCH_TYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of the precisions in torch."""

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_STEPS = (
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
    ("avx", "avx"),
    ("sse4_1", "sse4.1"),
    ("sve", "sve"),
    ("asimd", "neon"),
)
"""Instruction sets by Linux's name and by the usual name; the first that a CPU has is named."""
_EXTRAS = {
    "avx512_vnni": "vnni",
    "avx512_bf16": "bf16",
    "avx512_fp16": "fp16",
    "amx_tile": "amx",
    "avx_vnni": "avx-vnni",
    "sve2": "sve2",
    "bf16": "bf16",
}
"""Further instruction sets for which libraries have special code."""
_LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
"""Environment variables that make libraries use fewer instruction sets than available."""


def find_device(name: str, recipe: str) -> torch.device:
    """Return a device of torch by name.

    Raises
    ------
    UnsupportedError
        If torch does not know the name, the device is neither a CPU nor a GPU of CUDA, or it does
        not exist.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnsupportedError(
            f"device {name!r} is unknown to torch; use cpu, cuda or cuda:0"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"device {name!r}: the recipe {recipe!r} runs on cpu and cuda")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count == 0:
        build = "" if torch.version.cuda else ", which is built without CUDA,"
        raise UnsupportedError(
            f"device {name!r} was asked for, but torch {torch.__version__}{build} finds no GPU; "
            "leave out --gpus to use the CPU, or see 'kpstore doctor'"
        )
    if (device.index or 0) >= count:
        raise UnsupportedError(
            f"device {name!r} was asked for, but this machine has {count} GPU(s), from cuda:0 on"
        )
    return device


def sent(rows: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on a device."""
    import torch

    tensor = torch.from_numpy(rows)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@contextmanager
def reproducible(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Compute with the same settings in every process that makes rows of a feature.

    These are full float32 precision, which GPUs and CPUs with AMX can be set to reduce to ten bits
    or seven; on a CPU one thread, since the number of threads changes the order of sums; on a GPU
    algorithms that depend on shapes alone, not on the fastest in a trial.

    Parameters
    ----------
    tf32 : let a GPU reduce float32 to the ten bits of TF32.
    """
    import torch

    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    try:
        if device.type == "cuda":
            enabled = torch.backends.cudnn.enabled
            with torch.backends.cudnn.flags(
                enabled=enabled, benchmark=False, deterministic=True, allow_tf32=tf32
            ):
                torch.set_float32_matmul_precision("high" if tf32 else "highest")
                yield
        else:
            torch.set_num_threads(1)
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch's allocator or a CUDA library reports that the memory of a GPU is full."""
    import torch

    said = str(error)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "out of memory" in said
        or "_ALLOC_FAILED" in said
    )


# -- the kind of processor -------------------------------------------------------------------------


def cpu_name() -> str:
    """Return the kind of this machine's CPU: ``"x86_64 Intel, avx512 vnni bf16 amx"``.

    It is made of the architecture, the vendor, the instruction sets that numerical libraries look
    for, and limits that the environment sets. Two CPUs of one kind may still differ in speed.
    """
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    return " ".join([_kind(), *([f"({', '.join(limits)})"] if limits else [])])


@cache
def _kind() -> str:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has it
        cpuinfo = ""
    return kind_of(platform.machine(), platform.system(), cpuinfo)


def kind_of(machine: str, system: str, cpuinfo: str) -> str:
    """Return the kind of a CPU; ``cpuinfo`` is Linux's ``/proc/cpuinfo``, or empty."""
    facts = {}
    for line in cpuinfo.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    vendor = facts.get("vendor_id") or facts.get("CPU implementer") or system
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    widest = [name for flag, name in _STEPS if flag in flags][:1]
    extras = [name for flag, name in _EXTRAS.items() if flag in flags]
    sets = " ".join([*widest, *extras])
    return f"{machine} {_VENDORS.get(vendor, vendor)}" + (f", {sets}" if sets else "")


def device_name(device: torch.device) -> str:
    """Return the kind of processor behind a torch device, a CPU or a GPU."""
    if device.type != "cuda":
        return cpu_name()
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
