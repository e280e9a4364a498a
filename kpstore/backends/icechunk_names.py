"""Names of tags and branches, and the files of an Icechunk repository that hold them.

Icechunk keeps a name in a folder, ``refs/tag.NAME/ref.json``. It writes a letter beyond ASCII as
``%E7…`` there, but does not decode it when it lists names: it omits such a tag, and with such a
branch, listing and garbage collection fail. So kpstore gives Icechunk plain ASCII (Punycode after
``xn--``) and lists the folders itself; it also finds names that Icechunk has encoded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from kpstore.errors import DAMAGE, CorruptError, InvalidError

Kind = Literal["branch", "tag"]

FOLDERS = ("snapshots", "transactions", "manifests", "chunks")
"""Folders of a repository with files of versions and chunks."""
_MARK = "xn--"
_PLAIN = re.compile(r"[A-Za-z0-9._+-]+")
"""Names that Icechunk writes and lists unchanged."""
_VERSION = re.compile(r"[0-9A-HJKMNP-TV-Z]{20}")
_NAME_BYTES = 255
"""Longest name of a file or folder on common file systems."""
_FILE, _DELETED = "ref.json", "ref.json.deleted"


def encode(kind: Kind, name: str) -> str:
    """Return a name in plain ASCII, as Icechunk is given it; :func:`decode` is the inverse.

    Raises
    ------
    InvalidError
        If no file can have that name.
    """
    given = _given(name)
    if not _PLAIN.fullmatch(given) or decode(given) != name:
        raise InvalidError(
            f"{kind} name {name!r} cannot be stored in an Icechunk store; use letters and digits"
        )
    n_bytes = len(f"{kind}.{given}")
    if n_bytes > _NAME_BYTES:
        raise InvalidError(
            f"{kind} name {name[:20] + '…'!r} of {len(name)} letters needs a folder name of "
            f"{n_bytes} bytes, but the limit is {_NAME_BYTES}; choose a shorter one"
        )
    return given


def _given(name: str) -> str:
    plain = _PLAIN.fullmatch(name) and not name.startswith(_MARK)
    return name if plain else _MARK + name.encode("punycode", "replace").decode("ascii", "replace")


def decode(given: str) -> str:
    """Return the name that :func:`encode` was given."""
    if given.startswith(_MARK):
        try:
            return given.removeprefix(_MARK).encode("ascii").decode("punycode")
        except (UnicodeError, OverflowError):
            pass  # other software has chosen this name
    return given


class Ref(NamedTuple):
    """A tag or branch as it is on disk.

    Parameters
    ----------
    given : name in Icechunk.
    file : path of its file, relative to the store.
    version : id of the version that it names; None if the file is damaged or missing.
    is_deleted : whether it was deleted; Icechunk never uses the name of a deleted tag again.
    """

    given: str
    file: str
    version: str | None
    is_deleted: bool = False


class Names(dict[str, str]):
    """Tags or branches with the versions that they name.

    A damaged name is contained as well, but looking it up raises :class:`CorruptError`.

    Parameters
    ----------
    versions : id of the version, by name.
    damaged : message of the error, by damaged name.
    """

    def __init__(self, versions: Mapping[str, str], damaged: Mapping[str, str]) -> None:
        super().__init__(sorted(versions.items()))
        self.damaged = damaged

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.damaged

    def __missing__(self, name: str) -> str:
        if name in self.damaged:
            raise CorruptError(self.damaged[name])
        raise KeyError(name)


def read_refs(root: Path, kind: Kind) -> dict[str, Ref]:
    """Return all tags or branches of a repository by name, including deleted ones."""
    found: dict[str, Ref] = {}
    for folder in sorted((root / "refs").glob(f"{kind}.*")):
        given = unquote(folder.name.removeprefix(f"{kind}."))
        file = f"refs/{folder.name}/{_FILE}"
        found[decode(given)] = Ref(
            given, file, _version_in(root / file), (folder / _DELETED).exists()
        )
    return found


def file_of(kind: Kind, name: str) -> str:
    """Return the path of a name's file, relative to the store."""
    return f"refs/{kind}.{_given(name)}/{_FILE}"


def is_version(text: str) -> bool:
    """Return whether text can be the id of a version, which is also the name of a file."""
    return _VERSION.fullmatch(text) is not None


def _version_in(file: Path) -> str | None:
    try:
        version = json.loads(file.read_bytes())["snapshot"]
        return version if is_version(version) else None
    except (OSError, *DAMAGE):
        return None
