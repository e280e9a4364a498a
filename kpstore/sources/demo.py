"""A small data set in the layout of PHOENIX-2014-T, made of photographs from other packages."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kpstore.errors import ExistsError, MissingExtraError
from kpstore.sources.phoenix import FRAMES

WIDTH, HEIGHT = 210, 260
_MARK = "made-by-kpstore-demo"

PHOTOGRAPHS = {
    # package and file: what it shows, and the part of it (left, top, right, bottom) that a signer's
    # picture would show
    ("skimage", "data/astronaut.png"): (0.05, 0.0, 0.80, 0.93),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"): (0.06, 0.0, 0.94, 0.91),
}


def write_demo_dataset(target: Path, *, videos: int = 3, frames: int = 10) -> Path:
    """Write a data set: ``videos`` in train, one each in dev and test, of a few photographs.

    The camera pans and zooms over a photograph from frame to frame; every other video is mirrored.
    The same call always writes the same pictures.

    Parameters
    ----------
    target : a folder that is not there, is empty, or was written by this function before.
    frames : of the first video; the others are a little longer.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    ExistsError
        If something else is there.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        if not (target / _MARK).exists():
            raise ExistsError(
                f"{target} exists and is not empty; choose another folder for the demo data"
            )
        return target
    photographs = [_photograph(package, name, box) for (package, name), box in PHOTOGRAPHS.items()]
    number = 0
    for split, count in {"train": videos, "dev": 1, "test": 1}.items():
        rows = []
        for _ in range(count):
            video = f"{number + 1:02d}August_2026_Saturday_demo-{number}"
            folder = target / FRAMES / split / video
            folder.mkdir(parents=True)
            photograph = photographs[number % len(photographs)]
            pictures = _pan(
                ImageOps.mirror(photograph) if number % 2 else photograph, frames + number, number
            )
            for frame, picture in enumerate(pictures, start=1):
                picture.save(folder / f"images{frame:04d}.png")
            rows.append(_annotation(video, number))
            number += 1
        _write_list(target, split, rows)
    (target / _MARK).touch()
    return target


def _photograph(package: str, name: str, box: tuple[float, float, float, float]) -> Image.Image:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtraError(f"the demo's photographs ({package})", extra="demo")
    with Image.open(Path(spec.origin).parent / name) as image:
        width, height = image.size
        left, top, right, bottom = box
        return image.convert("RGB").crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )


def _pan(photograph: Image.Image, frames: int, seed: int) -> Iterator[Image.Image]:
    """Yield pictures of a slowly moving, slowly zooming camera."""
    phase = np.random.default_rng(seed).uniform(0, 2 * math.pi)
    width, height = photograph.size
    # The largest window of the wanted shape, then between 84 and 100 % of it.
    scale = min(width / WIDTH, height / HEIGHT)
    for frame in range(frames):
        angle = phase + 2 * math.pi * frame / 40
        zoom = scale * (0.92 + 0.08 * math.sin(angle))
        window_x, window_y = WIDTH * zoom, HEIGHT * zoom
        x = (width - window_x) * (0.5 + 0.4 * math.cos(angle))
        y = (height - window_y) * (0.5 + 0.4 * math.sin(1.3 * angle))
        box = (x, y, x + window_x, y + window_y)
        yield photograph.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)


def _annotation(video: str, number: int) -> dict[str, str]:
    return {
        "name": video,
        "video": f"{video}/1/*.png",
        "start": "-1",
        "end": "-1",
        "speaker": f"Signer{number % len(PHOTOGRAPHS) + 1:02d}",
        "orth": "MORGEN SONNE NORD WOLKE" if number % 2 else "HEUTE NACHT STERN KLAR",
        "translation": "morgen scheint die sonne" if number % 2 else "heute nacht ist es klar",
    }


def _write_list(target: Path, split: str, rows: list[dict[str, str]]) -> None:
    path = target / "annotations" / "manual" / f"PHOENIX-2014-T.{split}.corpus.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter="|", quoting=csv.QUOTE_NONE, lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
