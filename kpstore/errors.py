"""Every error that kpstore raises on purpose.

::

    KpstoreError
    ├── NotFoundError      (LookupError)   a store, version, video, feature, split or file that does
    │                                      not exist
    ├── ExistsError        (ValueError)    a name that is already taken
    ├── InvalidError       (ValueError)    an argument, data set or file that does not fit
    │   └── MismatchError                  data made with other settings than the stored data
    ├── ConflictError      (RuntimeError)  another writer changed the same data first
    │   └── BusyError                      another process is writing this store
    ├── ReadOnlyError      (RuntimeError)  writing to something opened for reading
    ├── CorruptError       (RuntimeError)  stored data that breaks the rules of the format
    ├── UnsupportedError   (RuntimeError)  something that this backend or machine cannot do
    │   └── WorkersError                   no worker that can do the work, or no scheduler left
    ├── ExtractorError     (RuntimeError)  a model that does not start
    ├── UnreachableError                   object storage that does not answer, or denies access
    └── MissingExtraError  (ImportError)   an optional dependency that is not installed

A message is one line that says what was asked, what was found, and what to do. Several problems of
one kind are notes of the error (:meth:`BaseException.add_note`), one line each. Names and text of
strangers in either are made visible here, where tracebacks, logs and commands take them from.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from kpstore.visible import visible


class KpstoreError(Exception):
    """Root of all errors that kpstore raises on purpose."""

    def __str__(self) -> str:
        return visible(super().__str__())

    def add_note(self, note: str, /) -> None:
        """Add a line, in which everything is visible; see :meth:`BaseException.add_note`."""
        super().add_note(visible(note))


class NotFoundError(KpstoreError, LookupError):
    """A store, version, video, feature, split or file that does not exist."""


class ExistsError(KpstoreError, ValueError):
    """A name that is already taken."""


class InvalidError(KpstoreError, ValueError):
    """An argument, data set or file that does not fit."""


class MismatchError(InvalidError):
    """Data made with other settings than the stored data."""


class ConflictError(KpstoreError, RuntimeError):
    """Another writer changed the same data first."""


class BusyError(ConflictError):
    """Another process is writing this store."""


class ReadOnlyError(KpstoreError, RuntimeError):
    """Writing to something that was opened for reading."""


class CorruptError(KpstoreError, RuntimeError):
    """Stored data that breaks the rules of the format."""


class UnsupportedError(KpstoreError, RuntimeError):
    """Something that this backend or this machine cannot do."""


class WorkersError(UnsupportedError):
    """No worker that can do the work, or no scheduler left."""


class ExtractorError(KpstoreError, RuntimeError):
    """A model that does not start: it ends a run, and is not recorded as a failure of the data."""


class UnreachableError(KpstoreError):
    """Object storage that does not answer, or denies access; says nothing about what is stored.

    No built-in error is its parent, so that nobody takes it for damage, as an OSError of a file is.
    """


class despite_damage:
    """Go on behind a block after an error of kpstore, unless storage does not answer."""

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Return whether the error is one to ignore."""
        return (
            kind is not None
            and issubclass(kind, KpstoreError)
            and not issubclass(kind, UnreachableError)
        )


class MissingExtraError(KpstoreError, ImportError):
    """An optional dependency that is not installed.

    Parameters
    ----------
    what : what the user asked for, in their words.
    extra : the extra in ``pip install "kpstore[extra]"`` that installs the dependency.
    """

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(
            f'{what} needs an optional part of kpstore: pip install "kpstore[{extra}]"'
        )
        self.what, self.extra = what, extra

    def __reduce__(self) -> tuple[object, ...]:
        return _missing_extra, (self.what, self.extra)


def _missing_extra(what: str, extra: str) -> MissingExtraError:
    return MissingExtraError(what, extra=extra)


def several(error: KpstoreError, problems: Iterable[str]) -> KpstoreError:
    """Return an error with a note for each problem."""
    for problem in problems:
        error.add_note(f"  {problem}")
    return error


def one_line(reason: str | BaseException) -> str:
    """Return a reason, or an error with its kind, as one line of at most 500 characters."""
    given = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else reason
    text = " ".join(given.split())
    return text if len(text) <= 500 else text[:499] + "…"


DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What Python and most libraries raise over damaged bytes; each reader adds those of its own."""
