"""Splits in files: which are exported, their order, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kpstore.errors import InvalidError
from kpstore.store.store import BaseStore

UNSPLIT = "all"
"""The name in files of the videos without a split."""
SPLIT_ORDER = ("train", "training", "dev", "val", "valid", "validation", "test")
"""The usual order of splits; others come after these, by name."""


def split_rank(split: str) -> int:
    """Return the position of a split in :data:`SPLIT_ORDER`; that after the last for any other."""
    return SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)


def chosen_splits(store: BaseStore, wanted: Sequence[str] | None) -> list[str]:
    """Return the splits to export, each once: those asked for, or all by default.

    Raises
    ------
    NotFoundError
        If the store has no such split.
    InvalidError
        If videos without a split would be taken for those of a split of that name.
    """
    chosen = store.splits if wanted is None else list(dict.fromkeys(wanted))
    store.index.select(split=chosen)
    if {"", UNSPLIT} <= set(chosen):
        raise InvalidError(
            f"the store has a split named {UNSPLIT!r} and videos without one; export them one by "
            "one"
        )
    return chosen


def check_file_names(splits: Iterable[str]) -> None:
    """Raise :class:`InvalidError` for a split that cannot be part of a file name on any system."""
    for split in splits:
        if (
            any(sign in split for sign in "/\\:\0")
            or split.startswith(".")
            or not split.isprintable()
        ):
            raise InvalidError(
                f"split {split!r} cannot be part of a file name; export the other splits by name"
            )
