"""Records and names of an HDF5 store's versions, with checksums that are compared at each read.

HDF5 checks the headers of groups and data sets, but neither the bytes of a data set without
filters nor text of variable length. So these records have checksums of their own (files of format
2), which include the name of the data set: two records that were swapped are damage too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from kpstore.backends.base import Commit
from kpstore.errors import CorruptError, InvalidError, KpstoreError

HOME = "_kpstore"
FORMAT = 2
"""Format of new files. In format 1, records and names have no checksums."""

DAMAGE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that HDF5's library, h5py and JSON raise for damaged bytes."""

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


def format_of(file: h5py.File) -> int:
    """Return the format of a file; :class:`InvalidError` if it is newer than this code."""
    found = int(file[HOME].attrs["format"])
    if found > FORMAT:
        raise InvalidError(
            f"{file.filename} has layout {found} of kpstore's HDF5 files, this kpstore reads up to "
            f"{FORMAT}; open it with the kpstore that wrote it, or upgrade"
        )
    return found


def digest(data: bytes | NDArray[np.uint64]) -> str:
    """Return the XXH3-64 of bytes, or of little-endian numbers, as 16 hexadecimal digits."""
    content = data if isinstance(data, bytes) else np.ascontiguousarray(data, dtype="<u8").tobytes()
    return xxhash.xxh3_64_hexdigest(content)


# -- JSON and tables -------------------------------------------------------------------------------


def write_json(group: h5py.Group, name: str, value: Mapping[str, Any], fmt: int) -> None:
    """Store a JSON object of any length as a data set of bytes; attributes are limited to 64 KiB.

    In files of format 2 its last entry, ``checksum``, covers the name of the data set in the file
    and all bytes before ``, "checksum"``.
    """
    text = json.dumps(value, ensure_ascii=False)
    if fmt > 1:
        text = f'{text[:-1]}{_SEAL}{_seal(group, name, text[:-1].encode())}"}}'
    if name in group:
        del group[name]
    group.create_dataset(name, data=np.frombuffer(text.encode(), dtype=np.uint8))


def read_json(group: h5py.Group, name: str, fmt: int) -> Any:
    """Return what :func:`write_json` stored; :class:`ValueError` if its checksum differs."""
    stored = group[name][()].tobytes()
    if fmt == 1:
        return json.loads(stored)
    body, seal = stored[:-_SEAL_BYTES], stored[-_SEAL_BYTES:]
    if seal != f'{_SEAL}{_seal(group, name, body)}"}}'.encode():
        raise ValueError(f"{name!r} does not match its checksum")
    return json.loads(body + b"}")


def _seal(group: h5py.Group, name: str, body: bytes) -> str:
    return digest(f"{group.name}/{name}\n".encode() + body)


def write_bytes(group: h5py.Group, name: str, data: bytes, pad: bytes) -> None:
    """Store bytes that change with most versions in their old place, filled up with ``pad``.

    HDF5 forgets the free space of a file when it is closed, so that a new place each time would
    make the file grow.
    """
    if name in group and group[name].shape[0] < len(data):
        del group[name]
    if name not in group:
        group.create_dataset(
            name, shape=(-(-len(data) * 5 // 4 // _STEP_BYTES) * _STEP_BYTES,), dtype=np.uint8
        )
    size = group[name].shape[0]
    group[name][...] = np.frombuffer(data + pad * (size - len(data)), dtype=np.uint8)


def read_bytes(group: h5py.Group, name: str) -> bytes:
    """Return what :func:`write_bytes` stored, padding included."""
    return bytes(group[name][()].tobytes())


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
    home, fmt = file[HOME], format_of(file)
    if fmt == 1:
        found = {key: str(home.attrs[key]) for key in ("head", "tags", "used_tags")}
        return Names(
            found["head"], json.loads(found["tags"]), tuple(json.loads(found["used_tags"]))
        )
    stored = read_json(home, "names", fmt)
    return Names(stored["head"], stored["tags"], tuple(stored["used_tags"]))


def write_names(file: h5py.File, names: Names) -> None:
    """Store the names."""
    home, fmt = file[HOME], format_of(file)
    tags, used = dict(names.tags), list(names.used_tags)
    if fmt == 1:
        home.attrs.update(
            {"head": names.head, "tags": json.dumps(tags), "used_tags": json.dumps(used)}
        )
    else:
        write_json(home, "names", {"head": names.head, "tags": tags, "used_tags": used}, fmt)


# -- versions --------------------------------------------------------------------------------------


def version_group(file: h5py.File, snapshot: str) -> h5py.Group | None:
    """Return the group of a version; None for an unknown version."""
    versions = file[HOME]["versions"]
    return versions[snapshot] if snapshot.isalnum() and snapshot in versions else None


def write_record(file: h5py.File, snapshot: str, commit: Commit, about: Mapping[str, Any]) -> None:
    """Store a commit and further JSON ``about`` it."""
    group = file[HOME].require_group("versions").create_group(snapshot)
    record = {
        "parent": commit.parent,
        "message": commit.message,
        "time": commit.time.isoformat(),
        "metadata": dict(commit.metadata),
        **about,
    }
    write_json(group, "record", record, format_of(file))


def read_record(file: h5py.File, snapshot: str) -> dict[str, Any]:
    """Return what :func:`write_record` stored."""
    return dict(read_json(file[HOME]["versions"][snapshot], "record", format_of(file)))


def read_commit(file: h5py.File, snapshot: str) -> Commit:
    """Return the commit of a version."""
    record = read_record(file, snapshot)
    time = datetime.fromisoformat(record["time"])
    return Commit(snapshot, record["parent"], record["message"], time, record["metadata"])


def commit_now(
    snapshot: str, parent: str | None, message: str, metadata: Mapping[str, Any] | None
) -> Commit:
    """Return a commit with the present time."""
    return Commit(snapshot, parent, message, datetime.now(UTC), dict(metadata or {}))


def deltas(
    file: h5py.File, snapshot: str, head: str
) -> Iterator[tuple[h5py.Group, dict[str, Any]]]:
    """Yield the deltas on the way from a version over its bases to the newest version.

    Each is the group that holds the chunks, and the JSON about it. :class:`ValueError` if the way
    has no end.
    """
    seen, fmt = set(), format_of(file)
    while snapshot != head:
        if snapshot in seen:
            raise ValueError(
                f"version {snapshot} is described by versions that are described by it"
            )
        seen.add(snapshot)
        group = file[HOME]["versions"][snapshot]["delta"]
        about = read_json(group, "about", fmt)
        yield group, about
        snapshot = about["base"]
