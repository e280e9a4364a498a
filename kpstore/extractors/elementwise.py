"""Functions of single numbers in torch whose bits do not depend on where a number stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

_VECTOR = 64
"""More numbers than any CPU's vector instructions take at once; a power of two."""


def position_free(function: Callable[..., Tensor], *numbers: Tensor) -> Tensor:
    """Apply a function to each number so that its bits depend on that number alone.

    On a CPU torch takes numbers in vectors, and what is left at the end one by one, by another
    routine with other last bits for exponentials and angles. Here nothing is left at the end.

    Parameters
    ----------
    numbers : as many tensors, all of one shape, as the function takes.
    """
    shape = numbers[0].shape
    count = numbers[0].numel()
    # In memory of their own, since torch takes numbers that are not side by side one by one too.
    flat = [functional.pad(one.reshape(-1), (0, -count % _VECTOR)).contiguous() for one in numbers]
    return function(*flat)[:count].reshape(shape)


def sigmoid(numbers: Tensor) -> Tensor:
    """Return logistic values whose bits do not depend on where a number stands."""
    return position_free(torch.sigmoid, numbers)


def sine(angle: Tensor) -> Tensor:
    """Return sines, rounded once, so that they hardly depend on the processor."""
    return position_free(torch.sin, angle.double()).float()


def cosine(angle: Tensor) -> Tensor:
    """Return cosines, rounded once."""
    return position_free(torch.cos, angle.double()).float()
