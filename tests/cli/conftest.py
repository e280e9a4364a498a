"""A command line with a fast, made-up recipe, and data sets to run it on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kpstore import plugins
from kpstore.cli.main import run
from tests.fakes import FakeExtractor
from tests.store.data import copy_store

if "fake" not in plugins.names("kpstore.extractors"):
    plugins.register("kpstore.extractors", "fake", FakeExtractor)

LENGTHS = {"train": {"t1": 5, "t2": 20}, "dev": {"d1": 7}}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


Kpstore = Callable[..., Result]


@dataclass(frozen=True)
class Made:
    """A data set, and a store that holds all of it; tests get copies."""

    dataset: Path
    store: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    found = Made(make_dataset(folder), folder / "store.kps")
    words = ("ingest", "phoenix", found.dataset, found.store, "--recipe", "fake", "--workers", 0)
    assert run([str(word) for word in words]) == 0
    return found


@pytest.fixture
def kpstore_(capfd: pytest.CaptureFixture[str]) -> Kpstore:
    """Run a command in this process."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def dataset(made: Made, tmp_path: Path) -> Path:
    """A small PHOENIX-2014-T of noise: 25 frames in train, 7 in dev."""
    return Path(shutil.copytree(made.dataset, tmp_path / made.dataset.name))


@pytest.fixture
def ingested(made: Made, dataset: Path, tmp_path: Path) -> Path:
    """A store that holds all of it."""
    return Path(copy_store(str(made.store), tmp_path))


def make_dataset(folder: Path) -> Path:
    root = folder / "PHOENIX-2014-T"
    rng = np.random.default_rng(0)
    for split, videos in LENGTHS.items():
        rows = ["name|video|start|end|speaker|orth|translation"]
        for video, n_frames in videos.items():
            folder = root / "features" / "fullFrame-210x260px" / split / video
            folder.mkdir(parents=True)
            for number in range(n_frames):
                pixels = rng.integers(0, 250, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"images{number + 1:04d}.png")
            rows.append(f"{video}|{video}/1/*.png|-1|-1|S1|GLOSS|text")
        lists = root / "annotations" / "manual"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"PHOENIX-2014-T.{split}.corpus.csv").write_text(
            "\n".join(rows) + "\n", encoding="utf-8"
        )
    return root
