"""Repair: one commit makes damaged videos pending, so that the next ingest extracts them again.

A damaged chunk is overwritten as a whole: every video with rows in it becomes pending. The records
of states and failures are derived from those that are sound, where that is exact; labels come from
the feature's spec. The list of videos, their splits, paths and annotations are stored nowhere else:
their damage is reported, with the version that still holds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import Backend, Commit
from kpstore.errors import (
    CorruptError,
    KpstoreError,
    NotFoundError,
    UnreachableError,
    despite_damage,
    one_line,
)
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
"""Number of videos that a commit names."""
_NOT_EXTRACTED = ("", "imported", "predict")
"""Extractors of features that are made independently of others."""


@dataclass(frozen=True)
class FeatureRepair:
    """The repair of one feature.

    Parameters
    ----------
    feature : its name.
    videos : ids of videos that become pending.
    frames : number of their frames.
    rebuilt : arrays that were damaged and are derived from others.
    again : how to make the pending videos again.
    """

    feature: str
    videos: tuple[str, ...]
    frames: int
    rebuilt: tuple[str, ...]
    again: str


@dataclass(frozen=True)
class Repair:
    """The damage in the newest version, and its repair.

    Parameters
    ----------
    location, snapshot : the version that was checked.
    made : the new version; None if there was nothing to write, or with ``dry_run``.
    problems : damaged chunks.
    features : the repair of each feature concerned.
    labels : names of axes whose labels are written again.
    left : damage that cannot be repaired, one line for each array, with what to do about it.
    dry_run : whether nothing was written.
    """

    location: str
    snapshot: str
    made: str | None = None
    problems: tuple[Problem, ...] = ()
    features: tuple[FeatureRepair, ...] = ()
    labels: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    dry_run: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the repair as JSON values."""
        return asdict(self)


def repair(
    location: str, *, dry_run: bool = False, on_rows: Callable[[int], None] | None = None
) -> Repair:
    """Read all of the newest version, and make the videos pending that are damaged in it.

    Older versions keep their damage.

    Parameters
    ----------
    location : the store.
    dry_run : report the repair without writing it.
    on_rows : called with the number of rows just read.

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
        store.features  # noqa: B018 - reads the store's description
    except NotFoundError:
        if not backend.exists():
            raise
        raise _unopened(backend, "it does not exist") from None
    except CorruptError as error:
        raise _unopened(backend, one_line(str(error))) from error
    return store


def _unopened(backend: Backend, reason: str) -> CorruptError:
    what = f"the newest version of {backend.location} cannot be opened ({reason})"
    for snapshot, name in list(history.known_versions(backend).items()):
        try:
            older = BaseStore(backend, snapshot, cache="off")
            older.features, older.index  # noqa: B018
        except UnreachableError:
            raise
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


@dataclass
class _Plan:
    """The changes to one feature."""

    records: StateRecords
    redo: NDArray[np.bool_]
    damaged: dict[str, set[int]] = field(default_factory=dict)


class _Repair:
    """Checks the newest version, and makes the commit that repairs it."""

    def __init__(self, store: BaseStore, on_rows: Callable[[int], None]) -> None:
        self._store, self._backend = store, store.backend
        self._found = Verification(store.location, store.snapshot)
        self._reader = ChunkReader(store.session, self._found, on_rows)
        self._damaged: dict[str, set[int]] = {}
        """Numbers of damaged chunks by array; all of an array whose checksums cannot be read."""

    def run(self, *, dry_run: bool) -> Repair:
        """Find damage, decide, and commit."""
        store, reader = self._store, self._reader
        reader.read_index, index = lambda: store.index, None
        with despite_damage():
            index = store.index
        self._find_damage()
        done = Repair(
            store.location, store.snapshot, problems=tuple(self._found.problems), dry_run=dry_run
        )
        if index is None:
            return replace(done, left=tuple(self._lost(self._damaged)))
        plans = self._plans(index)
        labels = {dim: values for dim, values in self._labels().items() if dim in self._damaged}
        mended = {*labels, *(name for plan in plans for name in plan.damaged)}
        features = tuple(self._described(plan) for plan in plans)
        left = tuple(self._lost(self._damaged.keys() - mended))
        has_changes = bool(plans or labels) and not dry_run
        made = self._commit(plans, labels, features) if has_changes else None
        return replace(done, made=made, features=features, labels=tuple(sorted(labels)), left=left)

    # -- finding damage ----------------------------------------------------------------------------

    def _find_damage(self) -> None:
        for name in self._store.session.names():
            before = len(self._found.problems)
            self._reader.look_at(name)
            for problem in self._found.problems[before:]:
                # Text whose digest is wrong may be wrong anywhere.
                every = range(self._store.session.meta(name).n_chunks)
                numbers = every if problem.chunk is None else [problem.chunk]
                self._damaged.setdefault(name, set()).update(numbers)

    def _labels(self) -> dict[str, NDArray[np.object_]]:
        specs = [stored.spec for stored in self._store.features.values()]
        return {dim: values for spec in specs for dim, (_, values) in fmt.label_metas(spec).items()}

    def _lost(self, names: Iterable[str]) -> Iterator[str]:
        for name in sorted(names):
            files = sorted({f for p in self._found.problems if p.array == name for f in p.files})
            more = " and more" if len(files) > 2 else ""
            where = f" ({', '.join(files[:2])}{more})" if files else ""
            n_rows = self._store.session.meta(name).n_rows
            older = self._older_with(name)
            if older is None:
                way = "no older version holds all of it: restore the file from a copy of the store"
            else:
                snapshot, held = older
                fewer = "" if held == n_rows else f", with {held} of {n_rows} rows"
                way = (
                    f"version {snapshot} holds all of it{fewer}: 'kpstore convert "
                    f"{self._store.location} COPY --at {snapshot}' copies that version, 'kpstore "
                    f"rollback {self._store.location} --to {snapshot}' goes back to it"
                )
            yield f"{self._why_left(name, where)}; {way}"

    def _why_left(self, name: str, where: str) -> str:
        if name in self._reader.unchecked:
            return f"the checksums of {name!r} cannot be read, so its values cannot be checked"
        for feature, unread in self._stuck.items():
            if name in fmt.feature_arrays(self._store.feature(feature)):
                return (
                    f"{name!r}{where} cannot become pending while the checksums of {unread!r} "
                    "cannot be read"
                )
        return f"{name!r}{where} is stored nowhere else and cannot be repaired"

    def _older_with(self, name: str) -> tuple[str, int] | None:
        """Return the newest older version that holds all of an array, and its number of rows."""
        older: list[Commit] = []
        with despite_damage():
            older = list(self._backend.history(self._store.snapshot))[1:]
        for commit in older:
            with despite_damage():
                found = Verification(self._store.location, commit.id)
                reader = ChunkReader(self._backend.session(commit.id), found, lambda n: None)
                whole = reader.whole(name)
                if whole is not None and not found.problems and len(whole):
                    return commit.id, len(whole)
        return None

    # -- planning ----------------------------------------------------------------------------------

    @cached_property
    def _stuck(self) -> dict[str, str]:
        """Features that cannot be written, each with the array whose checksums cannot be read.

        It is an array of the feature or of one made together with it. Its values may be sound, so
        they are not overwritten.
        """
        stuck = {}
        for name, stored in self._store.features.items():
            unread = self._reader.unchecked.intersection(fmt.feature_arrays(stored.spec))
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
            arrays = fmt.feature_arrays(stored.spec)
            damaged = {array: self._damaged[array] for array in arrays if array in self._damaged}
            if damaged:
                plans[name] = self._plan(stored.spec, damaged, index)
        for names in self._made_together():
            concerned = [plans[name].redo for name in names if name in plans]
            if not self._stuck.keys().isdisjoint(names) or not np.any(concerned):
                continue
            # An extractor makes all its features of a video at once; it cannot replace only some.
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
        """Yield the names of features that one extractor makes at once."""
        recipes: dict[str, list[str]] = {}
        by: dict[str, list[str]] = {}
        for name, stored in self._store.features.items():
            extractor = stored.provenance.get("extractor", "")
            by.setdefault(extractor, []).append(name)
            if extractor not in _NOT_EXTRACTED:
                recipes.setdefault(json.dumps(stored.provenance, sort_keys=True), []).append(name)
        if "insightface" in by:
            # The recipe for faces also makes DINOv2's features, which are recorded as that model's.
            yield by["insightface"] + by.get("dinov2", [])
        yield from recipes.values()

    def _described(self, plan: _Plan) -> FeatureRepair:
        spec, index = plan.records.spec, self._store.index
        again = plan.redo & (plan.records.states != State.PENDING)
        rebuilt = [name for name in plan.damaged if name not in spec.arrays or not again.any()]
        how = self._again(spec.name) if again.any() else ""
        ids, frames = index.ids[again].tolist(), int(index.n_frames[again].sum())
        return FeatureRepair(spec.name, tuple(ids), frames, tuple(sorted(rebuilt)), how)

    def _again(self, name: str) -> str:
        location, stored = self._store.location, self._store.features[name]
        made_by = stored.provenance.get("extractor", "")
        if made_by == "imported":
            return (
                "it was imported, so no ingest makes it again: import its file into a new store, "
                f"then 'kpstore merge {location} NEW OUT' takes the pending videos from there"
            )
        if made_by == "predict":
            return f"'kpstore predict' with the same checkpoint and {location} makes it again"
        try:
            recipe = recorded({name: stored.spec}, {name: stored.provenance})[0]
        except KpstoreError:
            recipe = ""
        if not recipe:
            return "how it was made is not on record: write these videos again as they were written"
        return (
            f"'kpstore ingest' of the same data set into {location}, recipe {recipe!r}, makes it "
            "again"
        )

    # -- committing --------------------------------------------------------------------------------

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
