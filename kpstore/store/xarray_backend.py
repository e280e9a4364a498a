"""Stores as an xarray engine: ``xr.open_dataset("phoenix.kps", engine="kpstore")``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import xarray as xr

from kpstore.backends.object_address import is_address
from kpstore.backends.places import FILE_SUFFIXES
from kpstore.errors import InvalidError, KpstoreError
from kpstore.store.history import At
from kpstore.store.labelled import to_xarray
from kpstore.store.store import BaseStore

if TYPE_CHECKING:
    from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder


class KpstoreBackendEntrypoint(xr.backends.BackendEntrypoint):
    """Opens stores of any backend.

    Xarray finds it by the entry point ``kpstore`` in ``xarray.backends``.
    """

    description = "Open kpstore stores of keypoints and features (folders, .h5, .hdf5)"
    # xarray cannot find these itself if the class is given as the engine.
    open_dataset_parameters = (
        "filename_or_obj",
        "drop_variables",
        "mask_and_scale",
        "decode_times",
        "concat_characters",
        "decode_coords",
        "use_cftime",
        "decode_timedelta",
        "at",
        "split",
        "features",
    )

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Whether this is a store, and not another HDF5 file, Icechunk repository or folder."""
        try:
            location = _location(filename_or_obj)
            # xarray asks about every file that it opens; the names of most show that they are not
            # stores, without importing a backend's library.
            if is_address(location):
                return location.partition("?")[0].endswith(".kps")
            is_file = os.path.isfile(location) and location.endswith(FILE_SUFFIXES)
            if not is_file and not os.path.isdir(location):
                return False
            BaseStore.open(location)
        except (KpstoreError, OSError):
            return False
        return True

    def open_dataset(
        self,
        filename_or_obj: object,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: object = True,
        decode_times: bool | CFDatetimeCoder = True,
        concat_characters: object = True,
        decode_coords: object = True,
        use_cftime: bool | None = None,
        decode_timedelta: bool | CFTimedeltaCoder | None = None,
        at: At = None,
        split: str | Sequence[str] | None = None,
        features: str | Sequence[str] | None = None,
    ) -> xr.Dataset:
        """Return one version of a store as a lazy data set.

        See :func:`kpstore.store.labelled.to_xarray`.

        With ``chunks={}`` each stored chunk becomes a Dask chunk; ``chunks="auto"`` combines them
        to Dask's preferred size. Text stays lazy but never becomes a Dask array, as Dask cannot
        tell its size.

        Parameters
        ----------
        filename_or_obj : path of the store.
        drop_variables : names of variables and coordinates to leave out; unknown ones are ignored,
            as xarray does.
        decode_times, use_cftime : for features in units such as ``seconds since 2020-01-01``.
        decode_timedelta : for features in units such as ``seconds``; by default they stay numbers.
        mask_and_scale, concat_characters, decode_coords : have no effect, as a store does not pack
            values or split text into characters, and its coordinates are known.
        at : a tag, a branch, a snapshot id or a time; the newest version by default.
        split : only videos of these splits, and their frames.
        features : only these features, with their companions.

        Raises
        ------
        NotFoundError
            If no store, version, split or feature has that name.
        InvalidError
            If the file or folder is not a kpstore store.
        """
        dataset = to_xarray(
            BaseStore.open(_location(filename_or_obj), at), split=split, features=features
        )
        dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
        # xarray warns of any value.
        older: dict[str, Any] = {} if use_cftime is None else {"use_cftime": use_cftime}
        decoded = xr.decode_cf(
            dataset.drop_vars(list(dropped), errors="ignore"),
            mask_and_scale=False,
            concat_characters=False,
            decode_times=decode_times,
            decode_coords=False,
            # xarray warns of its own default, which will change.
            decode_timedelta=False if decode_timedelta is None else decode_timedelta,
            **older,
        )
        labels = {name: decoded.variables[name].to_base_variable() for name in decoded.xindexes}
        others = {name: _for_dask(v) for name, v in decoded.variables.items() if name not in labels}
        # Labels come without indexes: xarray creates them unless it was asked not to. The other
        # coordinates are set afterwards, because otherwise they would lose their class.
        dataset = xr.Dataset(others, xr.Coordinates(labels, indexes={}), decoded.attrs)
        return dataset.set_coords([name for name in decoded.coords if name in others])


def _location(place: object) -> str:
    if not isinstance(place, str | os.PathLike):
        raise InvalidError(f"a store is opened by its path, found {type(place).__name__}")
    return os.path.expanduser(os.fspath(place))


def _for_dask(variable: xr.Variable) -> xr.Variable:
    return (_Undivided if variable.dtype == object or variable._in_memory else _Stored).of(variable)


class _Stored(xr.Variable):
    """A lazy variable of numbers, whose Dask name differs from that of other versions.

    xarray makes names from the path and the modification time of the folder, which no commit
    changes. A scheduler takes two versions of one name for the same data.
    """

    __slots__ = ()

    @classmethod
    def of(cls, variable: xr.Variable) -> Self:
        """Return a variable as one of this class."""
        lazy: Any = variable._data
        return cls(variable.dims, lazy, variable.attrs, variable.encoding, fastpath=True)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type, tuple[object, ...]]:
        # Pickled results can also be read where kpstore is not installed.
        return xr.Variable, (self.dims, self._data, self.attrs, self.encoding, True)

    def chunk(
        self, *args: Any, from_array_kwargs: Mapping[str, object] | None = None, **kwargs: Any
    ) -> Self:
        """Return this variable in Dask chunks; see :meth:`xarray.Variable.chunk`."""
        named = dict(from_array_kwargs or {})
        if isinstance(named.get("name"), str):
            from dask.tokenize import tokenize

            named["name"] = f"{named['name']}-{tokenize(self._data)}"
        in_chunks: Callable[..., Self] = super().chunk
        return in_chunks(*args, from_array_kwargs=named, **kwargs)


class _Undivided(_Stored):
    """A variable that never becomes a Dask array: text, or a coordinate in memory."""

    __slots__ = ()

    @property
    def _in_memory(self) -> bool:
        return True
