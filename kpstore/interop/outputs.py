"""Steps that exports share: choosing rows, reading them in blocks, noting what is lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError
from kpstore.schema.feature import FeatureSpec, State, part_names, part_slices
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore

BLOCK_FRAMES = 4096
"""Frames in memory at once: 7 MB of keypoints."""


def blocks(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers of a store in their order, :data:`BLOCK_FRAMES` at a time."""
    for start in range(0, len(rows), BLOCK_FRAMES):
        yield rows[start : start + BLOCK_FRAMES]


def joined(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return row numbers in one array, which is empty if there are no parts."""
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def feature_of_frames(store: BaseStore, name: str, kind: str) -> FeatureSpec:
    """Return a feature that files of a kind can hold; :class:`InvalidError` if it is of videos."""
    spec = store.feature(name)
    if spec.axis != "frame":
        raise InvalidError(
            f"feature {name!r} belongs to videos; {kind} files hold features of frames"
        )
    return spec


def document_of(store: BaseStore, feature: str, format_name: str) -> Mapping[str, Any]:
    """Return what an import from a format kept of its file beside a feature; empty if nothing."""
    about = store.provenance(feature)
    document = about.get("document") if about.get("format") == format_name else None
    return document if isinstance(document, dict) else {}


@dataclass(frozen=True)
class ChosenRows:
    """Rows of one split to write.

    Parameters
    ----------
    split : ``""`` for the videos without a split.
    rows : (n,) int64 row numbers in the store.
    left_out : number of frames not written, by reason: ``"failed"``, ``"pending"``, ``"empty"``.
    failed : number of frames that failed, written or not.
    """

    split: str
    rows: NDArray[np.int64]
    left_out: dict[str, int]
    failed: int


def choose_rows(
    store: BaseStore,
    feature: str,
    split: str,
    found: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    drop: Collection[str],
) -> ChosenRows:
    """Choose which frames of a split are written; pending frames never are.

    Parameters
    ----------
    found : returns, for some rows, whether anything was detected in them, (rows,) bool.
    drop : which other frames are left out: ``"failed"`` ones, and ``"empty"`` ones, in which
        nothing was detected.
    """
    kept, n_failed = [], 0
    left_out = {"failed": 0, "pending": 0, "empty": 0}
    for block in blocks(store.index.rows_of(store.index.select(split=split))):
        status = store.read(fmt.status_name(feature), block)
        reasons = {"pending": status == State.PENDING, "failed": status == State.FAILED}
        reasons["empty"] = (status == State.DONE) & ~found(block)
        n_failed += int(reasons["failed"].sum())
        keep = np.ones(len(block), dtype=np.bool_)
        for reason in ("pending", *drop):
            left_out[reason] += int(reasons[reason].sum())
            keep &= ~reasons[reason]
        kept.append(block[keep])
    return ChosenRows(split, joined(kept), left_out, n_failed)


def zeros_for_missing(
    spec: FeatureSpec, values: NDArray[Any], detected: NDArray[np.bool_] | None
) -> int:
    """Make missing values zeros, in place; return in how many rows zeros now look like results.

    A row or a part that is all zeros is known to be missing; a zero among numbers is not.

    Parameters
    ----------
    detected : (rows, parts) bool, the feature's mask of parts; None if it has none.
    """
    if values.dtype.kind != "f":
        return 0
    missing = np.isnan(values)
    values[missing] = 0
    axes = tuple(range(1, missing.ndim))
    missing[missing.all(axis=axes)] = False
    slices = part_slices(spec)
    for column, part in enumerate(part_names(spec) if detected is not None else ()):
        points = slices.get(part)
        if points is not None and detected is not None:
            missing[~detected[:, column], points] = False
    return int(missing.any(axis=axes).sum())


def zeros_note(feature: str, n_rows: int) -> list[str]:
    """Return what :func:`zeros_for_missing` could not keep, in one line or none."""
    told = f"{n_rows} rows of {feature} lack single values, which are zeros in the file"
    return [f"{told}; --missing nan keeps them missing"] if n_rows else []


def lost_notes(store: BaseStore, written: Collection[str], **more: Sequence[str]) -> list[str]:
    """Return what of a store a file has no place for, one line each.

    Parameters
    ----------
    written : features and annotations that are in the file.
    more : names of other things that are not in it, by what they are.
    """
    lost = {
        "other features": [name for name in store.features if name not in written],
        **more,
        "annotations": [name for name in store.annotation_names if name not in written],
    }
    return [f"{what}: {', '.join(names)}" for what, names in lost.items() if names]


def check_no_links(folder: Path, targets: Iterable[Path]) -> None:
    """Raise :class:`InvalidError` if a symbolic link, which may lead anywhere, is on the way.

    Parameters
    ----------
    folder : the folder that the user named; may itself be a link.
    targets : files in it or in its subfolders.
    """
    seen: set[Path] = {folder}
    for target in targets:
        for parent in target.parents:
            if parent in seen:
                break
            seen.add(parent)
            if parent.is_symlink():
                raise InvalidError(
                    f"{parent} is a link, which may lead out of {folder}; choose another folder"
                )
