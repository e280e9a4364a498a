"""Persons whose faces tiny models find; as a script, an ingest of them that kills itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kpstore.extractors.dinov2_models import Architecture, register_model
from kpstore.extractors.insightface import FacesExtractor
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import Progress
from kpstore.ingest.run import run_ingest
from kpstore.sources.faces import FacesSource

MODEL = "dinov2_tiny"
SIZE = 128
register_model(MODEL, Architecture(32, 2, 2))

Cell = tuple[int, int, int, int]
FRONTAL: Cell = (2, 2, 40, 240)


def picture(*cells: Cell) -> NDArray[np.uint8]:
    """Cells (row, column) of 32 pixels, coloured (red, green) as a face's size and score."""
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    image[..., 2] = 77
    for row, column, red, green in cells:
        image[row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32, :2] = red, green
    return image


def save(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_people(root: Path, frames: dict[str, Sequence[NDArray[np.uint8]]]) -> Path:
    """``persons/NAME/f0.png`` …, and ``fronts/NAME.png``."""
    for name, images in frames.items():
        for number, image in enumerate(images):
            save(root / "persons" / name / f"f{number}.png", image)
        save(root / "fronts" / f"{name}.png", picture(FRONTAL))
    return root


def source(root: Path) -> FacesSource:
    return FacesSource(root / "persons", root / "fronts", root)


def models(home: Path) -> dict[str, object]:
    """Options of the recipe for the models in a folder."""
    return {
        "model_pack": home / "tiny",
        "weights": home / "dinov2",
        "model": MODEL,
        "det_size": SIZE,
    }


class KillsItself(SilentObserver):
    """Kills the process once two commits are on the disk and more has been extracted."""

    def on_progress(self, progress: Progress) -> None:
        if progress.checkpoints == 2 and progress.frames_done > progress.frames_committed:
            os.kill(os.getpid(), signal.SIGKILL)


ONE_BY_ONE = Options(workers=0, checkpoint_frames=1, task_frames=1)

if __name__ == "__main__":
    data, home, store = map(Path, sys.argv[1:])
    run_ingest(
        source(data), store, FacesExtractor(**models(home)), ONE_BY_ONE, observer=KillsItself()
    )
