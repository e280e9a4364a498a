"""Small stores made from a seed."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import kpstore
from kpstore.backends.base import Codec
from kpstore.schema.feature import FeatureRows
from tests.fakes import fake_spec, record

LENGTHS = {"a": 5, "b": 9, "c": 0, "d": 20}
SPLITS = {"a": "train", "b": "dev", "c": "train", "d": "train"}
PROVENANCE = {"extractor": "fake", "parameters": {"scale": 1.0}}


def rows_of(video_id: str, n_frames: int, seed: int = 0) -> FeatureRows:
    rng = np.random.default_rng([seed, *video_id.encode()])
    values = rng.standard_normal((n_frames, 5, 3)).astype(np.float32)
    return FeatureRows(values, {"detected": rng.integers(0, 2, (n_frames, 2)).astype(bool)})


def fill(
    store: kpstore.Store,
    *,
    done: tuple[str, ...] = ("a", "b"),
    chunk_rows: int = 4,
    compression: Codec = "raw",
) -> kpstore.Store:
    """Add four videos and the feature ``points``, written for ``done``, else pending."""
    lengths: Mapping[str, int] = LENGTHS
    with store.transaction("fill") as tx:
        tx.add_videos([record(v, n, SPLITS[v], gloss=v.upper()) for v, n in lengths.items()])
        tx.add_feature(replace(fake_spec(chunk_rows), compression=compression), PROVENANCE)
        for video_id in done:
            tx.write("points", video_id, rows_of(video_id, lengths[video_id]))
    return store.at()


def copy_store(location: str, folder: Path) -> str:
    """Copy a store on the disk into a folder, under its own name."""
    source, target = Path(location), folder / Path(location).name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return str(target)


def format_1(folder: Path, ending: str) -> str:
    """Return the path of a store of format 1, made by an old kpstore (``.kps`` or ``.h5``).

    ``fill`` with 16 rows a chunk (tag ``first``), then video ``d`` with a failed frame (tag
    ``版本1``), then other rows of video ``a``. In Icechunk a branch ``seite-ö`` starts at
    ``first``.
    """
    with tarfile.open(Path(__file__).parents[1] / "data" / "format1.tar.xz") as archive:
        wanted = [member for member in archive if member.name.startswith(f"format1{ending}")]
        archive.extractall(folder, wanted, filter="data")
    return str(folder / f"format1{ending}")
