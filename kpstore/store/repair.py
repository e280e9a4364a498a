"""What is damaged becomes pending again, in one commit, so that the ordinary ingest makes just that anew.

A damaged chunk is overwritten whole: every video that has rows in it goes back to pending. What
says how far videos are (status, state, failures) is worked out from what is sound, where that is
exact; labels come from the feature's spec. The list of videos, their splits, paths and annotations
are written nowhere else: what is damaged of them is told, with the version that still holds it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import MAIN, Backend
from kpstore.errors import CorruptError, KpstoreError, NotFoundError, one_line
from kpstore.extractors.registry import recorded
from kpstore.schema.feature import FeatureSpec, State
from kpstore.schema.index import VideoIndex
from kpstore.store import format as fmt
from kpstore.store import history
from kpstore.store.chunk_checks import ChunkReader, Problem, Verification
from kpstore.store.salvage import StateRecords, read_state_records
from kpstore.store.store import BaseStore, backend_for
from kpstore.store.transaction import Transaction

_KEPT_IDS = 1000
"""Videos that a commit names."""
_NOT_EXTRACTED = ("", "imported", "predict")
"""Makers of features of which each stands alone."""


@dataclass(frozen=True)
class FeatureRepair:
    """What becomes of one feature.

    Parameters
    ----------
    feature : its name.
    videos : ids that go back to pending.
    frames : how many frames these have.
    rebuilt : arrays that were damaged and are worked out from others.
    again : how the pending videos are made again.
    """

    feature: str
    videos: tuple[str, ...]
    frames: int
    rebuilt: tuple[str, ...]
    again: str


@dataclass(frozen=True)
class Repair:
    """What was damaged in the newest version, and what was done.

    Parameters
    ----------
    location, snapshot : the version that was looked at.
    made : the version that was made; None if nothing was to be written, or with ``dry_run``.
    problems : damaged chunks.
    features : what becomes of each feature that is concerned.
    labels : names of axes whose labels are written again.
    left : what cannot be mended here, a line each, with a way out.
    dry_run : whether this is only what would be done.
    """

    location: str
    snapshot: str
    made: str | None = None
    problems: tuple[Problem, ...] = ()
    features: tuple[FeatureRepair, ...] = ()
    labels: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return asdict(self)


def repair(
    location: str, *, dry_run: bool = False, on_rows: Callable[[int], None] | None = None
) -> Repair:
    """Read all of the newest version and make pending what is damaged in it.

    Older versions keep their damage.

    Parameters
    ----------
    location : the store.
    dry_run : only say what would be done.
    on_rows : told of rows each time some more were read.

    Raises
    ------
    NotFoundError
        If there is no store.
    CorruptError
        If the newest version cannot be opened at all; the message names one that can.
    BusyError
        If another process is writing the store.
    """
    backend = backend_for(location)
    store = _open_newest(backend)
    with backend.exclusive("repair"):
        store = _open_newest(backend)  # nobody commits from here on
        return _Repair(store, on_rows or (lambda n: None)).run(dry_run=dry_run)


def _open_newest(backend: Backend) -> BaseStore:
    try:
        store = BaseStore(backend, history.resolve(backend, None), cache="off")
        store.features  # noqa: B018 - reads what the store says of itself
    except NotFoundError:
        if not backend.exists():
            raise
        raise _unopened(backend, "it is not there") from None
    except CorruptError as error:
        raise _unopened(backend, one_line(str(error))) from error
    return store


def _unopened(backend: Backend, reason: str) -> CorruptError:
    what = f"the newest version of {backend.location} cannot be opened ({reason})"
    for snapshot, name in _known_versions(backend):
        try:
            older = BaseStore(backend, snapshot, cache="off")
            older.features, older.index  # noqa: B018
        except KpstoreError:
            continue
        return CorruptError(
            f"{what}, so nothing is repaired; version {name} can: 'kpstore convert "
            f"{backend.location} COPY --at {name}' copies it, 'kpstore rollback {backend.location} "
            f"--to {name}' goes back to it"
        )
    return CorruptError(
        f"{what}, and no other version that is known can; restore the store from a copy"
    )


def _known_versions(backend: Backend) -> Iterator[tuple[str, str]]:
    """Yield versions by id, with the name to call each by, for as far as they can be found: the newest first."""
    tips: dict[str, str] = {}
    for list_names in (backend.branches, backend.tags):
        with suppress(KpstoreError):  # as little as is left may be enough
            names = list_names()
            for name in names:
                with suppress(KpstoreError):
                    tips[names[name]] = name
    seen: set[str] = set()
    for tip in tips:
        try:
            for commit in backend.history(tip):
                name = tips.get(commit.id, MAIN)
                if commit.id not in seen:
                    yield commit.id, commit.id if name == MAIN else name
                seen.add(commit.id)
        except KpstoreError:
            continue


@dataclass
class _Plan:
    """What has to be written of one feature."""

    records: StateRecords
    redo: NDArray[np.bool_]
    damaged: dict[str, set[int]] = field(default_factory=dict)


class _Repair:
    """One look at the newest version, and the commit that follows from it."""

    def __init__(self, store: BaseStore, on_rows: Callable[[int], None]) -> None:
        self._store, self._backend = store, store.backend
        self._found = Verification(store.location, store.snapshot)
        self._reader = ChunkReader(store.session, self._found, on_rows)
        self._damaged: dict[str, set[int]] = {}
        """Numbers of damaged chunks by array: all of one whose checksums cannot be read."""

    def run(self, *, dry_run: bool) -> Repair:
        """Find damage, decide, and commit."""
        store = self._store
        try:
            self._reader.index = store.index
        except KpstoreError:
            self._reader.index = None
        self._look()
        done = Repair(
            store.location, store.snapshot, problems=tuple(self._found.problems), dry_run=dry_run
        )
        if not self._damaged:
            return done
        if self._reader.index is None:
            return Repair(**{**vars(done), "left": tuple(self._lost(self._damaged))})
        plans = self._plans(self._reader.index)
        labels = {dim: values for dim, values in self._labels().items() if dim in self._damaged}
        mended = {*labels, *(name for plan in plans for name in plan.damaged)}
        features = tuple(self._said(plan) for plan in plans)
        lost = tuple(self._lost(name for name in self._damaged if name not in mended))
        made = None
        if (plans or labels) and not dry_run:
            made = self._commit(plans, labels, features)
        return Repair(
            **{
                **vars(done),
                "made": made,
                "features": features,
                "labels": tuple(sorted(labels)),
                "left": lost,
            }
        )

    # -- what is damaged ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Read every chunk."""
        for name in self._store.session.names():
            before = len(self._found.problems)
            self._reader.look_at(name)
            for problem in self._found.problems[before:]:
                meta = self._store.session.meta(name)
                n_chunks = -(-meta.n_rows // meta.chunk_rows)
                # Text whose digest is wrong may be wrong anywhere.
                numbers = range(n_chunks) if problem.chunk is None else [problem.chunk]
                self._damaged.setdefault(name, set()).update(numbers)

    def _labels(self) -> dict[str, NDArray[np.object_]]:
        specs = [stored.spec for stored in self._store.features.values()]
        return {dim: values for spec in specs for dim, (_, values) in fmt.label_metas(spec).items()}

    def _lost(self, names: Iterable[str]) -> Iterator[str]:
        for name in sorted(names):
            files = sorted(
                {file for p in self._found.problems if p.array == name for file in p.files}
            )
            where = (
                f" ({', '.join(files[:2])}{' and more' if len(files) > 2 else ''})" if files else ""
            )
            n_rows = self._store.session.meta(name).n_rows
            older = self._older_with(name)
            if older is None:
                way = "no older version holds it whole: restore the file from a copy of the store"
            else:
                snapshot, held = older
                fewer = "" if held == n_rows else f", with {held} of {n_rows} rows"
                way = (
                    f"version {snapshot} holds it whole{fewer}: 'kpstore convert "
                    f"{self._store.location} COPY --at {snapshot}' copies that version, 'kpstore "
                    f"rollback {self._store.location} --to {snapshot}' goes back to it"
                )
            yield f"{self._why_left(name, where)}; {way}"

    def _why_left(self, name: str, where: str) -> str:
        if name in self._reader.unchecked:
            return (
                f"the checksums of {name!r} cannot be read, so nothing tells whether its values "
                "are sound"
            )
        for feature, unread in self._stuck.items():
            if name in fmt.feature_metas(self._store.feature(feature), n_videos=0, n_frames=0):
                return (
                    f"{name!r}{where} cannot become pending while the checksums of {unread!r} "
                    "cannot be read"
                )
        return f"{name!r}{where} is written nowhere else and cannot be mended"

    def _older_with(self, name: str) -> tuple[str, int] | None:
        """Return the newest older version in which an array can be read whole, and its rows."""
        try:
            older = [commit.id for commit in self._backend.history(self._store.snapshot)][1:]
        except KpstoreError:
            return None
        for snapshot in older:
            try:
                session = self._backend.session(snapshot)
                if name not in session.names():
                    continue
                found = Verification(self._store.location, snapshot)
                whole = ChunkReader(session, found, lambda n: None).whole(name)
                if whole is not None and not found.problems and len(whole):
                    return snapshot, len(whole)
            except KpstoreError:
                continue
        return None

    # -- what to do --------------------------------------------------------------------------------

    @cached_property
    def _stuck(self) -> dict[str, str]:
        """Features that cannot be written, each with an array whose checksums cannot be read: its own, or another's.

        Nothing says that the values of such an array are damaged, so they are not given up either.
        """
        stuck = {}
        for name, stored in self._store.features.items():
            unread = self._reader.unchecked.intersection(
                fmt.feature_metas(stored.spec, n_videos=0, n_frames=0)
            )
            if unread:
                stuck[name] = min(unread)
        for names in self._made_together():
            unread = {stuck[name] for name in names if name in stuck}
            if unread:
                stuck = {**dict.fromkeys(names, min(unread)), **stuck}
        return stuck

    def _plans(self, index: VideoIndex) -> list[_Plan]:
        plans = {}
        for name, stored in self._store.features.items():
            if name in self._stuck:
                continue
            arrays = fmt.feature_metas(
                stored.spec, n_videos=len(index), n_frames=index.total_frames
            )
            damaged = {array: self._damaged[array] for array in arrays if array in self._damaged}
            if damaged:
                plans[name] = self._plan(stored.spec, damaged, index)
        for names in self._made_together():
            if not self._stuck.keys().isdisjoint(names):
                continue
            concerned = [plans[name].redo for name in names if name in plans]
            if not concerned or not np.any(concerned):
                continue
            # An extractor makes all its features of a video at once, and refuses to replace some of
            # them.
            redo = np.any(concerned, axis=0)
            for name in names:
                if name not in plans:
                    plans[name] = self._plan(self._store.feature(name), {}, index)
                plans[name].redo |= redo
        return list(plans.values())

    def _plan(self, spec: FeatureSpec, damaged: dict[str, set[int]], index: VideoIndex) -> _Plan:
        records = read_state_records(self._store.session, spec, index, damaged)
        return _Plan(records, records.derive() | records.touched(damaged), damaged)

    def _made_together(self) -> Iterator[list[str]]:
        """Yield features that one extractor makes at once."""
        features = self._store.features
        recipes: dict[str, list[str]] = {}
        for name, stored in features.items():
            if stored.provenance.get("extractor", "") not in _NOT_EXTRACTED:
                recipes.setdefault(json.dumps(stored.provenance, sort_keys=True), []).append(name)
        by_face = [
            name
            for name, stored in features.items()
            if stored.provenance.get("extractor") == "insightface"
        ]
        if by_face:
            # The recipe for faces takes DINOv2's features along, which are on record as that
            # model's own.
            yield by_face + [
                n
                for n, stored in features.items()
                if stored.provenance.get("extractor") == "dinov2"
            ]
        yield from recipes.values()

    def _said(self, plan: _Plan) -> FeatureRepair:
        index, again = self._store.index, plan.redo & (plan.records.states != State.PENDING)
        rebuilt = [
            name for name in plan.damaged if name not in plan.records.spec.arrays or not again.any()
        ]
        how = self._again(plan.records.spec.name) if again.any() else ""
        ids, frames = index.ids[again].tolist(), int(index.n_frames[again].sum())
        return FeatureRepair(
            plan.records.spec.name, tuple(ids), frames, tuple(sorted(rebuilt)), how
        )

    def _again(self, name: str) -> str:
        location, stored = self._store.location, self._store.features[name]
        made_by = stored.provenance.get("extractor", "")
        if made_by == "imported":
            return (
                "it was imported, so no ingest makes it again: import its file into a new store, "
                f"then 'kpstore merge {location} NEW OUT' takes the videos that are pending here "
                "from there"
            )
        if made_by == "predict":
            return f"'kpstore predict' with the same checkpoint and {location} makes it again"
        try:
            recipe = recorded({name: stored.spec}, {name: stored.provenance})[0]
        except KpstoreError:
            recipe = ""
        if not recipe:
            return "nothing says how it was made: write these videos again as they were written"
        return (
            f"'kpstore ingest' of the same data set into {location}, recipe {recipe!r}, makes it "
            "again"
        )

    # -- doing it ----------------------------------------------------------------------------------

    def _commit(
        self,
        plans: list[_Plan],
        labels: Mapping[str, NDArray[np.object_]],
        features: tuple[FeatureRepair, ...],
    ) -> str:
        told = [f"{len(done.videos)} videos of {done.feature}" for done in features if done.videos]
        rebuilt = [name for done in features for name in done.rebuilt] + sorted(labels)
        parts = [f"{', '.join(told)} pending again"] if told else []
        parts += [f"{', '.join(rebuilt)} rebuilt"] if rebuilt else []
        files = sorted({file for problem in self._found.problems for file in problem.files})
        about = {
            "features": {
                done.feature: {
                    "videos": list(done.videos[:_KEPT_IDS]),
                    "n_videos": len(done.videos),
                }
                for done in features
            },
            "rebuilt": rebuilt,
            "damaged": files[:_KEPT_IDS],
        }
        tx = Transaction(self._backend, f"repair: {'; '.join(parts)}", metadata={"repair": about})
        with tx:
            for plan in plans:
                plan.records.write(tx.session, plan.redo, plan.damaged)
            for dim, values in labels.items():
                meta = tx.session.meta(dim)
                tx.session.delete(dim)
                tx.session.create(dim, meta)
                tx.session.write(dim, 0, values)
        assert tx.snapshot is not None
        return tx.snapshot
