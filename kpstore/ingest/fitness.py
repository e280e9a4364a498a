"""How a worker proves, before its first task, that it would make the numbers that the driver would make.

The driver sends a :class:`Question`; the worker answers with what is wrong with it, which is
nothing for a fit one. docs/decisions/004 says what is compared, and why.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kpstore._version import __version__
from kpstore.errors import UnsupportedError, one_line
from kpstore.ingest import own_code
from kpstore.ingest.gpus import VISIBLE
from kpstore.ingest.job import Job
from kpstore.ingest.own_code import hash_of, versions
from kpstore.ingest.sight import look
from kpstore.schema.index import VideoRecord

DECIDING = (
    *("numpy", "pillow", "av", "zarr", "numcodecs", "icechunk", "xxhash"),
    *(
        "opencv-python",
        "opencv-python-headless",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
)
"""Distributions that read pictures or write numbers.

Those that a model needs are in its provenance.
"""

_MAY_DIFFER = frozenset({"document", "kpstore", "processor"})
"""Of a provenance: what has nothing to do with the numbers, is compared elsewhere, or may differ within a cluster."""

_PACKAGE = Path(__file__).parents[1]
_APPEARS_S = 3.0
"""How long a file that another machine has just written may take to appear here, on a network's file system."""


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


_when_loaded = fingerprint()
"""Of a process that has run for weeks: what it loaded, whatever was installed since."""


@dataclass(frozen=True)
class Question:
    """What a worker is asked before its first task.

    Parameters
    ----------
    job : the run's :class:`~kpstore.ingest.job.Job`, pickled: what it needs is imported after a
        look at what is loaded.
    fingerprint : the driver's.
    provenance : what the driver's extractor says of how it makes its features; ``""`` is not
        compared.
    modules : a hash of each file with code of the user's own that extractor and source need, by the
        module's name.
    libraries : version of each distribution that this code imports.
    pictures : videos, and a hash of the pixels that the driver sees in each; none for workers on
        the driver's machine.
    nonce : what the worker finds in the job's meeting folder, if there is one.
    gpus : the GPUs of which the worker has to see one before all others; none if it may see any.
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
    """Return what workers that others have started are asked.

    Raises
    ------
    UnsupportedError
        If kpstore or a library has changed since this process loaded it.
    """
    libraries = own_code.libraries(job)
    for name in own_code.changed_libraries(libraries):
        raise UnsupportedError(f"{name} was changed since this process started; start again")
    return Question(
        _pickled(job),
        _own_fingerprint(),
        _provenance(job),
        own_code.modules(job),
        libraries,
        pictures,
        nonce,
    )


def short_question(job: Job, *, nonce: str, gpus: tuple[str, ...]) -> Question:
    """Return what workers are asked that this process has started on its own machine: they share what it has."""
    return Question(_pickled(job), _own_fingerprint(), nonce=nonce, gpus=gpus)


def _own_fingerprint() -> Fingerprint:
    """Return the driver's: of what it has loaded, with which new workers could not agree if it has changed since."""
    if fingerprint() != _when_loaded:
        raise UnsupportedError(
            "kpstore or a library was changed since this process started; start again"
        )
    return _when_loaded


def _pickled(job: Job) -> bytes:
    import cloudpickle

    payload: bytes = cloudpickle.dumps(job)
    return payload


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
    answer : name of a file that is to be left in the meeting folder, if there is one.
    """
    changed = own_code.changed_libraries(asked.libraries)
    found = [f"{name} was changed after it started; start it again" for name in changed]
    found += [*_code_flaws(asked), *own_code.module_flaws(asked.modules)]
    if found:
        return found  # other code need not even understand the rest
    try:
        job: Job = pickle.loads(asked.job)
    except Exception as error:  # whatever its parts raise when they are imported
        return [
            one_line(
                f"the extractor or the source cannot be imported there: {type(error).__name__}: "
                f"{error}"
            )
        ]
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
    for what, here, there in (
        ("kpstore", ours.kpstore, theirs.kpstore),
        ("Python", ours.python, theirs.python),
    ):
        if here != there:
            found.append(f"{what} is {here} there and {there} at the driver")
    different = sorted(
        name for name in {*ours.code, *theirs.code} if ours.code.get(name) != theirs.code.get(name)
    )
    if different and ours.kpstore == theirs.kpstore:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        found.append(
            f"kpstore is {ours.kpstore} as at the driver, but other code: {different[0]}{more}"
        )
    mine, drivers = (
        {**versions(asked.libraries), **ours.libraries},
        {**asked.libraries, **theirs.libraries},
    )
    for name in sorted({*mine} & {*drivers}):
        if mine[name] != drivers[name]:
            found.append(f"{name} is {mine[name]} there and {drivers[name]} at the driver")
    return found


def _meeting_flaws(meeting: Path, nonce: str, answer: str) -> list[str]:
    sign = meeting / _NONCE
    if not _appears(sign) or sign.read_text(encoding="utf-8") != nonce:
        return [f"it sees another store than the driver at {meeting.parent.parent}"]
    try:
        (meeting / answer).write_text(nonce, encoding="utf-8")
    except OSError as error:
        return [f"it cannot write to the store at {meeting.parent.parent}: {error.strerror}"]
    return []


def _appears(path: Path) -> bool:
    """Whether a file is there, or comes soon: network file systems keep what they know of a folder for a while."""
    until = time.monotonic() + _APPEARS_S
    while not path.exists():
        if time.monotonic() > until or not path.parent.parent.exists():
            return False
        time.sleep(0.1)
    return True


def _provenance_flaws(job: Job, expected: str) -> list[str]:
    if not expected:
        return []
    try:
        ours = _provenance(job)
    except (
        Exception
    ) as error:  # whatever stands in its way here, the driver's extractor could answer
        return [f"the extractor does not work there: {one_line(str(error))}"]
    if ours == expected:
        return []
    what, here, there = _difference(json.loads(ours), json.loads(expected))
    return [one_line(f"{what} is {json.dumps(here)} there and {json.dumps(there)} at the driver")]


def _difference(here: Any, there: Any, at: str = "") -> tuple[str, Any, Any]:
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
            return [
                one_line(f"it cannot read video {record.id!r}, which the driver can: {seen.reason}")
            ]
        if seen.pixels != pixels:
            return [
                f"it reads other pixels than the driver from the first frame of video {record.id!r}"
            ]
    return []


# -- the meeting folder ----------------------------------------------------------------------------

_NONCE = "nonce"


@dataclass
class Meeting:
    """A folder beside the store in which driver and workers show each other that they see one store.

    Parameters
    ----------
    folder : made at the start, removed at the end; None if workers need not see the store.
    """

    folder: Path | None
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __enter__(self) -> Self:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed
            self.folder.mkdir(parents=True)
            (self.folder / _NONCE).write_text(self.nonce, encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def flaws(self, answer: str) -> list[str]:
        """Return what is wrong if a worker's answer is not here: it may see what is below its folder, and write above.

        Parameters
        ----------
        answer : name of the file that it has left.
        """
        if self.folder is None:
            return []
        file = self.folder / answer
        if _appears(file) and file.read_text(encoding="utf-8") == self.nonce:
            return []
        return [
            f"what it writes to the store at {self.folder.parent.parent} does not arrive at the "
            "driver"
        ]
