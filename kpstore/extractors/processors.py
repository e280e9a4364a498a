"""The kind of processor that computes, on which the last bits of numbers depend."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_STEPS = (
    ("avx512f", "avx512"),
    ("avx2", "avx2"),
    ("avx", "avx"),
    ("sse4_1", "sse4.1"),
    ("sve", "sve"),
    ("asimd", "neon"),
)
"""Instruction sets by Linux's name and by the usual one.

The widest available one is named.
"""
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
"""Variables that make libraries use fewer instruction sets than available."""


def cpu_name() -> str:
    """Return the kind of this machine's CPU: ``"x86_64 Intel, avx512 vnni bf16 amx"``.

    The architecture, the vendor, the instruction sets that numerical libraries look for, and
    whatever the environment forbids them. Two CPUs of one kind may still be of different speed.
    """
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)]
    return " ".join([_kind(), *([f"({', '.join(limits)})"] if limits else [])])


@cache
def _kind() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux has it
        told = ""
    return kind_of(platform.machine(), platform.system(), told)


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


def device_name(device: Any) -> str:
    """Return the kind of processor behind a torch device, a CPU or a GPU."""
    if device.type != "cuda":
        return cpu_name()
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
