"""A foreign format of nothing but what the test says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kpstore.interop.base import ImportedFeature, ImportedVideo, imported
from kpstore.schema.feature import FeatureRows, FeatureSpec
from tests.fakes import fake_spec, record

PERSON = FeatureSpec("person", (2,), ("axis",), axis="video", chunk_rows=4)


@dataclass
class MadeUp:
    """A document: videos of given lengths.

    ``points`` of each frame and ``person`` of each video.
    """

    lengths: dict[str, int]
    failed: dict[str, dict[int, str]] = field(default_factory=dict)
    error_at: str = ""
    without: tuple[str, ...] = ()
    scale: float = 1.0
    name: str = "made up"
    notes: Sequence[str] = ("no notes",)

    @property
    def features(self) -> tuple[ImportedFeature, ...]:
        return tuple(
            ImportedFeature(
                spec, imported("made up", {"lengths": len(self.lengths)}, scale=self.scale)
            )
            for spec in (fake_spec(8), PERSON)
            if spec.name not in self.without
        )

    @property
    def n_frames(self) -> int:
        return sum(self.lengths.values())

    def videos(self) -> Iterator[ImportedVideo]:
        for video_id, n in self.lengths.items():
            if video_id == self.error_at:
                raise ValueError("torn")
            rows = {
                "points": points(video_id, n),
                "person": FeatureRows(np.full((1, 2), n, dtype=np.float32)),
            }
            kept = {name: block for name, block in rows.items() if name not in self.without}
            failed = {"points": self.failed[video_id]} if video_id in self.failed else {}
            yield ImportedVideo(record(video_id, n), kept, failed)


def points(video_id: str, n_frames: int) -> FeatureRows:
    rng = np.random.default_rng([*video_id.encode()])
    values = rng.standard_normal((n_frames, 5, 3)).astype(np.float32)
    return FeatureRows(values, {"detected": rng.random((n_frames, 2)) < 0.5})


def path_of(tmp_path: Path) -> str:
    return str(tmp_path / "s.kps")


def same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal in type, order and every bit but those of NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
        ):
            return False
        return (
            same(a.tolist(), b.tolist())
            if a.dtype == object
            else np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))
