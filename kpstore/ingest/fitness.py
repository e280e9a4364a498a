"""How a worker proves, before its first task, that it computes the same numbers as the driver.

The driver sends a :class:`Question`; the worker answers with its flaws, of which a fit worker has
none. docs/decisions/004 says what is compared, and why.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from kpstore._version import __version__
from kpstore.backends.optional import Sidecar
from kpstore.errors import UnreachableError, UnsupportedError, one_line
from kpstore.ingest import own_code
from kpstore.ingest.gpus import VISIBLE
from kpstore.ingest.job import Job, by_value
from kpstore.ingest.own_code import hash_of, versions
from kpstore.ingest.sight import look
from kpstore.schema.index import VideoRecord

DECIDING = (
    *("numpy", "pillow", "av", "zarr", "numcodecs", "icechunk", "xxhash"),
    *("opencv-python", "opencv-python-headless"),
    *("opencv-contrib-python", "opencv-contrib-python-headless"),
)
"""Distributions that read pictures or write numbers; those of a model are in its provenance."""

# Keys of a provenance that may differ within a cluster, or are compared elsewhere
_MAY_DIFFER = frozenset({"document", "kpstore", "processor"})

_PACKAGE = Path(__file__).parents[1]
# How long a file from another machine may take to appear on a network file system
_APPEARS_S = 3.0


@dataclass(frozen=True)
class Fingerprint:
    """Code and libraries of one process.

    Parameters
    ----------
    code : a hash of each file of kpstore, but for its command line.
    libraries : version by distribution, of :data:`DECIDING`; those that are not installed are left
        out.
    """

    kpstore: str
    python: str
    code: Mapping[str, str]
    libraries: Mapping[str, str]


def fingerprint() -> Fingerprint:
    """Return the fingerprint of what is installed here now."""
    # An installed kpstore holds the command line, which decides no numbers; a checkout has it in
    # another folder.
    files = [
        path
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.relative_to(_PACKAGE).parts[0] != "cli"
    ]
    code = {path.relative_to(_PACKAGE).as_posix(): hash_of(path) for path in files}
    return Fingerprint(
        __version__, ".".join(platform.python_version_tuple()[:2]), code, versions(DECIDING)
    )


# What this process has loaded; other versions may have been installed since
_when_loaded = fingerprint()


@dataclass(frozen=True)
class Question:
    """Everything that a worker has to agree with before its first task.

    Parameters
    ----------
    job : the run's :class:`~kpstore.ingest.job.Job`, pickled: the worker compares its code before
        it imports what the job needs.
    fingerprint : the driver's.
    provenance : of the driver's extractor, as JSON; ``""`` is not compared.
    modules : a hash of each file of the user's own that extractor and source need, by module.
    libraries : version of each distribution that these modules import.
    pictures : videos, and a hash of the driver's pixels of each; empty for workers on the driver's
        machine.
    nonce : a text at the job's meeting place, if there is one.
    gpus : GPUs of which the worker must see one first; empty if it may see any.
    """

    job: bytes
    fingerprint: Fingerprint
    provenance: str = ""
    modules: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[tuple[VideoRecord, str], ...] = ()
    nonce: str = ""
    gpus: tuple[str, ...] = ()


def question(job: Job, *, nonce: str, pictures: tuple[tuple[VideoRecord, str], ...]) -> Question:
    """Return the question for workers that this process has not started.

    Raises
    ------
    UnsupportedError
        If kpstore or a library has changed since this process loaded it.
    """
    libraries = own_code.libraries(job)
    for name in own_code.changed_libraries(libraries):
        raise UnsupportedError(f"{name} was changed since this process started; start again")
    return Question(
        by_value(job),
        _own_fingerprint(),
        _provenance(job),
        own_code.modules(job),
        libraries,
        pictures,
        nonce,
    )


def short_question(job: Job, *, nonce: str, gpus: tuple[str, ...]) -> Question:
    """Return the question for workers that this process has started on its own machine."""
    return Question(by_value(job), _own_fingerprint(), nonce=nonce, gpus=gpus)


def _own_fingerprint() -> Fingerprint:
    """Return the fingerprint of what the driver has loaded, which must not have changed since."""
    if fingerprint() != _when_loaded:
        raise UnsupportedError(
            "kpstore or a library was changed since this process started; start again"
        )
    return _when_loaded


def _provenance(job: Job) -> str:
    kept = {
        feature: {key: value for key, value in made.items() if key not in _MAY_DIFFER}
        for feature, made in job.extractor.provenance.items()
    }
    return json.dumps(kept, sort_keys=True)


def flaws(asked: Question, answer: str) -> list[str]:
    """Return what makes this process unfit, one line each.

    Parameters
    ----------
    answer : name of a text to leave at the meeting place, if there is one.
    """
    changed = own_code.changed_libraries(asked.libraries)
    found = [f"{name} was changed after it started; start it again" for name in changed]
    found += [*_code_flaws(asked), *own_code.module_flaws(asked.modules)]
    if found:
        return found  # other code need not even understand the rest
    try:
        job: Job = pickle.loads(asked.job)
    except Exception as error:  # whatever its parts raise when they are imported
        what = "the extractor or the source cannot be imported there"
        return [one_line(f"{what}: {type(error).__name__}: {error}")]
    if job.meeting is not None:
        found += _meeting_flaws(job.meeting, asked.nonce, answer)
    if asked.gpus:
        first = os.environ.get(VISIBLE, "").split(",")[0].strip()
        if first not in asked.gpus:
            found.append(
                f"its first GPU is {first or 'none'!r}, not one of {', '.join(asked.gpus)}"
            )
    return found + _provenance_flaws(job, asked.provenance) + _picture_flaws(job, asked.pictures)


def _code_flaws(asked: Question) -> list[str]:
    ours, theirs = fingerprint(), asked.fingerprint
    if ours != _when_loaded:
        return ["kpstore or a library was changed after it started; start it again"]
    found = []
    if ours.kpstore != theirs.kpstore:
        found.append(_differs("kpstore", ours.kpstore, theirs.kpstore))
    if ours.python != theirs.python:
        found.append(_differs("Python", ours.python, theirs.python))
    different = sorted(
        name for name in {*ours.code, *theirs.code} if ours.code.get(name) != theirs.code.get(name)
    )
    if different and ours.kpstore == theirs.kpstore:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        found.append(
            f"kpstore is {ours.kpstore} as at the driver, but other code: {different[0]}{more}"
        )
    here = {**versions(asked.libraries), **ours.libraries}
    there = {**asked.libraries, **theirs.libraries}
    names = sorted(name for name in here.keys() & there.keys() if here[name] != there[name])
    return found + [_differs(name, here[name], there[name]) for name in names]


def _differs(what: str, here: str, there: str) -> str:
    return f"{what} is {here} there and {there} at the driver"


def _meeting_flaws(meeting: Sidecar, nonce: str, answer: str) -> list[str]:
    try:
        if not _appears(meeting, _NONCE) or meeting.read(_NONCE) != nonce:
            return [f"it sees another store than the driver at {meeting.store}"]
    except UnreachableError as error:
        return [one_line(f"it cannot read the store: {error}")]
    try:
        meeting.write(f"{_MEETING}/{answer}", nonce)
    except OSError as error:
        return [f"it cannot write to the store at {meeting.store}: {error.strerror}"]
    except UnreachableError as error:
        return [one_line(f"it cannot write to the store: {error}")]
    return []


def _appears(meeting: Sidecar, name: str) -> bool:
    """Whether a text exists or appears soon: network file systems cache the contents of folders."""
    until = time.monotonic() + _APPEARS_S
    while True:
        try:
            meeting.read(name)
        except FileNotFoundError:
            if time.monotonic() > until or not meeting.exists():
                return False
            time.sleep(0.1)
        else:
            return True


def _provenance_flaws(job: Job, expected: str) -> list[str]:
    if not expected:
        return []
    try:
        ours = _provenance(job)
    except Exception as error:  # whatever it raises, the driver's extractor could answer
        return [f"the extractor does not work there: {one_line(str(error))}"]
    if ours == expected:
        return []
    what, here, there = _difference(json.loads(ours), json.loads(expected))
    return [one_line(_differs(what, json.dumps(here), json.dumps(there)))]


def _difference(here: object, there: object, at: str = "") -> tuple[str, object, object]:
    """Return the first place, in the order of names, in which two JSON values differ."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                return _difference(here.get(key), there.get(key), f"{at}.{key}" if at else key)
    return at, here, there


def _picture_flaws(job: Job, pictures: Iterable[tuple[VideoRecord, str]]) -> list[str]:
    for record, pixels in pictures:
        seen = look(job.source, record, whole=False)
        if not seen.pixels:
            reason = f"it cannot read video {record.id!r}, which the driver can: {seen.reason}"
            return [one_line(reason)]
        if seen.pixels != pixels:
            what = f"the first frame of video {record.id!r}"
            return [f"it reads other pixels than the driver from {what}"]
    return []


# -- the meeting place -----------------------------------------------------------------------------

_MEETING = "meeting"
_NONCE = f"{_MEETING}/nonce"


@dataclass
class Meeting:
    """Texts beside the store, by which driver and workers show that they see the same store.

    Parameters
    ----------
    place : holds them until the end of the run; None if workers need not see the store.
    nonce : the driver's text.
    """

    place: Sidecar | None
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __enter__(self) -> Self:
        if self.place is not None:
            self.place.clear(_MEETING)  # of a run that was killed
            self.place.write(_NONCE, self.nonce)
        return self

    def __exit__(self, *_: object) -> None:
        if self.place is not None:
            with suppress(UnreachableError):
                self.place.clear(_MEETING)

    def flaws(self, answer: str) -> list[str]:
        """Return what is wrong if a worker's answer does not arrive here.

        It may see the place and yet write elsewhere, on a layer above it.

        Parameters
        ----------
        answer : name of the text that it has left.
        """
        if self.place is None:
            return []
        name = f"{_MEETING}/{answer}"
        if _appears(self.place, name) and self.place.read(name) == self.nonce:
            return []
        return [f"what it writes to the store at {self.place.store} does not arrive at the driver"]
