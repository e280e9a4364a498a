"""Merging several stores, or files that can be imported, into a new one, in a single commit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kpstore.errors import ConflictError, ExistsError, InvalidError, MismatchError
from kpstore.interop.base import ImportedFeature, ImportedVideo, NotedDocument, OnProgress
from kpstore.interop.import_writer import is_numbered
from kpstore.interop.splits import split_rank
from kpstore.interop.transfer import ImportReport, import_document, opened
from kpstore.options import check_choice
from kpstore.schema.failures import Failures
from kpstore.schema.feature import MADE_BY, FeatureRows, Provenance, State
from kpstore.schema.index import VideoRecord
from kpstore.store import format as fmt
from kpstore.store.provenance import check_same, with_processors
from kpstore.store.records import Records
from kpstore.store.removed import Removals
from kpstore.store.store import BaseStore, backend_for

OnConflict = Literal["error", "first", "last"]


def merge(
    sources: Sequence[str | os.PathLike[str]],
    location: str | os.PathLike[str],
    *,
    on_conflict: OnConflict = "error",
    mixed: bool = False,
    name: str = "",
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Create a store with the contents of several others.

    Videos are sorted by split and id, so the result does not depend on the order of the sources. A
    video that several sources hold gets the features of all of them. It is a conflict if two
    sources hold the same feature of a video, done in both, with different values. A video that was
    removed from one of them stays out, with a note.

    Parameters
    ----------
    sources : stores, or files that can be imported.
    location : the new store.
    on_conflict : ``"first"`` or ``"last"`` takes the rows of the first or last source that holds
        them; ``"error"`` raises :class:`ConflictError`.
    mixed : whether to merge features of the same name, shape and type that were made in different
        ways too; the provenance then lists all ways.
    name : name of the new store; by default that of the first source.
    on_progress : called with the number of frames each time some more have been stored.

    Raises
    ------
    ExistsError
        If ``location`` is taken.
    ConflictError
        If two sources differ in rows, frames or annotations of one video, with ``"error"``.
    MismatchError
        If two sources hold features of one name that differ, or were made in different ways, unless
        ``mixed``.
    """
    check_choice("on_conflict", on_conflict, get_args(OnConflict))
    if len(sources) < 2:
        raise InvalidError("merge needs two sources or more")
    target = backend_for(os.fspath(location))
    if target.exists():
        raise ExistsError(f"{location} already exists; choose another place for the merged store")
    with ExitStack() as stack:
        stores = [stack.enter_context(opened(source)) for source in sources]
        names = [PurePath(os.fspath(source)).name for source in sources]
        document = Merged(stores, names, on_conflict, mixed=mixed)
        source = " and ".join(names) if len(names) <= 3 else f"{len(names)} sources"
        own_splits = any(store.own_splits for store in stores)
        removed = Removals()
        for store in stores:
            removed = removed.and_(store.removed)
        return import_document(
            document,
            target,
            source=source,
            name=name,
            own_splits=own_splits,
            removed=Removals(removed.videos),
            on_progress=on_progress,
        )


@dataclass(frozen=True)
class _Place:
    """A video of one source."""

    store: BaseStore
    source: str
    position: int


@dataclass(frozen=True)
class _Result:
    """The rows and failures that one source holds for a feature of a video."""

    source: str
    rows: FeatureRows
    failures: Failures


class Merged(NotedDocument):
    """The contents of several stores as one document; see :class:`kpstore.interop.base.Document`.

    The total number of frames is unknown before the videos are matched.
    """

    def __init__(
        self,
        stores: Sequence[BaseStore],
        names: Sequence[str],
        on_conflict: OnConflict,
        *,
        mixed: bool = False,
    ) -> None:
        super().__init__()
        self._on_conflict, self._mixed = on_conflict, mixed
        # The source that wins comes first.
        order = reversed(range(len(stores))) if on_conflict == "last" else range(len(stores))
        self._stores = [(stores[n], names[n]) for n in order]
        self.name = stores[0].name
        self.features = self._merged_features()
        self._records = {id(store): Records(store) for store, _ in self._stores}

    def _merged_features(self) -> tuple[ImportedFeature, ...]:
        found: dict[str, fmt.StoredFeature] = {}
        first: dict[str, str] = {}
        notes: list[str] = []
        for store, source in self._stores:
            for name, stored in store.features.items():
                if name not in found:
                    found[name], first[name] = stored, source
                    continue
                # All rows are written anew, so different sizes of chunks do not matter.
                spec = replace(stored.spec, chunk_rows=found[name].spec.chunk_rows)
                try:
                    found[name] = self._together(found[name], replace(stored, spec=spec), notes)
                except MismatchError as error:
                    raise MismatchError(
                        f"{first[name]} and {source} do not go together: {error}"
                    ) from None
                if found[name].provenance.get("document") != stored.provenance.get("document"):
                    provenance = {**found[name].provenance, "document": {}}
                    found[name] = replace(found[name], provenance=provenance)
                    notes.append(
                        f"{name}: what its files held beside the features differs, and is left out"
                    )
        self.note(*dict.fromkeys(notes))
        return tuple(
            ImportedFeature(found[name].spec, found[name].provenance) for name in sorted(found)
        )

    def _together(
        self, one: fmt.StoredFeature, other: fmt.StoredFeature, notes: list[str]
    ) -> fmt.StoredFeature:
        """Return the merger of two features of one name, or raise :class:`MismatchError`."""
        try:
            check_same(one, other.spec, other.provenance)
        except MismatchError as error:
            if not self._mixed:
                raise MismatchError(f"{error}; --mixed puts them together all the same") from None
            check_same(one, other.spec, one.provenance)
            ways = {
                json.dumps(way, sort_keys=True): way
                for stored in (one, other)
                for way in _ways(stored.provenance)
            }
            notes.append(f"{one.spec.name}: made in {len(ways)} ways, see its provenance")
            made = {"extractor": "mixed", "ways": [ways[key] for key in sorted(ways)]}
            return replace(one, provenance=made)
        processors = other.provenance.get(fmt.PROCESSORS, ())
        return replace(one, provenance=with_processors(one.provenance, processors))

    def _read(self) -> Iterator[ImportedVideo]:
        places: dict[str, list[_Place]] = {}
        for store, source in self._stores:
            for position, video_id in enumerate(store.index.ids.tolist()):
                places.setdefault(video_id, []).append(_Place(store, source, position))
        for video_id in sorted(places, key=lambda v: _order(places[v], v)):
            yield self._merge_video(video_id, places[video_id])

    def _merge_video(self, video_id: str, places: Sequence[_Place]) -> ImportedVideo:
        records = [self._records[id(place.store)][place.position] for place in places]
        # Paths say more than the numbers that other sources may have for the same frames.
        paths = next(
            (r.frame_paths for r in records if not is_numbered(r.frame_paths)),
            records[0].frame_paths,
        )
        record = replace(records[0], frame_paths=paths)
        for place, other in zip(places[1:], records[1:], strict=True):
            if other.n_frames != record.n_frames:
                raise ConflictError(
                    f"video {video_id!r} has {record.n_frames} frames in {places[0].source} and "
                    f"{other.n_frames} in {place.source}; give one of them another id"
                )
            if other.frame_paths != paths and not is_numbered(other.frame_paths):
                odd = next(n for n, path in enumerate(paths) if path != other.frame_paths[n])
                raise ConflictError(
                    f"video {video_id!r}: frame {odd} is {other.frame_paths[odd]!r} in "
                    f"{place.source} and {paths[odd]!r} elsewhere; give one of them another id"
                )
            record = self._merged_record(record, other, places[0].source, place.source)
        merged = {
            feature.spec.name: self._merged_result(feature.spec.name, video_id, places)
            for feature in self.features
        }
        held = {name: result for name, result in merged.items() if result is not None}
        done = {name: result for name, result in held.items() if result.failures.video is None}
        return ImportedVideo(
            record,
            {name: result.rows for name, result in done.items()},
            {name: result.failures.frames for name, result in done.items()},
            {n: result.failures.video for n, result in held.items() if result.failures.video},
        )

    def _merged_record(
        self, one: VideoRecord, other: VideoRecord, first: str, second: str
    ) -> VideoRecord:
        """Return a video with the facts of two sources; where they differ, the first one counts."""
        texts = {**other.annotations, **{k: text for k, text in one.annotations.items() if text}}
        merged = replace(
            one,
            split=one.split or other.split,
            width=one.width or other.width,
            height=one.height or other.height,
            fps=other.fps if np.isnan(one.fps) else one.fps,
            annotations=texts,
        )
        pairs = {n: (getattr(other, n), getattr(merged, n)) for n in ("width", "height", "fps")}
        pairs |= {name: (text, texts[name]) for name, text in other.annotations.items()}
        for name, (given, taken) in pairs.items():
            if given and given != taken and given == given:  # NaN says nothing
                self._conflict(f"video {one.id!r} has another {name} in {first} than in {second}")
        if other.split and other.split != merged.split:
            self._conflict(
                f"video {one.id!r} is in {merged.split!r} in {first} and in {other.split!r} in "
                f"{second}"
            )
        return merged

    def _merged_result(self, name: str, video_id: str, places: Sequence[_Place]) -> _Result | None:
        """Return a feature of a video from the first source where it is done, or else failed.

        None if it is pending in all sources.
        """
        taken: _Result | None = None
        failed: list[_Result] = []
        for result in filter(None, (_read_result(place, name) for place in places)):
            if result.failures.video is not None:
                failed.append(result)
            else:
                taken = result if taken is None else self._agreed(name, video_id, taken, result)
        if taken is not None or not failed:
            return taken
        reasons = {result.failures.video or "" for result in failed}
        if len(reasons) > 1:
            self._note_reasons(video_id, name)
        return replace(failed[0], failures=Failures(min(reasons)))

    def _agreed(self, name: str, video_id: str, taken: _Result, other: _Result) -> _Result:
        """Return the result that counts where a feature is done in two sources."""
        frames, others = taken.failures.frames, other.failures.frames
        if not _same_rows(taken.rows, other.rows) or frames.keys() != others.keys():
            self._conflict(
                f"video {video_id!r} has other {name} in {taken.source} than in {other.source}"
            )
        elif frames != others:
            self._note_reasons(video_id, name)
            least = {n: min(reason, others[n]) for n, reason in frames.items()}
            return replace(taken, failures=Failures(frames=least))
        return taken

    def _note_reasons(self, video_id: str, name: str) -> None:
        # The least, not the first: the order of the sources must not matter.
        self.note(
            f"video {video_id!r} failed for several reasons in {name}: the first by alphabet was "
            "kept"
        )

    def _conflict(self, what: str) -> None:
        if self._on_conflict == "error":
            raise ConflictError(f"{what}; choose one with --on-conflict first or last")
        self.note(f"{what}: the {self._on_conflict} one was taken")


def _ways(provenance: Provenance) -> list[Provenance]:
    """Return the ways in which a feature was made; several if it was merged before."""
    if provenance.get("extractor") == "mixed":
        return list(provenance["ways"])
    return [{key: value for key, value in provenance.items() if key not in ("document", MADE_BY)}]


def _order(places: Sequence[_Place], video_id: str) -> tuple[int, str, str]:
    splits = (place.store.index.splits[place.position] for place in places)
    split = next((name for name in splits if name), "")
    return split_rank(split), split, video_id


def _read_result(place: _Place, name: str) -> _Result | None:
    """Return what a source holds for a feature of a video; None if it is pending there."""
    store, position = place.store, place.position
    if name not in store.features or store.states(name)[position] == State.PENDING:
        return None
    spec = store.feature(name)
    failures = store.failures_of(name, position)
    if failures.video is not None:
        return _Result(place.source, spec.empty_rows(0), failures)
    rows = store.index.rows(position) if spec.axis == "frame" else slice(position, position + 1)
    companions = {c.name: store[f"{name}_{c.name}"][rows] for c in spec.companions}
    return _Result(place.source, FeatureRows(store[name][rows], companions), failures)


def _same_rows(one: FeatureRows, other: FeatureRows) -> bool:
    return _same(one.values, other.values) and all(
        _same(one.companions[name], other.companions[name]) for name in one.companions
    )


def _same(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
