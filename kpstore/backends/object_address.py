"""Addresses of stores in object storage: ``s3://bucket/prefix``, ``gs://…``, ``az://…``.

What an address says beside the place is how to reach it, as ``?endpoint=http://…&region=…``. It
goes wherever a location goes: into commands, pickles, logs and the work of other machines. So it
never holds a secret. Credentials come from the environment or a profile of each machine
(:mod:`kpstore.backends.object_clients`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from kpstore.errors import InvalidError, UnsupportedError

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "s3": ("endpoint", "region", "profile", "anonymous"),
    "gs": ("endpoint", "anonymous"),
    "az": ("account", "endpoint"),
}
"""What an address of each kind may say beside the place."""
_ADDRESS = re.compile(r"(s3|gs|az)://", re.IGNORECASE)
_OF_A_PATH = re.compile(r"(s3|gs|az|file):/(?!/)", re.IGNORECASE)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}")
_PART = re.compile(r"[\w.@=+,-]+")
"""Part of a prefix between two slashes. Of other characters, libraries make different keys."""
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(/[\w./-]*)?")
_YES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class ObjectAddress(NamedTuple):
    """Where a store's objects are.

    Parameters
    ----------
    scheme : ``"s3"``, ``"gs"`` or ``"az"``.
    bucket : name of the bucket; of the container, with ``"az"``.
    prefix : what the names of all objects of the store begin with, without slashes at its ends.
    options : how to reach it, by name, sorted.
    """

    scheme: str
    bucket: str
    prefix: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in self.options)
        place = f"{self.scheme}://{self.bucket}/{self.prefix}"
        return f"{place}?{query}" if query else place

    def option(self, name: str) -> str:
        """Return what the address says about something; ``""`` if it says nothing."""
        return dict(self.options).get(name, "")

    @property
    def is_anonymous(self) -> bool:
        """Whether requests are not signed, as for public data."""
        return _YES.get(self.option("anonymous").lower(), False)


def is_address(location: str) -> bool:
    """Return whether a location is in object storage."""
    return _ADDRESS.match(location) is not None


def without_scheme(location: str) -> str:
    """Return a ``file://`` address as the path that it names, and any other location unchanged.

    Raises
    ------
    InvalidError
        For what ``pathlib`` makes of an address, as it drops a slash.
    """
    if _OF_A_PATH.match(location):
        raise InvalidError(
            f"{location} was an address once; give it as text, as Path() removes a slash from it"
        )
    if not location.lower().startswith("file://"):
        return location
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise InvalidError(f"{location}: a file on this machine is file:///path/to/store.kps")
    return unquote(parts.path)


def parse_address(location: str) -> ObjectAddress:
    """Return the parts of an address.

    Raises
    ------
    InvalidError
        If it is none, or holds a user, a password, or an unknown option.
    UnsupportedError
        If it names an HDF5 file.
    """
    try:
        parts = urlsplit(location)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise InvalidError(f"{_bare(location)}: what follows ? is not name=value") from None
    scheme = parts.scheme.lower()
    if "@" in parts.netloc:
        # Not repeated, as logs keep it.
        raise InvalidError(
            f"{scheme}://…@{parts.netloc.rpartition('@')[2]}: an address holds no user and no "
            "password, as it is written to logs; set them in the environment or in a profile"
        )
    segments = [part for part in parts.path.split("/") if part]
    if not _BUCKET.fullmatch(parts.netloc) or parts.fragment:
        raise InvalidError(
            f"{_bare(location)}: use {scheme}://bucket/prefix, for example {_like(scheme)}"
        )
    if not segments:
        raise InvalidError(
            f"{_bare(location)}: name a place in the bucket, for example {_like(scheme)}"
        )
    odd = [part for part in segments if not _PART.fullmatch(part) or set(part) == {"."}]
    if odd:
        raise InvalidError(
            f"{_bare(location)}: {odd[0]!r} cannot be a part of a store's address; use letters, "
            "digits and -._@=+,"
        )
    if segments[-1].endswith((".h5", ".hdf5")):
        raise UnsupportedError(
            f"{_bare(location)}: HDF5 files are stored on local disks only; choose a name without "
            f"{segments[-1][segments[-1].rindex('.') :]} for a store in object storage"
        )
    return ObjectAddress(
        scheme, parts.netloc, "/".join(segments), _checked(location, scheme, query)
    )


def _checked(
    location: str, scheme: str, query: list[tuple[str, str]]
) -> tuple[tuple[str, str], ...]:
    known = _OPTIONS[scheme]
    bare = _bare(location)
    for name, value in query:
        if name not in known:
            raise InvalidError(
                f"{bare}: an address of {scheme}:// may say {', '.join(known)}; "
                "credentials come from the environment or a profile"
            )
        if name == "anonymous" and value.lower() not in _YES:
            raise InvalidError(f"{bare}: anonymous= is true or false")
        if name == "endpoint" and not _ENDPOINT.fullmatch(value):
            raise InvalidError(
                f"{bare}: an endpoint is http:// or https://, a host and perhaps a port; "
                "credentials come from the environment or a profile"
            )
    return tuple(sorted(dict(query).items()))


def _bare(location: str) -> str:
    """Return an address without what may be a secret."""
    return re.split(r"[?#]", location, maxsplit=1)[0]


def _like(scheme: str) -> str:
    return f"{scheme}://my-bucket/phoenix.kps"
