"""Failures of one video for one feature, which a store keeps as JSON (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import State

FORM = '{"video": reason} or {"frames": {number: reason}}'


@dataclass(frozen=True)
class Failures:
    """Why a video, or some of its frames, failed for one feature; false if nothing failed.

    Parameters
    ----------
    video : why the whole video failed; None if it did not.
    frames : reasons by frame number; discarded if the whole video failed.
    """

    video: str | None = None
    frames: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.video is not None:
            object.__setattr__(self, "video", _storable(self.video))
        frames = self.frames if self.video is None else {}
        kept = {int(n): _storable(frames[n]) for n in sorted(frames)}
        object.__setattr__(self, "frames", kept)

    def __bool__(self) -> bool:
        return self.video is not None or bool(self.frames)

    @property
    def state(self) -> State:
        """State of a finished video that has these failures."""
        return State.DONE if self.video is None else State.FAILED

    def frame_states(self, n_frames: int) -> NDArray[np.uint8]:
        """Return the state of each frame of a finished video, (n_frames,) uint8."""
        states = np.full(n_frames, self.state, dtype=np.uint8)
        states[list(self.frames)] = State.FAILED
        return states

    def of_video(self) -> Failures:
        """Return the failure of the whole video alone, which is what features of videos have."""
        return Failures(self.video)

    def to_text(self) -> str:
        """Return what a store keeps: JSON, or ``""`` if nothing failed."""
        if not self:
            return ""
        found = {"frames": self.frames} if self.video is None else {"video": self.video}
        return json.dumps(found, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Failures:
        """Return the failures that :meth:`to_text` wrote; :class:`InvalidError` for other text."""
        if not text:
            return NOTHING_FAILED
        try:
            found = json.loads(text)
            frames = {int(frame): reason or "" for frame, reason in found.get("frames", {}).items()}
            return cls((found["video"] or "") if "video" in found else None, frames)
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise InvalidError(
                f"{text[:80]!r} given as failures of a video; {FORM} needed"
            ) from None


def _storable(reason: object) -> str:
    """Return a reason as UTF-8 text; invalid characters of file names are escaped."""
    return str(reason).encode("utf-8", "backslashreplace").decode("utf-8") or "no reason was given"


NOTHING_FAILED = Failures()
