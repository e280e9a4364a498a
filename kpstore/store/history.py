"""Versions by name: what ``at=`` means, tags, branches, going back."""

from __future__ import annotations

import itertools
import re
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime

from kpstore.backends.base import MAIN, Backend, Commit
from kpstore.errors import ExistsError, InvalidError, NotFoundError

At = str | datetime | None
"""A version: a tag, a branch, a snapshot id, a time (``datetime`` or ISO text).

None is the newest on ``main``.
"""


def resolve(backend: Backend, at: At) -> str:
    """Return the id of the version that ``at`` names.

    Text is looked up as a tag, then a branch, then a snapshot id, then read as a time: the newest
    version of ``main`` at or before it. A time without a zone is local time.

    Raises
    ------
    NotFoundError
        If nothing has that name, or the store is younger than that time.
    """
    branches = backend.branches()
    if at is None:
        return branches[MAIN]
    if isinstance(at, datetime):
        return _at_time(backend, at, branches[MAIN])
    at = composed(at)
    for names in (backend.tags(), branches):
        if at in names:
            return names[at]
    try:
        return backend.session(at).snapshot
    except NotFoundError:
        pass
    try:
        return _at_time(backend, datetime.fromisoformat(at), branches[MAIN])
    except ValueError:
        raise NotFoundError(
            f"version {at!r} of {backend.location} not found; tags: "
            f"{', '.join(backend.tags()) or 'none'}; branches: {', '.join(branches)}; a snapshot "
            "id or a time (2026-01-31T12:00) will do too"
        ) from None


def _at_time(backend: Backend, time: datetime, tip: str) -> str:
    wanted = time.astimezone(UTC)
    oldest = None
    for commit in backend.history(tip):
        if commit.time <= wanted:
            return commit.id
        oldest = commit.time
    # Not a ValueError: resolve() tells an unreadable time apart by that.
    raise NotFoundError(
        f"no version of {backend.location} is as old as {time.isoformat()}; the first is from "
        f"{oldest}"
    )


def rollback(backend: Backend, to: At, *, now: datetime | None = None) -> tuple[str, str]:
    """Make an earlier version the newest of ``main`` and keep the old one on a branch.

    That branch leads back again.

    A backend without branches keeps it by a tag.

    Returns
    -------
    snapshot : id of the version that is now the newest.
    kept : name of the branch, or tag, that still leads to what was the newest before.
    """
    # Looked up under the lock: what an ingest commits meanwhile must not fall between the two
    # branches.
    with backend.exclusive("rollback"):
        target, tip = resolve(backend, to), backend.branches()[MAIN]
        if target == tip:
            raise InvalidError(
                f"{to!r} already is the newest version of {backend.location}; nothing to roll back"
            )
        if target not in _reachable(backend, tip):
            raise InvalidError(
                f"{to!r} is not an ancestor of the newest version of {backend.location}; see "
                "'kpstore log'"
            )
        kept = _keep(backend, tip, _KEPT + (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S"))
        backend.reset_branch(MAIN, target, expected=tip)
    return target, kept


_KEPT = "before-rollback-"
"""How the branches (or tags) are called that keep what was the newest version."""


def _reachable(backend: Backend, tip: str) -> set[str]:
    """Return the versions that ``main`` holds or held before a rollback."""
    names = {**backend.tags(), **backend.branches()}
    kept = [snapshot for name, snapshot in names.items() if name.startswith(_KEPT)]
    return {commit.id for start in (tip, *kept) for commit in backend.history(start)}


def _keep(backend: Backend, snapshot: str, name: str) -> str:
    """Give a version a branch, or a tag where there are no branches.

    Return its name, numbered if it was taken.
    """
    keep = backend.create_branch if backend.capabilities.branches else backend.create_tag
    for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
        with suppress(
            ExistsError
        ):  # by a rollback of the same second, or by a tag that was deleted
            keep(candidate, snapshot)
            return candidate
    raise AssertionError("numbers do not end")


def composed(name: str) -> str:
    """Return a name as it is kept: some keyboards and file systems give ``ö`` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def check_name(kind: str, name: str) -> str:
    """Return a tag's or branch's name as it is kept.

    Raises
    ------
    InvalidError
        If it could be taken for something else.
    """
    name = composed(name)
    # Marks make letters of some scripts, Devanagari for one, together with others.
    letters = "".join(
        "a" if unicodedata.category(letter).startswith("M") else letter for letter in name
    )
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", letters):
        raise InvalidError(
            f"{kind} name {name!r}: use letters, digits, '.', '-', '+' and '_', at least one of "
            "them no sign"
        )
    return name


def commits(backend: Backend, at: At = None) -> list[Commit]:
    """Return a version and all that it builds upon, newest first."""
    return list(backend.history(resolve(backend, at)))
