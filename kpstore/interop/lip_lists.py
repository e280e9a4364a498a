"""The file lists of a lip-reading configuration: YAML that names folders, JSON that lists utterances."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from kpstore.errors import InvalidError, NotFoundError
from kpstore.interop.files import check_there

SPLIT_DIRS = {"train_dir": "train", "valid_dir": "val", "test_dir": "test"}
"""Keys of ``datamodule.data_config``, and the splits that they stand for."""
LISTS = ("s1.json", "s2.json")
"""Lists of ``[wav, npz, n_samples]``; ``mix.json`` names no npz files."""


def read_lists(config: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield split and npz file of every entry of every list; the same file comes many times.

    Relative folders and files are looked for in ``root``, in the folder above the configuration's, and beside it.

    Raises
    ------
    NotFoundError, InvalidError
        If the configuration or a list is not there, or is not as it should be; the message names the entry.
    """
    check_there(config, "configuration")
    bases = (root, config.resolve().parent.parent, config.resolve().parent)
    for split, folder in _folders(config):
        place = _find(folder, bases)
        lists = [place / name for name in LISTS if (place / name).is_file()]
        if not lists:
            raise NotFoundError(f"{config}: split {split!r} has no {' or '.join(LISTS)} in {place}")
        for path in lists:
            for npz in _entries(path):
                yield split, _find(npz, bases)


def _folders(config: Path) -> list[tuple[str, str]]:
    try:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidError(f"{config} is no YAML: {' '.join(str(error).split())}") from None
    named: Any = document
    for key in ("datamodule", "data_config"):
        named = named.get(key) if isinstance(named, dict) else None
    named = named if isinstance(named, dict) else {}
    found = [(split, named[key]) for key, split in SPLIT_DIRS.items() if isinstance(named.get(key), str)]
    if not found:
        raise InvalidError(f"{config}: no {', '.join(SPLIT_DIRS)} in datamodule.data_config")
    return found


def _find(name: str, bases: Sequence[Path]) -> Path:
    return next((base / name for base in bases if _is_there(base / name)), bases[0] / name)


def _is_there(path: Path) -> bool:
    """Whether there is a file or folder, or the embedding of crops that are gone."""
    return path.exists() or (path.suffix == ".npz" and path.with_name(f"{path.stem}_embedding.npz").exists())


def _entries(path: Path) -> Iterator[str]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidError(f"{path} is no JSON: {error}") from None
    if not isinstance(entries, list):
        raise InvalidError(f"{path}: a list of [wav, npz, samples] is needed, found {type(entries).__name__}")
    for number, entry in enumerate(entries):
        right = isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], str)
        if not right or not entry[1].endswith(".npz"):
            raise InvalidError(f"{path}: entry {number} is {json.dumps(entry)[:80]}; [wav, npz, samples] is needed")
        yield entry[1]
