"""Records and names of an HDF5 store's versions, with checksums that are compared at each read.

HDF5 checks the headers of groups and data sets, but neither the bytes of a data set without
filters nor text of variable length. So in files of format 2, these records have checksums of their
own. They include the name of the data set, so that two records that were swapped are damage, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from kpstore import errors
from kpstore.backends.base import Commit
from kpstore.backends.hdf5_items import has_item, item_of, remove_item
from kpstore.errors import CorruptError, InvalidError, KpstoreError

HOME = "_kpstore"
FORMAT = 2
"""Format of new files. In format 1, records and names have no checksums."""
NEWEST_FORMAT = 3
"""Format of files of which a delta says :data:`CONTINUED`; all else is as in format 2."""

DAMAGE = (OSError, *errors.DAMAGE)
"""Errors that HDF5's library, h5py and JSON raise for damaged bytes."""

ABSENT = -1
"""In a delta: a chunk that was never written in its version."""
CONTINUED = -2
"""In a delta: a last chunk that is the first rows of the base's chunk, which was appended to."""

Table = NDArray[np.uint64]
"""The checksum of each chunk of one array, by number."""

_SEAL = ', "checksum": "'
_SEAL_BYTES = len(_SEAL) + 16 + 2
_STEP_BYTES = 4096


def reason_of(error: BaseException) -> str:
    """Return an error's message in one line, or its type if it has none."""
    # The text of a KeyError would be quoted.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def damage_told(location: str, of: str = "arrays and versions") -> Iterator[None]:
    """Turn the errors of reading a damaged file into :class:`CorruptError`."""
    try:
        yield
    except KpstoreError:
        raise
    except DAMAGE as error:
        raise CorruptError(
            f"{location}: its record of {of} cannot be read ({reason_of(error)}); it is damaged"
        ) from error


def has_checksums(file: h5py.File) -> bool:
    """Return whether a file has checksums (format 2); :class:`InvalidError` for newer formats."""
    found = int(item_of(file, HOME).attrs["format"])
    if found > NEWEST_FORMAT:
        raise InvalidError(
            f"{file.filename} has layout {found} of kpstore's HDF5 files, this kpstore reads up to "
            f"{NEWEST_FORMAT}; open it with the kpstore that wrote it, or upgrade"
        )
    return found > 1


def set_format(file: h5py.File, number: int) -> None:
    """Say the format of a file, so that a kpstore that does not know it refuses the file."""
    item_of(file, HOME).attrs["format"] = number


def descriptor_of(file: h5py.File) -> int:
    """Return the operating system's number of an open file."""
    return int(np.asarray(file.id.get_vfd_handle()).item())


def digest(data: bytes | NDArray[np.uint64]) -> str:
    """Return the XXH3-64 of bytes, or of little-endian numbers, as 16 hexadecimal digits."""
    content = data if isinstance(data, bytes) else np.ascontiguousarray(data, dtype="<u8").tobytes()
    return xxhash.xxh3_64_hexdigest(content)


# -- JSON and tables -------------------------------------------------------------------------------


def json_text(value: object) -> str:
    """Return JSON as a file holds it: UTF-8, and halves of characters (of file names) escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def write_json(group: h5py.Group, name: str, value: Mapping[str, object]) -> None:
    """Store a JSON object of any length as a data set of bytes; attributes are limited to 64 KiB.

    In files of format 2, its last entry, ``checksum``, covers the name of the data set in the file
    and all bytes before ``, "checksum"``.
    """
    text = json_text(value)
    if has_checksums(group.file):
        text = f'{text[:-1]}{_SEAL}{_seal(group, name, text[:-1].encode())}"}}'
    if has_item(group, name):
        remove_item(group, name)
    group.create_dataset(name, data=np.frombuffer(text.encode(), dtype=np.uint8))


def read_json(group: h5py.Group, name: str) -> Any:
    """Return what :func:`write_json` stored; :class:`ValueError` if its checksum differs."""
    return _read_json(group, name, sealed=has_checksums(group.file))


def _read_json(group: h5py.Group, name: str, *, sealed: bool) -> Any:
    stored = read_bytes(group, name)
    if sealed:
        body, seal = stored[:-_SEAL_BYTES], stored[-_SEAL_BYTES:]
        if seal != f'{_SEAL}{_seal(group, name, body)}"}}'.encode():
            raise ValueError(f"{name!r} does not match its checksum")
        stored = body + b"}"
    return dict(json.loads(stored))


def _seal(group: h5py.Group, name: str, body: bytes) -> str:
    return digest(f"{group.name}/{name}\n".encode() + body)


def write_bytes(group: h5py.Group, name: str, data: bytes, pad: bytes) -> None:
    """Store bytes that most versions change in their old place, padded with ``pad``.

    HDF5 forgets the free space of a file when it is closed, so a new place each time would make the
    file grow.
    """
    if has_item(group, name) and item_of(group, name).shape[0] < len(data):
        remove_item(group, name)
    if not has_item(group, name):
        group.create_dataset(
            name, shape=(-(-len(data) * 5 // 4 // _STEP_BYTES) * _STEP_BYTES,), dtype=np.uint8
        )
    place = item_of(group, name)
    size = place.shape[0]
    place[...] = np.frombuffer(data + pad * (size - len(data)), dtype=np.uint8)


def read_bytes(group: h5py.Group, name: str) -> bytes:
    """Return what :func:`write_bytes` stored, including the padding.

    :class:`ValueError` if the file does not hold as many bytes as the data set says it has.
    """
    stored = item_of(group, name)
    if stored.dtype != np.uint8 or stored.ndim != 1 or stored.size > stored.id.get_storage_size():
        raise ValueError(f"{name!r} is {stored.dtype} {stored.shape}, which are not bytes there")
    return bytes(stored[()].tobytes())


# -- names -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Names:
    """Names of versions.

    Parameters
    ----------
    head : id of the newest version.
    tags : ids by tag.
    used_tags : all present and deleted tags.
    """

    head: str
    tags: Mapping[str, str]
    used_tags: tuple[str, ...]


def read_names(file: h5py.File) -> Names:
    """Return the names; :class:`ValueError` if they are damaged."""
    home = item_of(file, HOME)
    if has_checksums(file):
        stored = _read_json(home, "names", sealed=True)
        names = Names(stored["head"], stored["tags"], tuple(stored["used_tags"]))
        ids = [names.head, *names.tags.values(), *names.used_tags]
        if not all(isinstance(name, str) for name in ids):
            raise ValueError("'names' holds other than text")
        return names
    tags, used_tags = (json.loads(home.attrs[key]) for key in ("tags", "used_tags"))
    return Names(str(home.attrs["head"]), tags, tuple(used_tags))


def write_names(file: h5py.File, names: Names) -> None:
    """Store the names."""
    if has_checksums(file):
        write_json(item_of(file, HOME), "names", vars(names))
    else:
        tags, used_tags = json.dumps(names.tags), json.dumps(names.used_tags)
        about = {"head": names.head, "tags": tags, "used_tags": used_tags}
        item_of(file, HOME).attrs.update(about)


# -- versions --------------------------------------------------------------------------------------


class Record(TypedDict, total=False):
    """A commit, the data that it touched, and digests of the version.

    The digests are of its description and its checksums (format 2), or of its text (format 1).
    """

    parent: str | None
    message: str
    time: str
    metadata: dict[str, Any]
    touched: list[tuple[str, str | int]]
    tree: str
    checksums: dict[str, str]
    text: dict[str, str]


def write_record(file: h5py.File, commit: Commit, about: Mapping[str, object]) -> None:
    """Store the :class:`Record` of a commit, with the entries ``about`` its data."""
    home = item_of(file, HOME)
    if not has_item(home, "versions"):
        home.create_group("versions")
    group = item_of(home, "versions").create_group(commit.id)
    record = {
        "parent": commit.parent,
        "message": commit.message,
        "time": commit.time.isoformat(),
        "metadata": dict(commit.metadata),
        **about,
    }
    write_json(group, "record", record)


def read_record(file: h5py.File, snapshot: str) -> Record:
    """Return what :func:`write_record` stored."""
    found: Record = read_json(item_of(file, f"{HOME}/versions/{snapshot}"), "record")
    odd = [key for key, kind in _KINDS.items() if not isinstance(found.get(key, kind()), kind)]
    if odd or not isinstance(found.get("parent"), str | None):
        raise ValueError(f"the record of {snapshot} has no sound {', '.join(odd) or 'parent'}")
    return found


_KINDS: Mapping[str, type] = {
    **dict.fromkeys(("message", "time", "tree"), str),
    **dict.fromkeys(("metadata", "checksums", "text"), dict),
    "touched": list,
}
"""What the entries of a record are; a checksum that fits can be made for any."""


def read_commit(file: h5py.File, snapshot: str) -> Commit:
    """Return the commit of a version."""
    record = read_record(file, snapshot)
    time = datetime.fromisoformat(record["time"])
    return Commit(snapshot, record["parent"], record["message"], time, record["metadata"])


# -- deltas ----------------------------------------------------------------------------------------


@dataclass
class ArrayDelta:
    """How one array of a version differs from that of its base.

    Parameters
    ----------
    n_rows, attrs : length and attributes in this version.
    chunks : the chunk of the delta that holds each chunk, or :data:`ABSENT` or :data:`CONTINUED`,
        by number (as text, for JSON).
    whole : whether the base has no such array, so that all of it is in the delta.
    """

    n_rows: int
    attrs: dict[str, Any]
    chunks: dict[str, int] = field(default_factory=dict)
    whole: bool = False

    def lacks(self, chunk: int, chunk_rows: int, start: int) -> bool:
        """Return whether a chunk must be kept before rows from ``start`` on are overwritten."""
        place = self.chunks.get(str(chunk))
        is_kept = place is not None and not (place == CONTINUED and start < self.n_rows)
        return not is_kept and chunk * chunk_rows < self.n_rows

    def numbers(self) -> slice | NDArray[np.int64]:
        """Return the chunks whose checksums the delta holds: those in it, in order, or all."""
        if self.whole:
            return slice(None)
        return np.array(sorted(map(int, self.chunks)), dtype=np.int64)


@dataclass
class Delta:
    """How a version differs from its base, collected while the base is made from it.

    Parameters
    ----------
    base : id of the base.
    attrs : attributes of the root, if they differ.
    arrays : how each array differs, by name; None for an array that only the base has.
    metas : shape and type of the arrays that only the version has, as JSON (format 2).
    """

    base: str = ""
    attrs: dict[str, Any] | None = None
    arrays: dict[str, ArrayDelta | None] = field(default_factory=dict)
    metas: dict[str, dict[str, Any]] = field(default_factory=dict)

    def checksums(self, tables: Callable[[str], Table]) -> Table:
        """Return the checksums of the chunks in the delta, array by array."""
        parts = [
            tables(name)[array.numbers()]
            for name, array in sorted(self.arrays.items())
            if array is not None
        ]
        return np.concatenate([np.empty(0, np.uint64), *parts])


def write_delta(group: h5py.Group, delta: Delta) -> None:
    """Store a delta, but not its chunks."""
    arrays = {name: None if array is None else vars(array) for name, array in delta.arrays.items()}
    metas = {"metas": delta.metas} if has_checksums(group.file) else {}
    about = {"base": delta.base, "attrs": delta.attrs, "arrays": arrays, **metas}
    write_json(group, "about", about)


def read_delta(file: h5py.File, snapshot: str) -> tuple[h5py.Group, Delta]:
    """Return a version's delta, and the group that holds its chunks."""
    return _read_delta(item_of(file, f"{HOME}/versions"), snapshot, sealed=has_checksums(file))


def _read_delta(versions: h5py.Group, snapshot: str, *, sealed: bool) -> tuple[h5py.Group, Delta]:
    group = item_of(versions, f"{snapshot}/delta")
    about = _read_json(group, "about", sealed=sealed)
    arrays = {
        name: None if array is None else ArrayDelta(**array)
        for name, array in about["arrays"].items()
    }
    return group, Delta(about["base"], about["attrs"], arrays, about.get("metas", {}))


def deltas(file: h5py.File, snapshot: str, head: str) -> Iterator[tuple[h5py.Group, Delta]]:
    """Yield the deltas on the way from a version over its bases to the newest version.

    :class:`ValueError` if the way has no end.
    """
    seen = set()
    # Once for all of them, as a history may be long.
    versions, sealed = item_of(file, f"{HOME}/versions"), has_checksums(file)
    while snapshot != head:
        if snapshot in seen:
            raise ValueError(
                f"version {snapshot} is described by versions that are described by it"
            )
        seen.add(snapshot)
        group, delta = _read_delta(versions, snapshot, sealed=sealed)
        yield group, delta
        snapshot = delta.base
