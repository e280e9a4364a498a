"""What splits have in common: names, frames, people, values, near-copies.

A test set should share none of these with the training set. Videos without a split, and pairs
within one split, are not reported. All searches take a few kB of memory for each video and 12 bytes
for each frame, whatever the size of a row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.inspect.moments import Moments, measure_runs
from kpstore.schema.feature import State
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

Kind = Literal["name", "paths", "signer", "frames", "near"]
KINDS: dict[Kind, str] = {
    "name": "the same id, apart from case, ending and the name of the split",
    "paths": "the same frame paths, apart from case, ending and the name of the split",
    "signer": "the same person",
    "frames": "the same values in frames",
    "near": "nearly the same values",
}

SIGNER_COLUMNS = ("signer", "speaker")
"""Annotations that name a person unless another one is chosen."""

DECIMALS = 4
"""Frames are the same if all values are, rounded to a ten-thousandth of the picture."""

MIN_SHARED = 0.1
"""Smallest share of the shorter video's frames: a few blank frames in common are no copy."""

NEAR = 0.1
"""Largest difference between the descriptors of near-copies.

A descriptor is the mean and the standard deviation over time of each value. The difference is a
root mean square in units of that value's deviation over all videos. Clips whose points were shaken
by 0.002 of the picture, or that lost a twentieth of their frames, came to 0.06 to 0.09; other clips
lay above 0.3.
"""

NEAR_LENGTHS = 1.25
"""Largest ratio of the lengths of near-copies."""

_MAX_VALUES = 1024
"""Values of a row in a descriptor; longer rows are sampled evenly."""
_BLOCK_BYTES = 8 * 2**20
_PAIR_ROWS = 512


@dataclass(frozen=True)
class Shared:
    """One thing that two or more splits have in common.

    Parameters
    ----------
    kind : one of :data:`KINDS`.
    splits : names of the splits.
    videos : ids, one from each split; for a person, the first one.
    detail : how much is shared, as text.
    """

    kind: Kind
    splits: tuple[str, ...]
    videos: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class SplitCheck:
    """Result of :func:`check_splits`.

    Parameters
    ----------
    feature : the feature whose values were compared; None if the store has none on frames.
    signer : the annotation that was compared; None if people were not compared.
    """

    snapshot: str
    splits: tuple[str, ...]
    videos: int
    feature: str | None
    signer: str | None
    shared: tuple[Shared, ...]

    def __bool__(self) -> bool:
        """Whether anything is shared."""
        return bool(self.shared)

    def counts(self) -> dict[Kind, int]:
        """Return the number of findings of each kind."""
        return {kind: sum(found.kind == kind for found in self.shared) for kind in KINDS}

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**asdict(self), "counts": self.counts()}


def check_splits(
    store: BaseStore,
    *,
    feature: str | None = None,
    signer: str | None = None,
    signers: bool = True,
    near: float = NEAR,
) -> SplitCheck:
    """Return everything that several splits have in common.

    Parameters
    ----------
    feature : feature of frames whose values are compared; by default ``keypoints``, or else the
        first one.
    signer : annotation that names a person; by default ``signer`` or ``speaker``.
    signers : whether to compare people; many data sets share them on purpose.
    near : largest difference of near-copies; see :data:`NEAR`.

    Raises
    ------
    NotFoundError
        If the store has no such feature or annotation.
    InvalidError
        If the feature belongs to videos, or ``near`` is negative.
    """
    if not near >= 0:
        raise InvalidError(f"near={near}: use 0 or more")
    store = store.checked()
    feature = _frame_feature(store, feature)
    column = _signer_column(store, signer) if signers else None
    found = [*_same_names(store), *_same_paths(store)]
    found += [] if column is None else _same_people(store, column)
    found += [] if feature is None else _same_values(store, feature, near)
    splits = tuple(split for split in store.splits if split)
    return SplitCheck(store.snapshot, splits, len(store.index), feature, column, tuple(found))


def _frame_feature(store: BaseStore, name: str | None) -> str | None:
    on_frames = [f for f, stored in store.features.items() if stored.spec.axis == "frame"]
    if name is None:
        return "keypoints" if "keypoints" in on_frames else next(iter(on_frames), None)
    if store.feature(name).axis != "frame":
        raise InvalidError(
            f"feature {name!r} belongs to videos; splits are compared by a feature of frames"
        )
    return name


def _signer_column(store: BaseStore, name: str | None) -> str | None:
    if name is None:
        return next((column for column in SIGNER_COLUMNS if column in store.annotation_names), None)
    if name not in store.annotation_names:
        raise NotFoundError(
            f"annotation {name!r} not found; this store has {store.annotation_names or 'none'}"
        )
    return name


# -- names and paths -------------------------------------------------------------------------------


def _normalizer(splits: Sequence[str]) -> Callable[[str], str]:
    """Return a function that removes from a path what often differs between copies of a data set.

    These are case, endings, folders named after a split, and kinds of slash. A frame number
    (``#3``) stays, and so does ``""``.
    """
    usual = {"train", "dev", "val", "valid", "test", "", "."}
    dropped = {split.casefold() for split in splits} | usual

    @lru_cache(maxsize=1)  # the frames of a video follow each other
    def normal_folder(folder: str) -> str:
        parts = unicodedata.normalize("NFC", folder).casefold().split("/")
        return "/".join(part for part in parts if part not in dropped)

    def normal(path: str) -> str:
        folder, _, file = path.replace("\\", "/").rpartition("/")
        name, _, number = file.casefold().partition("#")
        stem = re.sub(r"[.](?=[a-z0-9]*[a-z])[a-z0-9]{1,5}$", "", name)
        return f"{normal_folder(folder)}/{stem}#{number}" if path else ""

    return normal


def _same_names(store: BaseStore) -> Iterator[Shared]:
    normal, ids = _normalizer(store.splits), store.index.ids.tolist()
    keys = np.array([hash(normal(video_id)) for video_id in ids], dtype=np.int64)
    for pair in _pairs(store, keys, np.arange(len(keys))):
        yield _shared(store, "name", pair, "")


def _same_paths(store: BaseStore) -> Iterator[Shared]:
    """Yield pairs of videos in two splits that share paths of frames."""
    normal, total = _normalizer(store.splits), store.index.total_frames
    keys = np.zeros(total, dtype=np.int64)  # hashes: all paths might not fit into memory
    if total:
        paths = store[fmt.IMAGE_PATH]
        for start in range(0, total, paths.chunk_rows):
            block = [normal(path) for path in paths[start : start + paths.chunk_rows]]
            keys[start : start + len(block)] = [hash(path) if path else 0 for path in block]
    rows = np.flatnonzero(keys)
    owner = store.index.video_of(rows)
    for pair, n_frames in _pairs(store, keys[rows], owner).items():
        shorter = int(store.index.n_frames[list(pair)].min())
        yield _shared(store, "paths", pair, f"{n_frames} of {shorter} frames")


def _pairs(
    store: BaseStore, keys: NDArray[np.int64], owner: NDArray[np.int64]
) -> dict[tuple[int, int], int]:
    """Return pairs of videos in different splits that share keys, and the number of these keys.

    If many videos share a key, each is paired with one video of each other split, not with all.
    """
    splits = store.index.splits.astype(str)
    order = np.lexsort((owner, keys))
    order = order[splits[owner[order]] != ""]
    keys, owner = keys[order], owner[order]
    # A key that a video holds several times, such as a still picture, is shared as often as both
    # videos hold it.
    first = np.flatnonzero((np.diff(keys, prepend=0) != 0) | (np.diff(owner, prepend=-1) != 0))
    times = np.diff(np.append(first, len(keys)))
    keys, owner = keys[first], owner[first]
    code = np.unique(splits, return_inverse=True)[1][owner]
    # Two splits at a time: a third split between them would hide what they share.
    found_pairs = [np.empty((0, 2), dtype=np.int64)]
    for two in combinations(np.unique(code).tolist(), 2):
        places = np.flatnonzero(np.isin(code, two))
        there = _in_another_split(keys[places], code[places])
        found_pairs.append(np.stack([places[there >= 0], places[there[there >= 0]]], axis=1))
    here, there = np.concatenate(found_pairs).T
    pairs = np.stack([owner[here], owner[there]], axis=1)
    found, which = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)
    counts = np.bincount(
        which.reshape(-1), weights=np.minimum(times[here], times[there]), minlength=len(found)
    )
    return {(a, b): int(n) for (a, b), n in zip(found.tolist(), counts.tolist(), strict=True)}


def _in_another_split(keys: NDArray[np.int64], split: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each sorted key the place of an equal one in another split, or -1; pairs once."""
    if len(keys) == 0:
        return np.empty(0, dtype=np.int64)
    begins = np.flatnonzero((np.diff(keys, prepend=0) != 0) | (np.diff(split, prepend=-1) != 0))
    run = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(keys))))
    before = begins[run] - 1
    after = np.append(begins[1:], len(keys))[run]
    has_before = (before >= 0) & (keys[before] == keys)
    # The last key of a first run is left out: all of the next run are paired with it.
    has_after = (
        (after < len(keys))
        & (keys[after % len(keys)] == keys)
        & (np.arange(len(keys)) != after - 1)
    )
    return np.where(has_before, before, np.where(has_after, after, -1)).astype(np.int64)


def _shared(store: BaseStore, kind: Kind, pair: tuple[int, int], detail: str) -> Shared:
    ids, splits = store.index.ids, store.index.splits
    return Shared(
        kind, tuple(str(splits[p]) for p in pair), tuple(str(ids[p]) for p in pair), detail
    )


def _same_people(store: BaseStore, column: str) -> Iterator[Shared]:
    people = np.asarray(store[column]).tolist() if len(store.index) else []
    where: dict[str, dict[str, list[int]]] = {}
    for position, (name, split) in enumerate(zip(people, store.index.splits, strict=True)):
        if (person := str(name).strip()) and split:
            where.setdefault(person, {}).setdefault(split, []).append(position)
    for person, by_split in sorted(where.items()):
        if len(by_split) > 1:
            counts = ", ".join(f"{len(videos)} in {split}" for split, videos in by_split.items())
            first = tuple(str(store.index.ids[videos[0]]) for videos in by_split.values())
            yield Shared("signer", tuple(by_split), first, f"{column} {person}: {counts}")


# -- values ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Values:
    """Hashes of frames and descriptors of videos, by which values are compared.

    Parameters
    ----------
    hashes : (frames,) int64, of each rounded row; 0 if it is empty or the video is not done.
    descriptors : (videos, 2, values) float32, mean and standard deviation over time; NaN where a
        value is always missing.
    scale : (values,) float64, standard deviation of each value over all videos.
    done : (videos,) bool.
    """

    hashes: NDArray[np.int64]
    descriptors: NDArray[np.float32]
    scale: NDArray[np.float64]
    done: NDArray[np.bool_]


def _same_values(store: BaseStore, feature: str, near: float) -> Iterator[Shared]:
    values = _read_values(store, feature)
    rows = np.flatnonzero(values.hashes)
    owner = store.index.video_of(rows)
    with_data = np.bincount(owner, minlength=len(store.index))
    copies = set()
    for pair, n_frames in _pairs(store, values.hashes[rows], owner).items():
        shorter = int(with_data[list(pair)].min())
        if n_frames >= MIN_SHARED * shorter:
            copies.add(pair)
            yield _shared(store, "frames", pair, f"{min(n_frames, shorter)} of {shorter} frames")
    copied = {position for pair in copies for position in pair}
    for pair, distance in _near_pairs(store, values, near).items():
        if not copied.issuperset(pair):  # else both are reported as copies already
            yield _shared(store, "near", pair, f"distance {distance:.3f}")


def _read_values(store: BaseStore, feature: str) -> _Values:
    """Read a feature once, some rows at a time."""
    spec, index = store.feature(feature), store.index
    array, done = store[feature], store.states(feature) == State.DONE
    size = int(np.prod(spec.shape, dtype=np.int64))
    chosen = np.linspace(0, size - 1, min(size, _MAX_VALUES)).astype(np.int64)
    # 64-bit multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast",
    # 2014).
    weights = np.random.default_rng(0).integers(0, 2**64, size, dtype=np.uint64) | np.uint64(1)
    hashes = np.zeros(index.total_frames, dtype=np.int64)
    descriptors = np.full((len(index), 2, len(chosen)), np.nan, dtype=np.float32)
    whole, carried = Moments.zeros((1, len(chosen))), (-1, Moments.zeros((1, len(chosen))))
    step = max(1, _BLOCK_BYTES // max(1, spec.row_bytes))
    for start in range(0, index.total_frames, step):
        block = array[start : start + step].reshape(-1, size)
        owner = index.video_of(np.arange(start, start + len(block)))
        kept = np.flatnonzero(done[owner])
        block, owner = block[kept], owner[kept]
        hashes[start + kept] = _hash_rows(block, weights)
        runs = np.flatnonzero(np.diff(owner, prepend=-1))
        if len(runs) == 0:
            continue
        found = np.asarray(block[:, chosen, None], dtype=np.float64)
        moments, positions = measure_runs(found, np.isfinite(found), runs), owner[runs]
        whole = whole.merged(moments.total()[None])
        if carried[0] == positions[0]:  # a video that began in the block before
            moments.put(slice(0, 1), moments[:1].merged(carried[1]))
        mean = np.where(moments.count > 0, moments.mean, np.nan)
        descriptors[positions] = np.stack([mean, moments.std], axis=1)
        carried = (int(positions[-1]), moments[-1:])
    return _Values(hashes, descriptors, whole.std[0], done)


def _hash_rows(block: NDArray[np.generic], weights: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return hashes of rounded rows, (rows,) int64; 0 for rows that hold only zeros and NaN."""
    values = block.astype(np.float64)
    values = np.clip(np.round(values * 10.0**DECIMALS), -(2.0**62), 2.0**62)
    there = np.isfinite(values)
    whole = np.where(there, values, 0).astype(np.int64)
    empty = ~whole.any(axis=1)
    whole = np.where(there, whole, 2**62 + 1)  # a missing value differs from zero
    hashes = (whole.view(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
    return np.where(empty, 0, hashes.view(np.int64))


def _near_pairs(store: BaseStore, values: _Values, near: float) -> dict[tuple[int, int], float]:
    """Return pairs of near-copies in two splits, and their distances.

    If a video has many near-copies, only the nearest is returned.

    Videos are sorted along the direction in which they differ most. Videos that are farther apart
    than ``near`` along it are farther apart altogether, so only neighbours need be compared.
    """
    varies = values.scale > 0
    splits = store.index.splits.astype(str)
    described = np.isfinite(values.descriptors[:, 0]).any(axis=1)
    positions = np.flatnonzero(values.done & (splits != "") & described)
    if len(positions) < 2 or not varies.any():
        return {}
    scaled = values.descriptors[positions][:, :, varies] / values.scale[varies]
    points = scaled.reshape(len(positions), -1).astype(np.float32)
    points /= np.float32(np.sqrt(points.shape[1]))
    there = np.isfinite(points)
    centre = np.where(there, points, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    points = np.asarray(np.where(there, points - centre, 0), dtype=np.float32)
    along = points @ _main_direction(points)
    order = np.argsort(along, kind="stable")
    points, along, positions = points[order], along[order], positions[order]
    code = np.unique(splits[positions], return_inverse=True)[1]
    lengths = store.index.n_frames[positions].astype(np.float64)
    stops = np.searchsorted(along, along + np.float32(near + 1e-4), side="right")
    squares = np.einsum("ij,ij->i", points, points)
    found: dict[tuple[int, int], float] = {}
    for first in range(0, len(points), _PAIR_ROWS):
        here = np.arange(first, min(first + _PAIR_ROWS, len(points)))
        for begin in range(first, int(stops[here].max()), _PAIR_ROWS * 8):
            there = np.arange(begin, min(begin + _PAIR_ROWS * 8, int(stops[here].max())))
            squared = squares[here, None] + squares[there] - 2 * (points[here] @ points[there].T)
            longer = np.maximum(lengths[here, None], lengths[there]) <= NEAR_LENGTHS * np.minimum(
                lengths[here, None], lengths[there]
            )
            # A little more than near, to allow for float32 sums.
            fits = (squared <= (near + 1e-3) ** 2) & longer & (code[here, None] != code[there])
            for a, b in _nearest(squared, fits):
                distance = float(np.linalg.norm(points[here[a]] - points[there[b]]))
                low, high = sorted((int(positions[here[a]]), int(positions[there[b]])))
                if distance <= near:
                    found[low, high] = distance
    return found


def _nearest(squared: NDArray[np.float32], fits: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield the nearest fitting pair of each row, and of each column."""
    distance = np.where(fits, squared, np.inf)
    for a in np.flatnonzero(fits.any(axis=1)).tolist():
        yield a, int(distance[a].argmin())
    for b in np.flatnonzero(fits.any(axis=0)).tolist():
        yield int(distance[:, b].argmin()), b


def _main_direction(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an estimate of the direction of largest variance, of length 1."""
    direction: NDArray[np.float32] = np.random.default_rng(0).standard_normal(
        (points.shape[1],), dtype=np.float32
    )
    for _ in range(8):
        direction = points.T @ (points @ direction) + np.float32(1e-12) * direction
        direction /= max(float(np.linalg.norm(direction)), 1e-30)
    return direction
