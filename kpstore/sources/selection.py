"""Which part of a data set a source lists: some of its splits, the first videos of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from kpstore.errors import NotFoundError
from kpstore.options import Option, check_limits

T = TypeVar("T")
Splits = Annotated[
    tuple[str, ...] | None,
    Option("Only these splits, as `train dev` or `train,dev`; all by default.", "SPLIT..."),
]
MaxVideos = Annotated[int | None, Option("Only the first N videos of each split.", "N", least=1)]


class Selecting(Protocol):
    """A source that can list a part of its data set."""

    @property
    def splits(self) -> tuple[str, ...] | None:
        """Only these splits; None for all."""

    @property
    def max_videos_per_split(self) -> int | None:
        """Only the first videos of each split."""


def complete_source(source: Selecting, *paths: str) -> None:
    """Check and complete a frozen source: paths become absolute, splits a tuple."""
    for name in paths:
        if getattr(source, name) is not None:  # workers may run in another folder
            object.__setattr__(source, name, Path(getattr(source, name)).absolute())
    if source.splits is not None:
        object.__setattr__(source, "splits", tuple(source.splits))
    check_limits(source)


def check_splits(wanted: Iterable[str] | None, known: Collection[str], place: Path) -> None:
    """Raise :class:`NotFoundError` if a data set has no split of a wanted name."""
    unknown = [split for split in wanted or () if split not in known]
    if unknown:
        raise NotFoundError(f"split {unknown[0]!r} not found in {place}; there are {list(known)}")


def part_of(source: Selecting) -> dict[str, object]:
    """Return which part of its data set a source lists, as its provenance says it."""
    return {
        "splits": None if source.splits is None else list(source.splits),
        "max_videos_per_split": source.max_videos_per_split,
    }


def selected(source: Selecting, items: Iterable[T], split_of: Callable[[T], str]) -> Iterator[T]:
    """Yield those items that are in the part of its data set that a source lists."""
    count: Counter[str] = Counter()
    for item in items:
        split = split_of(item)
        count[split] += 1
        if source.splits is not None and split not in source.splits:
            continue
        if source.max_videos_per_split is None or count[split] <= source.max_videos_per_split:
            yield item
