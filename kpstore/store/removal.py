"""Removing videos or features: from the newest version, or from all of them with their bytes.

In the newest version the arrays are written anew without the rows, in one commit. To remove them
everywhere, that is done on every branch and for every tag that leads to them, and then the versions
that still hold them are removed, with the older ones that they build upon.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kpstore.backends.asides import left_overs, of_other_machines
from kpstore.backends.base import MAIN, Backend, Commit, ReadSession
from kpstore.backends.garbage import Before, Collector, Retagger, kept_versions
from kpstore.backends.optional import HasAside
from kpstore.errors import ConflictError, NotFoundError, UnsupportedError
from kpstore.schema.index import nearest
from kpstore.store import format as fmt
from kpstore.store.cache import DecodedCache
from kpstore.store.removed import Removals
from kpstore.store.transaction import Transaction
from kpstore.store.without import Asked, commit_without, told
from kpstore.visible import logger

_log = logger(__name__)

_NOTHING_IS_OLD = datetime.fromtimestamp(0, UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Removal:
    """What was removed from a store, or would be.

    Parameters
    ----------
    location : the store.
    snapshot : the newest version of ``main``, without it.
    former : the newest version before.
    removed : rows by video and by feature.
    derived : features that were made from removed ones, and are still there.
    branches, tags : names that led to it, and lead to a version without it.
    versions : ids of versions that are gone for good, sorted.
    kept : number of versions that stay.
    applied : whether anything was removed.
    """

    location: str
    snapshot: str
    former: str
    removed: Removals
    derived: tuple[str, ...] = ()
    branches: tuple[str, ...] = (MAIN,)
    tags: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    kept: int = 0
    applied: bool = True

    def to_json(self) -> dict[str, object]:
        """Return the removal as JSON values."""
        rows = {
            kind: {name: one.rows for name, one in of.items()}
            for kind, of in (("videos", self.removed.videos), ("features", self.removed.features))
        }
        others = {key: value for key, value in asdict(self).items() if key != "removed"}
        return {**others, **rows}


def remove(
    backend: Backend, *, videos: Iterable[str] = (), features: Iterable[str] = ()
) -> Removal:
    """Remove videos, or features, in one commit; earlier versions keep them.

    Nothing of a video is left in the new version but its id, on record as removed, so that nothing
    adds it again before :func:`take_back`. The rows of all other videos stay the same, to the bit;
    their positions change.

    Raises
    ------
    NotFoundError
        If a video or a feature is not in the newest version; nothing is removed then.
    BusyError, ConflictError
        If another process is writing the store, or has changed it meanwhile.
    """
    asked = Asked.of(videos, features)
    with backend.exclusive("removal"):
        former = backend.branches()[MAIN]
        session, time = backend.session(former), _now()
        removed, about = asked.held(session, backend.location, time), _about(session, backend)
        for kind, name in asked.missing(removed):
            raise _not_in_newest(backend, session, about, kind, name)
        derived = _derived(about, asked)
        snapshot = commit_without(backend, MAIN, asked, removed)
    return Removal(backend.location, snapshot, former, removed, derived)


def remove_everywhere(
    backend: Backend,
    *,
    videos: Iterable[str] = (),
    features: Iterable[str] = (),
    apply: bool = False,
    cache: DecodedCache | None = None,
) -> Removal:
    """Remove videos, or features, from all versions, tags and branches, with their bytes.

    Each branch and tag that leads to them gets a version without them. All versions that hold them
    are removed, and with them those that are older: that is how histories are cut. Decoded copies
    of removed versions go too. This cannot be undone. After a kill the store is sound, and the same
    call goes on.

    Parameters
    ----------
    apply : whether to remove anything; otherwise this only says what would be removed.
    cache : where decoded copies are; by default the user's cache.

    Raises
    ------
    NotFoundError
        If a video or a feature is in no version, and not on record as removed.
    BusyError
        While a process, this one included, writes or has begun a transaction.
    CorruptError
        If records of versions, or rows that stay, are damaged; no version is removed then.
    UnsupportedError
        If the backend cannot remove versions.
    """
    asked = Asked.of(videos, features)
    if not isinstance(backend, Collector) or not isinstance(backend, Retagger):
        raise UnsupportedError(f"{backend.location} cannot remove versions; its backend has no way")
    with backend.exclusive("removal"):
        # This refuses open changes and damage, before anything is changed.
        unnamed = backend.collect_garbage(Before(_NOTHING_IS_OLD, _LATEST), apply=False).versions
        found = _Versions.read(backend, asked)
        removed = found.removed()
        for kind, name in asked.missing(removed):
            raise found.unknown(kind, name)
        branches, tags = found.branches(removed), found.tags()
        kept = found.kept({*branches.values(), *tags.values()})
        gone = tuple(sorted({*unnamed, *found.commits} - kept))
        former = backend.branches()[MAIN]
        derived = _derived(_about(backend.session(former), backend), asked)
        if apply:
            made = _replace_tips(backend, branches, asked, removed)

            def next_of(work: Backend, branch: str) -> str:
                tagged = work.branches()[branch]
                return made.get(tagged) or commit_without(work, branch, asked, removed)

            backend.replace_tagged(sorted(set(tags.values())), next_of)
            # Before the versions, which nothing would name as those of this store afterwards.
            (cache or DecodedCache()).clear(gone)
            _remove_unfinished(backend)
            backend.collect_garbage(Before(found.old, _LATEST), apply=True)
            left = _Versions.read(backend, asked).holding
            if left:
                raise ConflictError(
                    f"{backend.location} was changed meanwhile, and {len(left)} versions still "
                    "hold what was to be removed; repeat it"
                )
    return Removal(
        backend.location,
        backend.branches()[MAIN],
        former,
        removed,
        derived,
        tuple(branches),
        tuple(tags),
        gone,
        len(kept),
        apply,
    )


def take_back(backend: Backend, videos: Iterable[str]) -> str:
    """Let removed videos in again: whatever adds them next is not refused any more.

    Returns
    -------
    str
        Id of the new version. Nothing else is in it: what was removed is made by an ingest, or is
        in the versions before the removal.

    Raises
    ------
    NotFoundError
        If a video is not on record as removed.
    """
    asked = Asked.of(videos, ())
    with backend.exclusive("taking back"):
        tx = Transaction(backend, f"take back {told('video', asked.videos)}")
        with tx:
            removed = tx.removed
            for video in asked.videos:
                if video not in removed.videos:
                    hint = nearest(video, removed.videos) or "see 'kpstore info'"
                    raise NotFoundError(
                        f"video {video!r} is not on record as removed from {backend.location}; "
                        f"{hint}"
                    )
            tx.record_removals(removed.without(asked.videos))
    assert tx.snapshot is not None
    return tx.snapshot


# -- what to remove, and where it is ---------------------------------------------------------------


def _replace_tips(
    backend: Backend, branches: Mapping[str, str], asked: Asked, removed: Removals
) -> dict[str, str]:
    """Give branches, by name, a newest version without it; return new versions by former ones."""
    made: dict[str, str] = {}
    for name, tip in branches.items():
        if tip in made:
            backend.reset_branch(name, made[tip], expected=tip)
        else:
            made[tip] = commit_without(backend, name, asked, removed)
    return made


@dataclass(frozen=True)
class _Versions:
    """All versions that names lead to, and those of them that hold what is to be removed.

    Parameters
    ----------
    holding : what each of these versions holds, the newest ones of branches first.
    recorded : what branches have on record as removed, by their newest version.
    """

    backend: Backend
    asked: Asked
    commits: dict[str, Commit]
    holding: dict[str, Removals]
    recorded: dict[str, Removals]

    @classmethod
    def read(cls, backend: Backend, asked: Asked) -> _Versions:
        tips = dict.fromkeys([backend.branches()[MAIN], *backend.branches().values()])
        commits: dict[str, Commit] = {}
        for tip in [*tips, *backend.tags().values()]:
            for commit in backend.history(tip):
                if commit.id in commits:
                    break
                commits[commit.id] = commit
        time, holding = _now(), {}
        for version in commits:
            held = asked.held(backend.session(version), backend.location, time)
            if held:
                holding[version] = held
        recorded = {tip: fmt.read_removals(_about(backend.session(tip), backend)) for tip in tips}
        return cls(backend, asked, commits, holding, recorded)

    def removed(self) -> Removals:
        """Return what is, or was, there of what is to be removed."""
        all_of_it = Removals()
        for found in reversed([*self.holding.values(), *self.recorded.values()]):
            all_of_it = all_of_it.and_(found)
        videos = {v: all_of_it.videos[v] for v in self.asked.videos if v in all_of_it.videos}
        known = all_of_it.features
        return Removals(videos, {f: known[f] for f in self.asked.features if f in known})

    def branches(self, removed: Removals) -> dict[str, str]:
        """Return branches that need a new version: they hold it, or do not know that it is out."""
        return {
            name: tip
            for name, tip in self.backend.branches().items()
            if tip in self.holding or removed.videos.keys() - self.recorded[tip].videos.keys()
        }

    def tags(self) -> dict[str, str]:
        """Return tags that name a version that holds it."""
        tags = self.backend.tags()
        return {name: version for name, version in tags.items() if version in self.holding}

    @property
    def old(self) -> datetime:
        """Versions that were made before this time are removed, unless they are named."""
        times = [self.commits[version].time for version in self.holding]
        return max(times) + timedelta(microseconds=1) if times else _NOTHING_IS_OLD

    def kept(self, replaced: Collection[str]) -> set[str]:
        """Return what stays when some named versions get a next one that takes their names.

        The next ones are ids that no version has.
        """
        about: dict[str, tuple[str | None, datetime]] = {
            version: (commit.parent, commit.time) for version, commit in self.commits.items()
        }
        for version in replaced:
            about[f"after {version}"] = version, _LATEST
        named = {*self.backend.branches().values(), *self.backend.tags().values()}
        tips = [f"after {name}" if name in replaced else name for name in named]
        return kept_versions(tips, about.get, self.old)

    def unknown(self, kind: str, name: str) -> NotFoundError:
        """Return the error for what is in no version."""
        known: dict[str, None] = {}
        for version in self.commits:
            session = self.backend.session(version)
            if kind == "video":
                known.update(
                    dict.fromkeys(fmt.read_index(session, self.backend.location).ids.tolist())
                )
            else:
                known.update(dict.fromkeys(_about(session, self.backend)["features"]))
        hint = nearest(name, known) or f"there are {len(known)} {kind}s"
        return NotFoundError(
            f"{kind} {name!r} not found in any version of {self.backend.location}, so nothing was "
            f"removed; {hint}"
        )


def _about(session: ReadSession, backend: Backend) -> fmt.About:
    return fmt.read_root(session, backend.location)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _not_in_newest(
    backend: Backend, session: ReadSession, about: fmt.About, kind: str, name: str
) -> NotFoundError:
    recorded = fmt.read_removals(about)
    known = recorded.videos if kind == "video" else recorded.features
    if name in known:
        return NotFoundError(
            f"{kind} {name!r} was removed from {backend.location} on {known[name].time:%Y-%m-%d} "
            "already, so nothing was removed; --everywhere removes it from earlier versions too"
        )
    names = (
        fmt.read_index(session, backend.location).ids.tolist()
        if kind == "video"
        else about["features"]
    )
    hint = nearest(name, names) or f"there are {len(names)} {kind}s"
    return NotFoundError(
        f"{kind} {name!r} not found in {backend.location}, so nothing was removed; {hint}"
    )


def _derived(about: fmt.About, asked: Asked) -> tuple[str, ...]:
    """Return features that were made from those to be removed, such as predictions."""
    stored = fmt.read_features(about)
    return tuple(
        name
        for name, one in stored.items()
        if one.provenance.get("source") in asked.features and name not in asked.features
    )


# -- what lies beside the store --------------------------------------------------------------------


def _remove_unfinished(backend: Backend) -> None:
    """Remove copies that were to become this store, of writers that were killed."""
    if isinstance(backend, HasAside):
        return  # nothing is beside it
    path = Path(backend.location).resolve()
    for left_over in left_overs(path, "building"):
        type(backend)(str(left_over)).remove()  # type: ignore[call-arg]
    for what in ("building", "writing"):
        for copy in of_other_machines(path, what):
            _log.warning(
                "%s may hold what was removed: a process on another machine made it; delete it if "
                "none is running there",
                copy,
            )
