"""Where models of torch run, in which precision, and that they compute alike in every process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kpstore.errors import UnsupportedError

Precision = Literal["fp32", "bf16", "fp16"]
StoredType = Literal["float32", "float16"]

TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Torch's name of each precision."""


def find_device(name: str, recipe: str) -> Any:
    """Return torch's device of a name.

    Raises
    ------
    UnsupportedError
        If torch does not know it, it is neither a CPU nor a GPU of CUDA, or it is not there.
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
            f"device {name!r} was asked for, but there are only {count}, from cuda:0 on"
        )
    return device


@contextmanager
def reproducible(device: Any) -> Iterator[None]:
    """Compute with the same settings in every process that makes rows of a feature.

    In full float32, of which GPUs and CPUs with AMX may be told to keep ten bits or seven; on a CPU
    in one thread, for sums in another number of threads are other sums; on a GPU by algorithms that
    follow from shapes, not from a race.
    """
    import torch

    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    try:
        if device.type == "cuda":
            enabled = torch.backends.cudnn.enabled
            with torch.backends.cudnn.flags(
                enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False
            ):
                yield
        else:
            torch.set_num_threads(1)
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch's allocator or a CUDA library reports that a GPU's memory is full."""
    import torch

    said = str(error)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "out of memory" in said
        or "_ALLOC_FAILED" in said
    )
