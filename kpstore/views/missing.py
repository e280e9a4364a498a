"""What a view does with frames that failed or are not extracted yet: keep, leave out, or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import InvalidError, NotFoundError
from kpstore.schema.feature import State
from kpstore.store.format import status_name
from kpstore.store.store import BaseStore
from kpstore.views.base import feature_of
from kpstore.views.runs import Runs

Missing = Literal["nan", "skip", "error"]
MISSING: tuple[Missing, ...] = ("nan", "skip", "error")
Policy = Missing | Literal["compute"]
"""What to do with missing rows; ``"compute"`` computes those not extracted yet when read."""


def check_missing(missing: str, allowed: Sequence[str] = MISSING) -> None:
    """Raise :class:`InvalidError` for a policy that a view does not have."""
    if missing not in allowed:
        raise InvalidError(f"missing={missing!r}: use {' or '.join(map(repr, allowed))}")


def usable_frames(store: BaseStore, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return whether each frame is done for all features of ``names``, (frames,) bool."""
    usable = np.ones(store.index.total_frames, dtype=bool)
    for feature in dict.fromkeys(feature_of(store, name) for name in names):
        if feature is not None:
            usable &= np.asarray(store[status_name(feature)]) == State.DONE
    return usable


def kept_rows(store: BaseStore, names: Sequence[str], rows: Runs, missing: Missing) -> Runs:
    """Return which of some rows the policy keeps, each by itself; see :func:`keeps_runs`."""
    if missing == "skip":
        return rows.within(usable_frames(store, names))
    keeps_runs(store, names, rows.starts, rows.sizes, missing)
    return rows


def keeps_runs(
    store: BaseStore,
    names: Sequence[str],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    missing: Missing,
) -> NDArray[np.bool_]:
    """Return which runs of frames the policy keeps, (runs,) bool; with ``"error"`` all or none.

    Parameters
    ----------
    starts, lengths : (runs,) int64, the first row of each run and how many follow each other.

    Raises
    ------
    NotFoundError
        With ``missing="error"``, if a frame failed or is not extracted yet; the message names the
        first.
    InvalidError
        With ``missing="nan"``, if such a frame would be 0 or False, as its type has no NaN, and the
        feature's status is not read beside it.
    """
    check_missing(missing)
    if missing == "nan":
        _refuse_untold(store, names, starts, lengths)
        return np.ones(len(starts), dtype=bool)
    usable = usable_frames(store, names)
    if missing == "error":
        rows = covered_rows(starts, lengths, len(usable))
        refuse_missing(store, rows, usable[rows])
    return runs_usable(usable, starts, lengths)


def _refuse_untold(
    store: BaseStore, names: Sequence[str], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> None:
    for name in names:
        told = status_name(name) in names or store[name].dtype.kind == "f"
        if name not in store.described or told:
            continue
        usable = usable_frames(store, [name])
        rows = covered_rows(starts, lengths, len(usable))
        n_gone = int((~usable[rows]).sum())
        if n_gone:
            raise InvalidError(
                f"{n_gone} of {len(rows)} frames of {name!r} failed or are not extracted yet, and "
                f"{store[name].dtype} has no NaN for them; use missing='skip' to leave them out, "
                f"or read {status_name(name)!r} too, which is {int(State.DONE)} for results"
            )


def covered_rows(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], n_rows: int
) -> NDArray[np.int64]:
    """Return the rows, of ``n_rows``, that at least one run covers, (rows,) int64 ascending."""
    ends = np.bincount(starts + lengths, minlength=n_rows + 1)
    n_open = np.cumsum(np.bincount(starts, minlength=n_rows + 1) - ends)
    return np.flatnonzero(n_open > 0).astype(np.int64)


def refuse_missing(
    store: BaseStore,
    rows: NDArray[np.int64],
    usable: NDArray[np.bool_],
    what: str = "failed or are not extracted yet",
) -> None:
    """Raise :class:`NotFoundError` unless all of ``rows`` are usable, (rows,) bool.

    The message names the first.
    """
    if not usable.all():
        video = store.index.ids[int(store.index.video_of(rows[np.argmin(usable)]))]
        raise NotFoundError(
            f"{int((~usable).sum())} of {len(rows)} frames {what}, the first in video {video!r}; "
            "use missing='skip' to leave them out or missing='nan' to keep them"
        )


def runs_usable(
    usable: NDArray[np.bool_], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return whether all frames of each run are usable, (runs,) bool.

    Parameters
    ----------
    usable : (frames,) bool, of the whole frame axis.
    starts, lengths : (runs,) int64, the first row of each run and how many follow each other.
    """
    n_bad = np.concatenate([[0], np.cumsum(~usable)])
    whole: NDArray[np.bool_] = n_bad[starts + lengths] == n_bad[starts]
    return whole
