"""What users call: open a store, make one, look at it through views."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kpstore._version import __version__
from kpstore.store import compare, history
from kpstore.store.store import Mode
from kpstore.store.store import Store as _Store
from kpstore.views.base import Missing, Transform
from kpstore.views.frames import FrameView

if TYPE_CHECKING:
    import xarray as xr


class Store(_Store):
    """One immutable version of a store, and the views on it. :func:`open` makes one."""

    def frames(
        self,
        features: str | Sequence[str],
        *,
        split: str | Sequence[str] | None = None,
        videos: Sequence[str] | None = None,
        where: str | Mapping[str, Any] | None = None,
        missing: Missing = "nan",
        transform: Transform | None = None,
    ) -> FrameView:
        """Return single frames as a data set for PyTorch; see :class:`kpstore.views.frames.FrameView`."""
        return FrameView(self, features, split=split, videos=videos, where=where, missing=missing, transform=transform)

    def to_xarray(
        self, *, split: str | Sequence[str] | None = None, features: Sequence[str] | None = None
    ) -> xr.Dataset:
        """Return a lazy, labelled data set of splits and features; see :func:`kpstore.store.labelled.to_xarray`."""
        from kpstore.store.labelled import to_xarray  # xarray takes as long to import as all the rest

        return to_xarray(self, split=split, features=features)


def open(path: str | os.PathLike[str], at: history.At = None, mode: Mode = "r") -> Store:
    """Open a version of a store; it never changes, whatever others write meanwhile.

    Parameters
    ----------
    path : directory of the store.
    at : a tag, a branch, a snapshot id or a time (``datetime`` or ISO text); the newest version by default.
    mode : ``"r"`` to read, ``"a"`` to allow transactions and tags as well.

    Raises
    ------
    NotFoundError
        If there is no store, or no such version.
    InvalidError
        If something else is there.
    """
    return Store.open(os.fspath(path), at, mode)


def create(path: str | os.PathLike[str], *, name: str = "") -> Store:
    """Make an empty store and open it for writing.

    Parameters
    ----------
    name : name of the data set; the last part of the path by default.

    Raises
    ------
    ExistsError
        If the path is taken.
    """
    location = os.fspath(path)
    return Store.create(location, name=name or os.path.basename(location.rstrip("/")), kpstore_version=__version__)


def diff(old: Store, new: Store) -> compare.VersionDiff:
    """Return what changed between two versions: videos, features and rows; see :mod:`kpstore.store.compare`."""
    return compare.diff(old, new)


__all__ = ["Store", "create", "diff", "open"]
