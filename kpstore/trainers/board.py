"""TensorBoard files with the numbers and pictures of a run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import MissingExtraError


def writer_type() -> Any:
    """Return TensorBoard's writer; :class:`MissingExtraError` if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError("--tensorboard", extra="tensorboard") from None
    return SummaryWriter


class Board:
    """Event files in a folder.

    Parameters
    ----------
    folder : of the files.
    up_to_step : where a run resumes; what was written beyond it is hidden.
    """

    def __init__(self, folder: Path, *, up_to_step: int) -> None:
        self._writer = writer_type()(
            log_dir=str(folder), purge_step=up_to_step + 1 if up_to_step else None
        )

    def add_numbers(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add ``group/name`` for each value."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def add_picture(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Add a picture, (height, width, 3)."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def sync(self) -> None:
        """Put everything into the files before a checkpoint that relies on it."""
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
