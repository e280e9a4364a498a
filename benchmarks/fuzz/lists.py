"""Fuzzed lists, tables, and settings that people write."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from kpstore.sources.lip_lists import read_lists
from kpstore.sources.phoenix import PhoenixSource

PHOENIX = "annotations/manual/PHOENIX-2014-T.dev.corpus.csv"


def phoenix(path: Path) -> None:
    """List a data set whose list this is."""
    frames = path.parents[2] / "features/fullFrame-210x260px/dev/a"
    frames.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(frames / "0.png")
    PhoenixSource(str(path.parents[2]), splits=("dev",)).scan()


def lip_list(path: Path) -> None:
    """Read a list of utterances."""
    config = path.parents[1] / "conf" / "conf.yaml"
    config.parent.mkdir()
    config.write_text("datamodule: {data_config: {train_dir: lists}}")
    list(read_lists(config))


SPLITS = (
    "video_id,split\na,train\nb,dev\n",
    "sep=;\nname;subset\na;train\n",
    '{"a": "train"}',
    '{"train": ["a", "b"]}',
)
PHOENIX_LIST = "name|video|start|end|speaker|orth|translation\na|a/1/*.png|-1|-1|S1|G|text\n"
LIP_CONFIG = "datamodule:\n  data_config:\n    train_dir: &t lists\n    test_dir: *t\n"
LIP_LIST = '[["a.wav", "a.npz", 32000]]'
FACE_LIST = json.dumps(list(range(68)))
