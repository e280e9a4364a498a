"""Versions by name: what ``at=`` means, tags, branches, rollback, and which versions stay."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from kpstore.backends.base import MAIN, Backend
from kpstore.backends.garbage import Before, Collector, Garbage
from kpstore.errors import (
    ExistsError,
    InvalidError,
    KpstoreError,
    NotFoundError,
    UnreachableError,
    UnsupportedError,
)
from kpstore.schema.fields import check_whole, is_storable, shown
from kpstore.store import format as fmt
from kpstore.store.removed import Removals

At = str | datetime | None
"""A version: a tag, a branch, a snapshot id, a time (``datetime`` or ISO text).

None is the newest on ``main``.
"""


def resolve(backend: Backend, at: At) -> str:
    """Return the id of the version that ``at`` names.

    Text is looked up as a tag, a branch and a snapshot id, and then read as a time: the newest
    version of ``main`` at or before it. A time without a time zone is local time.

    Raises
    ------
    NotFoundError
        If nothing has that name, or the store is newer than that time.
    InvalidError
        If it is no name at all.
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
    if at.isprintable():  # a backend may look for a file of that name
        with suppress(NotFoundError):
            return backend.session(at).snapshot
    try:
        return _at_time(backend, datetime.fromisoformat(at), branches[MAIN])
    except ValueError:
        raise NotFoundError(
            f"version {at!r} of {backend.location} not found; tags: "
            f"{', '.join(backend.tags()) or 'none'}; branches: {', '.join(branches)}; a snapshot "
            "id or a time (2026-01-31T12:00) is accepted as well"
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
    """Make an earlier version the newest of ``main``, and keep the old one on a branch.

    A version that has a tag may be any: garbage collection may have cut the way to it. A backend
    without branches keeps the old one by a tag. Videos that are on record as removed, and that the
    version never had, stay on record, for which another version is made.

    Returns
    -------
    snapshot : id of the version that is now the newest.
    kept : name of the branch, or tag, of the version that was the newest before.
    """
    # Looked up under the lock: a commit made meanwhile would be on neither branch.
    with backend.exclusive("rollback"):
        target, tip = resolve(backend, to), backend.branches()[MAIN]
        if target == tip:
            raise InvalidError(
                f"{to!r} already is the newest version of {backend.location}; nothing to roll back"
            )
        if target not in _reachable(backend, tip):
            raise InvalidError(
                f"{to!r} is not an ancestor of the newest version of {backend.location}, and has "
                "no tag; see 'kpstore log', or tag it first"
            )
        kept = _keep(backend, tip, _KEPT + (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S"))
        stay_out = _stay_out(backend, tip, target)
        backend.reset_branch(MAIN, target, expected=tip)
        if stay_out:
            from kpstore.store.without import Asked, commit_without  # opening needs no commits

            asked = Asked(tuple(stay_out.videos), ())
            target = commit_without(backend, MAIN, asked, stay_out)
    return target, kept


def _stay_out(backend: Backend, tip: str, target: str) -> Removals:
    """Return removed videos that a rollback would not bring back, but only forget about."""
    found = Removals()
    with suppress(KpstoreError):  # a rollback may be the way out of damage
        tip_about, about = (
            fmt.read_root(backend.session(version), backend.location) for version in (tip, target)
        )
        index = fmt.read_index(backend.session(target), backend.location)
        forgotten = fmt.read_removals(tip_about).without(fmt.read_removals(about).videos)
        found = Removals(forgotten.without(index.ids.tolist()).videos)
    return found


_KEPT = "before-rollback-"
"""Prefix of the branches (or tags) that keep the version that was the newest."""


def _reachable(backend: Backend, tip: str) -> set[str]:
    """Return the versions that ``main`` holds, or held before a rollback, and those with a tag."""
    tags = backend.tags()
    names = {**tags, **backend.branches()}
    kept = [snapshot for name, snapshot in names.items() if name.startswith(_KEPT)]
    held = {commit.id for start in (tip, *kept) for commit in backend.history(start)}
    return held.union(tags.values())


def _keep(backend: Backend, snapshot: str, name: str) -> str:
    """Give a version a branch, or else a tag; return its name, numbered if it was taken."""
    keep = backend.create_branch if backend.capabilities.branches else backend.create_tag
    for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
        with suppress(ExistsError):  # taken in the same second, or by a tag that was deleted
            keep(candidate, snapshot)
            return candidate
    raise AssertionError("numbers do not end")


def collect_garbage(
    backend: Backend,
    *,
    older_than: timedelta = timedelta(days=7),
    keep: int = 1,
    apply: bool = False,
    now: datetime | None = None,
) -> Garbage:
    """Remove old versions, and what killed writers have left, so that a store gets smaller.

    Versions that branches and tags name always stay, and so do younger ones that they build upon.
    Versions that no name leads to are removed.

    **Open readers.** Whoever reads a version that stays is never disturbed. A reader of a version
    that is removed keeps what it has mapped or read; on Icechunk its next read from disk is an
    error of one line, and on HDF5, where the file is replaced, an open reader goes on.

    Parameters
    ----------
    older_than : versions, and files that no version needs, are removed from this age on.
    keep : the newest ``keep`` versions of each branch stay, whatever their age.
    apply : whether to remove anything; otherwise this only says what would be removed.
    now : the present time.

    Raises
    ------
    BusyError
        While a process, this one included, writes or has begun a transaction.
    CorruptError
        If records of versions are damaged; nothing is removed then.
    UnsupportedError
        If the backend cannot remove versions.
    """
    check_whole("keep", keep, 1)  # at least the newest version of each branch stays
    if not isinstance(older_than, timedelta) or older_than < timedelta(0):
        raise InvalidError(f"older_than is {shown(older_than)}; give a timedelta of 0 or more")
    if not isinstance(backend, Collector):
        raise UnsupportedError(f"{backend.location} cannot remove versions; its backend has no way")
    with backend.exclusive("garbage collection"):
        present = now or datetime.now(UTC)
        # File systems may set times ahead of this machine's clock.
        files = present - older_than if older_than else present + timedelta(days=1)
        versions = present - older_than
        for tip in backend.branches().values():
            for number, commit in enumerate(backend.history(tip), start=1):
                versions = min(versions, commit.time)
                if number == keep:
                    break
        return backend.collect_garbage(Before(versions, files), apply=apply)


def composed(name: str) -> str:
    """Return a name in the form that is stored: ``ö`` may be typed as one character or two.

    Raises
    ------
    InvalidError
        If it is not text.
    """
    if not isinstance(name, str) or not is_storable(name):
        raise InvalidError(f"{shown(name)} is not the name of a version, tag or branch; give text")
    return unicodedata.normalize("NFC", name)


def check_name(kind: str, name: str) -> str:
    """Return a tag's or branch's name in the form that is stored.

    Raises
    ------
    InvalidError
        If it holds other characters than letters, digits and a few signs.
    """
    name = composed(name)
    # In some scripts, such as Devanagari, letters are written with combining marks.
    letters = "".join(
        "a" if unicodedata.category(letter).startswith("M") else letter for letter in name
    )
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", letters):
        raise InvalidError(
            f"{kind} name {name!r}: use letters, digits, '.', '-', '+' and '_', with at least one "
            "letter or digit"
        )
    return name


def known_versions(
    backend: Backend, on_error: Callable[[str, KpstoreError, str], None] = lambda *_: None
) -> dict[str, str]:
    """Return the versions that branches and tags lead to, by id, with a name for each.

    The newest of ``main`` comes first. A version without a branch or tag of its own, and the
    newest of ``main``, are named by their ids.

    Parameters
    ----------
    on_error : called for what cannot be read: where, the error, and the id of the version whose
        history it is, or ``""``.
    """
    tips: dict[str, tuple[str, str]] = {}
    for kind, list_names in (("branch", backend.branches), ("tag", backend.tags)):
        try:
            names = list_names()
        except UnreachableError:
            raise
        except KpstoreError as error:
            on_error(f"each {kind}", error, "")
            continue
        if kind == "branch" and MAIN not in names:
            on_error("branches", NotFoundError(f"there is no branch {MAIN!r}"), "")
        for name in sorted(names, key=lambda name: name != MAIN):
            try:
                tips[f"{kind} {name!r}"] = (name, names[name])
            except UnreachableError:
                raise
            except KpstoreError as error:
                on_error(f"{kind} {name!r}", error, "")
    named = {tip: name for name, tip in tips.values() if name != MAIN}
    found: dict[str, str] = {}
    for where, (_, tip) in tips.items():
        found.setdefault(tip, named.get(tip, tip))
        try:
            for commit in backend.history(tip):
                found.setdefault(commit.id, named.get(commit.id, commit.id))
        except UnreachableError:
            raise
        except KpstoreError as error:
            on_error(where, error, tip)
    return found
