"""Every error that kpstore raises on purpose.

::

    KpstoreError ├── NotFoundError      (LookupError)   a store, version, video, feature, split or
    file that is not there ├── ExistsError        (ValueError)    a name that is already taken ├──
    InvalidError       (ValueError)    an argument, data set or file that does not fit │   └──
    MismatchError                  data made with other settings than what is stored ├──
    ConflictError      (RuntimeError)  another writer changed the same data first │   └── BusyError
    another process is writing this store right now ├── ReadOnlyError      (RuntimeError)  a write
    to something opened for reading ├── CorruptError       (RuntimeError)  stored data that breaks
    its own rules ├── UnsupportedError   (RuntimeError)  something that this backend or machine
    cannot do │   └── WorkersError                   no worker that can do the work, or no scheduler
    any more ├── ExtractorError     (RuntimeError)  a model that does not start └──
    MissingExtraError  (ImportError)   an optional dependency that is not installed

A message says what was asked, what was found, and what to do.
"""


class KpstoreError(Exception):
    """Root of all errors that kpstore raises on purpose."""


class NotFoundError(KpstoreError, LookupError):
    """A store, version, video, feature, split or file that is not there."""


class ExistsError(KpstoreError, ValueError):
    """A name that is already taken."""


class InvalidError(KpstoreError, ValueError):
    """An argument, data set or file that does not fit."""


class MismatchError(InvalidError):
    """Data made with other settings than what is stored."""


class ConflictError(KpstoreError, RuntimeError):
    """Another writer changed the same data first."""


class BusyError(ConflictError):
    """Another process is writing this store right now."""


class ReadOnlyError(KpstoreError, RuntimeError):
    """A write to something that was opened for reading."""


class CorruptError(KpstoreError, RuntimeError):
    """Stored data that breaks its own rules."""


class UnsupportedError(KpstoreError, RuntimeError):
    """Something that this backend or this machine cannot do."""


class WorkersError(UnsupportedError):
    """No worker that can do the work, or no scheduler any more."""


class ExtractorError(KpstoreError, RuntimeError):
    """A model that does not start: no fault of the data, so it ends a run instead of being recorded."""


class MissingExtraError(KpstoreError, ImportError):
    """An optional dependency that is not installed.

    Parameters
    ----------
    what : what was asked for, as the user would say it.
    extra : the extra of ``pip install "kpstore[extra]"`` that brings it.
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


def one_line(reason: str | BaseException) -> str:
    """Return a reason, or an error with its kind, as one line of at most 500 characters."""
    given = f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else reason
    text = " ".join(given.split())
    return text if len(text) <= 500 else text[:499] + "…"
