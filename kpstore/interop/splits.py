"""Splits in files: what videos without one are called, in which order splits come, and which names files can have."""

from __future__ import annotations

from collections.abc import Iterable

from kpstore.errors import InvalidError

UNSPLIT = "all"
"""What stands in files for the videos without a split."""
SPLIT_ORDER = ("train", "training", "dev", "val", "valid", "validation", "test")
"""The order in which data sets name their splits; others come after these, by name."""


def split_rank(split: str) -> int:
    """Return the place of a split in :data:`SPLIT_ORDER`; that after the last for any other."""
    return SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)


def check_unsplit(splits: Iterable[str]) -> None:
    """Raise :class:`InvalidError` if videos without a split would be taken for those of a split that is so called."""
    if {"", UNSPLIT} <= set(splits):
        raise InvalidError(
            f"the store has a split named {UNSPLIT!r} and videos without one; export them one by "
            "one"
        )


def check_file_names(splits: Iterable[str]) -> None:
    """Raise :class:`InvalidError` for a split whose name cannot be part of a file's, on any system."""
    for split in splits:
        if (
            any(sign in split for sign in "/\\:\0")
            or split.startswith(".")
            or not split.isprintable()
        ):
            raise InvalidError(
                f"split {split!r} cannot be part of a file name; export the other splits by name"
            )
