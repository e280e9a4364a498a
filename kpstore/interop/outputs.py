"""What exports share: rows in blocks, and folders that no link leads out of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError

BLOCK_FRAMES = 4096
"""Frames in memory at once: 7 MB of keypoints."""


def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield rows of a store, :data:`BLOCK_FRAMES` at a time, in their order."""
    for start in range(0, len(rows), BLOCK_FRAMES):
        yield rows[start : start + BLOCK_FRAMES]


def check_no_links(folder: Path, targets: Iterable[Path]) -> None:
    """Raise :class:`InvalidError` if a folder between ``folder`` and a target is a link: it may lead anywhere.

    Parameters
    ----------
    folder : what the user named; may itself be a link.
    targets : files in it, or in its folders.
    """
    seen: set[Path] = {folder}
    for target in targets:
        for parent in target.parents:
            if parent in seen:
                break
            seen.add(parent)
            if parent.is_symlink():
                raise InvalidError(
                    f"{parent} is a link, which may lead out of {folder}; choose another folder"
                )
