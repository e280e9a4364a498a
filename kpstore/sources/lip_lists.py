"""Lists of a lip-reading configuration: YAML that names folders, JSON with utterances."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.lips import EMBEDDING_ENDING
from kpstore.user_files import read_json, read_yaml, unicode_forms

SPLIT_DIRS = {"train_dir": "train", "valid_dir": "val", "test_dir": "test"}
"""Keys of ``datamodule.data_config``, and the splits that they stand for."""
LISTS = ("s1.json", "s2.json")
"""Lists of ``[wav, npz, n_samples]``; ``mix.json`` names no npz files."""


@dataclass
class Utterances:
    """What lists name, each file once.

    Parameters
    ----------
    splits : split by id, in the lists' order; an id is a file's path in its root without ``.npz``.
    twice : ids that are listed in a further split too; they belong to the first.
    """

    splits: dict[str, str] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)

    def add(self, utterance: str, split: str) -> None:
        """Note an entry."""
        if self.splits.setdefault(utterance, split) != split:
            self.twice.add(utterance)


def read_utterances(config: Path, root: Path) -> Utterances:
    """Return the utterances of all lists of a configuration.

    Raises
    ------
    MissingExtraError
        If PyYAML is not installed.
    NotFoundError, InvalidError
        As :func:`read_lists` does, and if a file does not lie in ``root``.
    """
    utterances = Utterances()
    for split, path in read_lists(config, root):
        utterances.add(utterance_id(path, root, config), split)
    return utterances


def utterance_id(path: Path, root: Path, config: Path) -> str:
    """Return the id of a listed file: its path in ``root`` without ``.npz``, with slashes."""
    for whole, base in ((path, root), (path.resolve(), root.resolve())):
        if whole.is_relative_to(base) and ".." not in whole.parts:
            return whole.relative_to(base).as_posix().removesuffix(".npz")
    raise InvalidError(
        f"{config} lists {path}, which is not in {root}; give a folder that holds all files of the "
        "lists"
    )


def read_lists(config: Path, root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Yield split and npz file of every entry of every list; the same file comes many times.

    Relative folders and files are looked for in ``root``, in the folder above the configuration's,
    and beside it.

    Raises
    ------
    NotFoundError, InvalidError
        If the configuration or a list is not there, or is not as it should be; the message names
        the entry.
    """
    for split, folder in list_folders(config).items():
        for path in read_split(config, split, folder, root):
            yield split, path


def read_split(config: Path, split: str, folder: str, root: Path | None = None) -> Iterator[Path]:
    """Yield the npz file of every entry of one split's lists; see :func:`read_lists`."""
    above = config.resolve().parent.parent
    bases = (*([] if root is None else [root]), above, config.resolve().parent)
    place = _find(folder, bases)
    lists = [place / name for name in LISTS if (place / name).is_file()]
    if not lists:
        raise NotFoundError(f"{config}: split {split!r} has no {' or '.join(LISTS)} in {place}")
    for path in lists:
        for npz in _entries(path):
            yield _find(npz, bases)


def list_folders(config: Path) -> dict[str, str]:
    """Return the folder of each split's lists, in the order train, val, test.

    Raises
    ------
    MissingExtraError
        If PyYAML is not installed.
    NotFoundError, InvalidError
        If the file does not exist, is not YAML, or it names no folders.
    """
    if not config.is_file():
        raise NotFoundError(
            f"no configuration at {config}: it "
            f"{'is a folder' if config.is_dir() else 'does not exist'}"
        )
    named: Any = read_yaml(config, extra="lips")
    for key in ("datamodule", "data_config"):
        named = named.get(key) if isinstance(named, dict) else None
    named = named if isinstance(named, dict) else {}
    found = {
        split: named[key] for key, split in SPLIT_DIRS.items() if isinstance(named.get(key), str)
    }
    if not found:
        raise InvalidError(f"{config}: no {', '.join(SPLIT_DIRS)} in datamodule.data_config")
    return found


def _find(name: str, bases: Sequence[Path]) -> Path:
    places = (base / form for form in unicode_forms(name) for base in bases)
    return next((place for place in places if _is_there(place)), bases[0] / name)


def _is_there(path: Path) -> bool:
    """Whether there is a file or folder, or the embedding of crops that are gone."""
    return path.exists() or (
        path.suffix == ".npz" and path.with_name(f"{path.stem}{EMBEDDING_ENDING}").exists()
    )


def _entries(path: Path) -> Iterator[str]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise InvalidError(
            f"{path}: a list of [wav, npz, samples] is needed, found {type(entries).__name__}"
        )
    for number, entry in enumerate(entries):
        right = isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], str)
        if not right or not entry[1].endswith(".npz"):
            raise InvalidError(
                f"{path}: entry {number} is {json.dumps(entry)[:80]}; [wav, npz, samples] is needed"
            )
        yield entry[1]
