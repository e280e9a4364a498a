"""What was removed from a store, as its later versions have it on record (docs/format.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from kpstore.errors import CorruptError
from kpstore.schema.fields import whole_number


@dataclass(frozen=True)
class Removed:
    """One video or feature that was removed.

    Parameters
    ----------
    rows : number of its rows: frames of a video; frames, or videos, of a feature.
    time : when it was removed, in UTC.
    """

    rows: int
    time: datetime


@dataclass(frozen=True)
class Removals:
    """All videos and features that were removed from a store, by id and by name.

    Removed videos stay out: nothing adds them again until they are taken back.
    """

    videos: Mapping[str, Removed] = field(default_factory=dict)
    features: Mapping[str, Removed] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.videos or self.features)

    def and_(self, other: Removals) -> Removals:
        """Return what either one holds; of two removals of one name, the other one's."""
        return Removals({**self.videos, **other.videos}, {**self.features, **other.features})

    def without(self, videos: Iterable[str]) -> Removals:
        """Return the record after videos were taken back."""
        gone = set(videos)
        kept = {name: one for name, one in self.videos.items() if name not in gone}
        return Removals(kept, self.features)

    def stay_out(self, videos: Sequence[str], location: str) -> str:
        """Return one line that says of removed videos that they stay out, and how to change it."""
        first = videos[0]
        time = self.videos[first].time
        if len(videos) == 1:
            what, they, it = f"video {first!r} was", "stays", "it"
        else:
            what, they, it = f"{len(videos)} videos, the first {first!r}, were", "stay", "one"
        return (
            f"{what} removed from {location} on {time:%Y-%m-%d} and {they} out; 'kpstore remove "
            f"{location} --video ID --take-back' lets {it} in again"
        )

    def to_json(self) -> dict[str, dict[str, dict[str, object]]]:
        """Return the record as a version keeps it."""
        return {
            kind: {name: {**asdict(one), "time": one.time.isoformat()} for name, one in of.items()}
            for kind, of in (("videos", self.videos), ("features", self.features))
        }

    @classmethod
    def from_json(cls, found: object) -> Removals:
        """Return what :meth:`to_json` wrote; :class:`CorruptError` for anything else."""
        try:
            return cls(**{kind: _entries(found[kind]) for kind in ("videos", "features")})  # type: ignore[index]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CorruptError(
                f"the store's record of what was removed cannot be read: {error!r}"
            ) from None


def _entries(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Removed]:
    entries = {}
    for name, one in found.items():
        rows, time = whole_number(one["rows"]), datetime.fromisoformat(one["time"])
        # Of strangers: in years beyond these, no local time can be computed.
        if rows is None or rows < 0 or time.tzinfo is None or not 1970 <= time.year < 9999:
            raise ValueError(f"{name!r}: {one!r}")
        entries[str(name)] = Removed(rows, time)
    return entries
