"""Files of weights: their hashes, and their tensors, read without running code in the files."""

from __future__ import annotations

import errno
import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, InvalidError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN_NAMES = 4
_UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, AssertionError, OSError, *DAMAGE)
"""What torch raises for files that it did not write."""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    A file that does not change is read once per process.
    """
    return _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differs(file: Path) -> InvalidError:
    """Return the error for a file that changed after a run began, or differs on a worker."""
    return InvalidError(
        f"{file} is not the same here as where the run began; give all workers one copy"
    )


def brief(error: BaseException) -> str:
    """Return the message of a library's error as one line of at most 160 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160]


def some_of(names: Iterable[object]) -> str:
    """Return the first few of some names, sorted, and how many more there are."""
    listed = sorted(str(name) for name in names)
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return f"{', '.join(map(repr, listed[:SHOWN_NAMES])) or 'nothing'}{more}"


def load_tensors(path: Path) -> object:
    """Return what a file of ``torch.save`` holds, its tensors on the CPU and mapped into memory.

    Code in it is never run.

    Raises
    ------
    InvalidError
        If it is not such a file, is truncated, or holds more than tensors and plain values.
    """
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                n_bytes = sum(part.file_size for part in packed.infolist())
            MemoryBudget.of(path, fixed=True).check(n_bytes, "what is packed in it")
        # Checkpoints from before 2020 are not zip files and cannot be mapped into memory.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that are not checkpoints
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except InvalidError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # from the disk; EINVAL comes from a zip file that is cut short
        raise InvalidError(f"{path} {_reason(error)}") from None


def is_table(loaded: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether an object is a dict of tensors by name."""
    import torch

    return isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in loaded.items()
    )


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
        return (
            "is not a checkpoint, or holds more than tensors and numbers, which is not run; save "
            "its state dict alone"
        )
    return f"is not a checkpoint that torch can read, or is cut short: {brief(error)}"
