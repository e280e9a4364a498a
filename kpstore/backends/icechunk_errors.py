"""Errors of Icechunk, Zarr and the codecs, and a guard against a call that would never return."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import icechunk

from kpstore.backends.asides import system_error
from kpstore.errors import ConflictError, CorruptError, UnreachableError, UnsupportedError

UNREADABLE = (icechunk.IcechunkError, ValueError, RuntimeError, LookupError, OSError)
"""Raised on damaged files."""

_used_in_this_process = False
_forked_after_use = False


def _after_fork() -> None:
    global _forked_after_use
    _forked_after_use = _used_in_this_process


os.register_at_fork(after_in_child=_after_fork)


def guard_fork() -> None:
    """Raise :class:`UnsupportedError` in a forked child of a process that has used Icechunk.

    Icechunk's threads do not exist in the child, which would wait for them forever.
    """
    global _used_in_this_process
    if _forked_after_use:
        raise UnsupportedError(
            "an Icechunk store cannot be read in a process made by fork() from one that had "
            "already opened a store; start workers with 'forkserver' or 'spawn', e.g. "
            "DataLoader(..., num_workers=2, multiprocessing_context='forkserver')"
        )
    _used_in_this_process = True


def first_line(error: BaseException) -> str:
    """Return the line of an error of Icechunk, Zarr or a codec that says what happened."""
    lines = (line.strip(" x") for line in str(error).splitlines() if line.strip(" x|"))
    # Two checksums, as bytes, follow.
    return next(lines, type(error).__name__).partition(". Stored: b")[0]


_SYSTEM = re.compile(r"\(os error (\d+)\)")
_CHANGED = (icechunk.ConflictError, icechunk.RebaseFailedError)
ERRORS = (icechunk.IcechunkError, *_CHANGED)
"""All that Icechunk raises; they have no common root."""


@contextmanager
def translated(location: str, doing: str = "") -> Iterator[None]:
    """Turn Icechunk's errors into those of :func:`translation`."""
    try:
        yield
    except ERRORS as error:
        raise translation(error, location, doing) from error


def translation(error: Exception, location: str, doing: str = "") -> Exception:
    """Return what kpstore raises instead of an error of Icechunk.

    Parameters
    ----------
    doing : what was being done to the store, such as ``"'fill' was not committed"``; by default it
        was read.

    Returns
    -------
    Exception
        :class:`OSError` with its number for what the system refused, as a full disk;
        :class:`UnsupportedError` for clocks that disagree; :class:`ConflictError` for changes by
        other writers; :class:`UnreachableError` for object storage that does not answer;
        :class:`CorruptError` for damaged, missing or foreign files.
    """
    text, line = " ".join(str(error).split()), first_line(error)
    if is_of_storage(error):
        return unreachable(location, error, doing)
    found = _SYSTEM.search(text)
    number = int(found[1]) if found else 0
    if number not in (0, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return system_error(number, location, doing)
    if isinstance(error, _CHANGED):
        return ConflictError(f"{location} was changed by another writer: {line}; try again")
    if "timestamp" in text:
        what = f"{doing}: the" if doing else "the"
        return UnsupportedError(
            f"{location}: {what} clocks of this machine, of the file system, or of the machine "
            f"that wrote last disagree ({line}); set them (NTP) and repeat it"
        )
    if doing:
        return CorruptError(
            f"{location}: {doing}: {line}; 'kpstore verify --all' tells whether the store is "
            "damaged"
        )
    return CorruptError(f"{location} cannot be read as an Icechunk repository: {line}")


_DENIED = re.compile(
    r"status(?: code)?:? 40[13]|StatusCode\(40[13]\)|necessary privileges|AccessDenied|"
    r"InvalidAccessKeyId|SignatureDoesNotMatch|credential"
)
_STORAGE = (
    *("dispatch failure", "service error", "timeout error", "response error"),
    *("Generic S3", "Generic GCS", "Generic MicrosoftAzure", "necessary privileges"),
)
"""What Icechunk says of object storage that did not answer as it should."""
_CONTEXT = re.compile(r"\|? ?\|? context:.*?(?=\|-> |`-> |$)")
"""Where in its own code Icechunk was."""


def unreachable(location: str, error: Exception, doing: str = "") -> UnreachableError:
    """Return the error for storage that did not answer, or that denied access, in one line."""
    text = _CONTEXT.sub("", " ".join(str(error).split()).removeprefix("x "))
    told = f"{location}: {doing}: " if doing else f"{location}: "
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return UnreachableError(f"{told}there is no such bucket; create it first")
    if _DENIED.search(text):
        return UnreachableError(
            f"{told}access was denied; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or "
            "AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY), or add "
            "?anonymous=true for public data"
        )
    return UnreachableError(
        f"{told}the storage does not answer as it should ({text.partition(', after ')[0][:200]}); "
        "nothing is known to be damaged, try again"
    )


def is_of_storage(error: BaseException) -> bool:
    """Whether an error of Icechunk says that object storage did not answer as it should."""
    text = str(error)
    return any(sign in text for sign in _STORAGE) and "NoSuchKey" not in text
