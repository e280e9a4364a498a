"""Where models of torch run, in which precision, and how much of them fits into a GPU's memory at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ExtractorError, UnsupportedError

_log = logging.getLogger(__name__)

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
        raise UnsupportedError(f"device {name!r} is none that torch knows; use cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"device {name!r}: the recipe {recipe!r} runs on cpu and cuda")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count == 0:
        build = "" if torch.version.cuda else ", which is built without CUDA,"
        raise UnsupportedError(
            f"device {name!r} was asked for, but torch {torch.__version__}{build} finds no GPU; leave out --gpus to "
            "use the CPU, or see 'kpstore doctor'"
        )
    if (device.index or 0) >= count:
        raise UnsupportedError(f"device {name!r} was asked for, but there are only {count}, from cuda:0 on")
    return device


@contextmanager
def full_float32(device: Any) -> Iterator[None]:
    """Compute convolutions in float32 on a GPU too, which by default rounds what goes into them to ten bits (TF32)."""
    import torch

    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _middle(start: int, stop: int) -> int:
    return start + (stop - start + 1) // 2


def in_halves(
    compute: Callable[[int, int], NDArray[np.float32]],
    start: int,
    stop: int,
    *,
    model: str,
    device: Any,
    remedy: str,
    on_halved: Callable[[int], None],
    middle: Callable[[int, int], int] = _middle,
) -> NDArray[np.float32]:
    """Return ``compute(start, stop)``, (stop - start, …), in halves of halves if a GPU's memory does not suffice.

    Parameters
    ----------
    compute : takes the first frame and the one after the last; returns one row per frame.
    model, device : what to call the one that computes, and where it does.
    remedy : what to do where a single frame is too much.
    on_halved : called with how many frames will be tried next.
    middle : where to divide ``start`` to ``stop``, strictly between both.

    Raises
    ------
    ExtractorError
        If the model fails, or one single frame is too much for the GPU's memory.
    """
    import torch

    try:
        return compute(start, stop)
    except torch.cuda.OutOfMemoryError as error:
        if stop - start == 1:
            raise ExtractorError(
                f"{model} needs more GPU memory than is free for a single frame; {remedy} "
                f"({' '.join(str(error).split())[:160]})"
            ) from None
    except RuntimeError as error:
        # The frames have been read and brought to size: what fails now would fail for all that come after them.
        raise ExtractorError(f"{model} fails on {device}: {' '.join(str(error).split())[:300]}") from error
    # Out here, where the error no longer holds on to what it was computed from.
    torch.cuda.empty_cache()
    half = middle(start, stop)
    on_halved(half - start)
    _log.info("out of GPU memory with %d frames at once; going on with %d", stop - start, half - start)
    again = partial(in_halves, compute, model=model, device=device, remedy=remedy, on_halved=on_halved, middle=middle)
    return np.concatenate([again(start, half), again(half, stop)])
