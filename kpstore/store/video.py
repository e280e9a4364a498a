"""One video of a store, and its failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema import fields
from kpstore.schema.failures import Failures
from kpstore.schema.feature import State
from kpstore.schema.index import nearest
from kpstore.store import format as fmt
from kpstore.store import shown
from kpstore.store.arrays import Version


@dataclass(frozen=True)
class Failure:
    """A frame that failed and why, or with ``frame`` None a whole video."""

    video_id: str
    frame: int | None
    image_path: str
    reason: str


def listed(video_id: str, failures: Failures, path_of: Callable[[int], str]) -> Iterator[Failure]:
    """Yield the failures of a video, one by one.

    Parameters
    ----------
    path_of : returns the path of a frame, by its number.
    """
    if failures.video is not None:
        yield Failure(video_id, None, "", failures.video)
    for frame, reason in failures.frames.items():
        yield Failure(video_id, frame, path_of(frame), reason)


class Video:
    """One video of a store; ``video["keypoints"]`` reads its rows of a feature, (T, …).

    Parameters
    ----------
    missing : how rows that failed or are not extracted yet are read: ``"nan"`` keeps, ``"skip"``
        drops them, ``"error"`` raises :class:`NotFoundError`.
    """

    def __init__(self, store: Version, position: int, missing: str = "nan") -> None:
        if missing not in ("nan", "skip", "error"):
            raise InvalidError(f"missing={missing!r}: use 'nan' or 'skip' or 'error' or 'compute'")
        self._store, self.position, self._missing = store, position, missing
        self.id: str = store.index.ids[position]
        self.split: str = store.index.splits[position]
        self.rows = store.index.rows(position)
        """This video's rows on the frame axis."""

    def __repr__(self) -> str:
        return f"<Video {self.id!r}, split {self.split!r}, {self.n_frames} frames>"

    def _repr_html_(self) -> str:
        facts: dict[str, str | int] = {"split": self.split, "frames": self.n_frames}
        facts["frames per second"] = f"{self.fps:g}"
        if self.width:
            facts["width × height"] = f"{self.width} × {self.height}"
        states = {f"{name} is": self.state(name).name.lower() for name in self._store.features}
        rows = {**facts, **self.annotations, **states}
        return shown.block(shown.heading(self.id), shown.table(list(rows.items())))

    def __len__(self) -> int:
        return self.n_frames

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return int(self.rows.stop - self.rows.start)

    def _scalar(self, name: str) -> Any:
        return self._store[name][self.position]

    @property
    def fps(self) -> float:
        """Frames per second; NaN if unknown."""
        return float(self._scalar("fps"))

    @property
    def width(self) -> int:
        """Frame width in pixels; 0 if unknown."""
        return int(self._scalar("width"))

    @property
    def height(self) -> int:
        """Frame height in pixels; 0 if unknown."""
        return int(self._scalar("height"))

    @property
    def annotations(self) -> dict[str, str]:
        """Text about this video, such as speaker and gloss."""
        return {name: self._scalar(name) for name in self._store.annotation_names}

    @property
    def image_paths(self) -> list[str]:
        """One path per frame, relative to the data set."""
        return list(self._store[fmt.IMAGE_PATH][self.rows])

    def image_path(self, frame: int) -> str:
        """Return the path of a frame, relative to the data set; ``""`` for a frame out of range."""
        number = fields.whole_number(frame)
        if number is None:
            raise InvalidError(
                f"frame {fields.shown(frame)} of {self.id!r} asked for; use a whole number"
            )
        if not 0 <= number < self.n_frames:
            return ""
        return str(self._store[fmt.IMAGE_PATH][self.rows.start + frame])

    def state(self, feature: str) -> State:
        """Return how far this video has come for a feature."""
        self._store.feature(feature)
        return State(int(self._scalar(fmt.state_name(feature))))

    def __getitem__(self, name: str) -> NDArray[Any]:
        array, owner = self._store[name], self._owner(name)
        axis = array.dims[0]
        if axis not in ("frame", "video"):
            own = [name for name in self._store if self._store[name].dims[0] in ("frame", "video")]
            hint = nearest(name, own) or "read it from the store"
            raise NotFoundError(
                f"{name!r} has a row for each {axis}, not for frames or videos; {hint}"
            )
        framewise = axis == "frame"
        values: NDArray[Any] = array[self.rows] if framewise else array[self.position]
        if self._missing == "nan":
            return values
        usable = self._usable(owner, framewise)
        if self._missing == "error" and not usable.all():
            raise NotFoundError(
                f"{int((~usable).sum())} of {usable.size} rows of {name!r} of video {self.id!r} "
                "failed or are not extracted yet; use missing='skip' to leave them out or "
                "missing='nan' to keep them"
            )
        return values[usable] if framewise else values

    def _owner(self, name: str) -> str | None:
        """Return the feature that an array belongs to, after comparing it with its arrays."""
        described = self._store.described
        owner = next((f for f, stored in described.items() if name in stored.spec.arrays), None)
        if owner is not None:
            self._store.feature(owner)  # not those of the others, which take a while to open
        return owner

    def _usable(self, owner: str | None, framewise: bool) -> NDArray[np.bool_]:
        """Return which rows of a feature are done, (T,) or (1,) bool; all if none owns them."""
        if owner is None:
            return np.ones(self.n_frames if framewise else 1, dtype=bool)
        if framewise:
            return np.asarray(self._store[fmt.status_name(owner)][self.rows] == State.DONE)
        return np.array([self.state(owner) == State.DONE])
