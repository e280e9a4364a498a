"""Mouth crops by lists, and an ingest of them that kills itself: run as a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kpstore.extractors.lip_resnet18 import LipResnet18Extractor
from kpstore.ingest.run import run_ingest
from kpstore.sources.lips import LipsSource
from tests.ingest.people import ONE_BY_ONE, KillsItself

LISTS = {
    ("tr", "train_dir"): ("a", "b"),
    ("cv", "valid_dir"): ("c", "a2"),
    ("tt", "test_dir"): ("d",),
}
"""Utterances by folder and key of a split's lists."""
LENGTHS = {"a": 2, "b": 3, "c": 2, "a2": 1, "d": 2}


def crops(name: str) -> NDArray[np.uint8]:
    return np.random.default_rng(ord(name[0]) + len(name)).integers(
        0, 256, (LENGTHS[name], 96, 96), dtype=np.uint8
    )


def write_mouths(root: Path) -> Path:
    """``mouths/x.npz``, ``configs/LRS2.yml``, and its lists, which name every file twice.

    Returns the root.
    """
    named = []
    for (folder, key), names in LISTS.items():
        place = root / "lists" / folder
        place.mkdir(parents=True)
        for number in (1, 2):
            entries = [["x.wav", f"mouths/{name}.npz", 32000] for name in names]
            (place / f"s{number}.json").write_text(
                json.dumps(entries[::-1] if number == 2 else entries)
            )
        named.append(f"    {key}: lists/{folder}\n")
    (root / "configs").mkdir()
    (root / "configs" / "LRS2.yml").write_text(f"datamodule:\n  data_config:\n{''.join(named)}")
    (root / "mouths").mkdir()
    for name in LENGTHS:
        np.savez_compressed(root / "mouths" / f"{name}.npz", data=crops(name))
    return root


if __name__ == "__main__":
    data, weights, store = map(Path, sys.argv[1:])
    extractor = LipResnet18Extractor(weights=weights, batch_frames=2)
    run_ingest(
        LipsSource(data / "configs" / "LRS2.yml"),
        store,
        extractor,
        ONE_BY_ONE,
        observer=KillsItself(),
    )
