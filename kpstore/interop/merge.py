"""Several stores, or files that can be imported, into one: one commit, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from kpstore.errors import ConflictError, ExistsError, InvalidError, MismatchError
from kpstore.interop.base import ImportedFeature, ImportedVideo, OnProgress
from kpstore.interop.splits import split_rank
from kpstore.interop.transfer import ImportReport, import_document, is_numbered, opened
from kpstore.schema.feature import FeatureRows, State
from kpstore.schema.index import VideoRecord
from kpstore.store import format as fmt
from kpstore.store.provenance import check_same, with_processors
from kpstore.store.records import Records
from kpstore.store.store import BaseStore, backend_for

OnConflict = Literal["error", "first", "last"]
ON_CONFLICT = ("error", "first", "last")


def merge(
    sources: Sequence[str | os.PathLike[str]],
    location: str | os.PathLike[str],
    *,
    on_conflict: OnConflict = "error",
    mixed: bool = False,
    name: str = "",
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Make a store that holds what several others hold.

    Videos are put in order by split and id, so the result does not depend on the order of the
    sources. A video that several hold gets the features of all of them; where two hold the same
    feature of it, done in both and with other values, that is a conflict.

    Parameters
    ----------
    sources : stores, or files that can be imported.
    location : the new store.
    on_conflict : ``"first"`` or ``"last"`` takes the rows of the first or last source that holds
        them.
    mixed : also put together what is called alike and was made in different ways, of one shape and
        type; the provenance then lists them all.
    name : of the new store; that of the first source by default.
    on_progress : told of frames each time some more are stored.

    Raises
    ------
    ExistsError
        If ``location`` is taken.
    ConflictError
        If two sources differ in rows, frames or annotations of one video, with ``"error"``.
    MismatchError
        If two sources hold a feature of one name that is not the same, or made in another way,
        unless ``mixed``.
    """
    if on_conflict not in ON_CONFLICT:
        raise InvalidError(f"on_conflict={on_conflict!r}: use 'error', 'first' or 'last'")
    if len(sources) < 2:
        raise InvalidError("merge needs two sources or more")
    target = os.fspath(location)
    if backend_for(target).exists():
        raise ExistsError(f"{target} already exists; choose another place for the merged store")
    with ExitStack() as stack:
        stores = [stack.enter_context(opened(source)) for source in sources]
        names = [PurePath(os.fspath(source)).name for source in sources]
        document = Merged(stores, names, on_conflict, mixed=mixed)
        source = " and ".join(names) if len(names) <= 3 else f"{len(names)} sources"
        own_splits = any(store.own_splits for store in stores)
        return import_document(
            document,
            target,
            source=source,
            name=name,
            own_splits=own_splits,
            on_progress=on_progress,
        )


@dataclass(frozen=True)
class _Place:
    """A video of one source."""

    store: BaseStore
    source: str
    position: int


class Merged:
    """What several stores hold, as one document; see :class:`kpstore.interop.base.Document`."""

    def __init__(
        self,
        stores: Sequence[BaseStore],
        names: Sequence[str],
        on_conflict: OnConflict,
        *,
        mixed: bool = False,
    ) -> None:
        self._on_conflict, self._mixed = on_conflict, mixed
        # Whose word counts comes first.
        order = reversed(range(len(stores))) if on_conflict == "last" else range(len(stores))
        self._stores = [(stores[n], names[n]) for n in order]
        self.name = stores[0].name
        self.notes: list[str] = []
        self.features = self._merged_features()
        self._records = {id(store): Records(store) for store, _ in self._stores}

    @property
    def n_frames(self) -> int | None:
        """Not known before the videos are matched."""
        return None

    def _merged_features(self) -> tuple[ImportedFeature, ...]:
        found: dict[str, fmt.StoredFeature] = {}
        first: dict[str, str] = {}
        for store, source in self._stores:
            for name, stored in store.features.items():
                if name in found:
                    # All rows are written anew: chunks of another size are no obstacle.
                    spec = replace(stored.spec, chunk_rows=found[name].spec.chunk_rows)
                    try:
                        found[name] = self._together(found[name], replace(stored, spec=spec))
                    except MismatchError as error:
                        raise MismatchError(
                            f"{first[name]} and {source} do not go together: {error}"
                        ) from None
                    if found[name].provenance.get("document") != stored.provenance.get("document"):
                        provenance = {**found[name].provenance, "document": {}}
                        found[name] = replace(found[name], provenance=provenance)
                        self.notes.append(
                            f"{name}: what its files held beside the features differs, and is left "
                            "out"
                        )
                else:
                    found[name], first[name] = stored, source
        self.notes = list(dict.fromkeys(self.notes))
        return tuple(
            ImportedFeature(found[name].spec, found[name].provenance) for name in sorted(found)
        )

    def _together(self, one: fmt.StoredFeature, other: fmt.StoredFeature) -> fmt.StoredFeature:
        """Return what two features of one name are together, or raise :class:`MismatchError`."""
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
            self.notes.append(f"{one.spec.name}: made in {len(ways)} ways, see its provenance")
            return replace(
                one, provenance={"extractor": "mixed", "ways": [ways[key] for key in sorted(ways)]}
            )
        return replace(
            one,
            provenance=with_processors(one.provenance, other.provenance.get(fmt.PROCESSORS, ())),
        )

    def videos(self) -> Iterator[ImportedVideo]:
        """Yield all videos, by split and id."""
        places: dict[str, list[_Place]] = {}
        for store, source in self._stores:
            for position, video_id in enumerate(store.index.ids.tolist()):
                places.setdefault(video_id, []).append(_Place(store, source, position))
        for video_id in sorted(places, key=lambda v: _order(places[v], v)):
            yield self._merge_video(video_id, places[video_id])

    def _merge_video(self, video_id: str, places: Sequence[_Place]) -> ImportedVideo:
        records = [self._records[id(place.store)][place.position] for place in places]
        # Where one source has but numbers for its frames, another one's paths say more.
        paths = next(
            (r.frame_paths for r in records if not is_numbered(r.frame_paths)),
            records[0].frame_paths,
        )
        record = replace(records[0], frame_paths=paths)
        for place, other in zip(places[1:], records[1:], strict=True):
            if other.n_frames != record.n_frames:
                what = f"{record.n_frames} frames in {places[0].source} and {other.n_frames} in {place.source}"
                raise ConflictError(f"video {video_id!r} has {what}; give one of them another id")
            if other.frame_paths != paths and not is_numbered(other.frame_paths):
                odd = next(n for n, path in enumerate(paths) if path != other.frame_paths[n])
                what = f"frame {odd} is {other.frame_paths[odd]!r} in {place.source} and {paths[odd]!r} elsewhere"
                raise ConflictError(f"video {video_id!r}: {what}; give one of them another id")
            record = self._merged_record(video_id, record, other, places[0].source, place.source)
        rows: dict[str, FeatureRows] = {}
        failed_frames: dict[str, dict[int, str]] = {}
        failed: dict[str, str] = {}
        for feature in self.features:
            self._merge_feature(feature.spec.name, video_id, places, rows, failed_frames, failed)
        return ImportedVideo(record, rows, failed_frames, failed)

    def _merged_record(
        self, video_id: str, one: VideoRecord, other: VideoRecord, first: str, second: str
    ) -> VideoRecord:
        """Return what both say of a video; where one says nothing, the other's word counts."""
        known = {"split": one.split or other.split, "width": one.width or other.width}
        known |= {
            "height": one.height or other.height,
            "fps": other.fps if np.isnan(one.fps) else one.fps,
        }
        texts = {
            **other.annotations,
            **{name: text for name, text in one.annotations.items() if text},
        }
        merged = replace(one, **known, annotations=texts)  # type: ignore[arg-type]
        for name in ("width", "height", "fps"):
            found = getattr(other, name)
            if found and found != getattr(merged, name) and not np.isnan(found):
                self._conflict(f"video {video_id!r} has another {name} in {first} than in {second}")
        for name, text in other.annotations.items():
            if text and text != texts[name]:
                self._conflict(f"video {video_id!r} has another {name} in {first} than in {second}")
        if other.split and other.split != merged.split:
            self._conflict(
                f"video {video_id!r} is in {merged.split!r} in {first} and in {other.split!r} in "
                f"{second}"
            )
        return merged

    def _merge_feature(
        self,
        name: str,
        video_id: str,
        places: Sequence[_Place],
        rows: dict[str, FeatureRows],
        failed_frames: dict[str, dict[int, str]],
        failed: dict[str, str],
    ) -> None:
        """Take a feature of a video from the first source where it is done, or else where it has failed."""
        taken, reasons = "", []
        for place in places:
            found = _read_feature(place, name)
            if isinstance(found, str):
                reasons += [found] if found else []
            elif not taken:
                rows[name], failed_frames[name] = found
                taken = place.source
            elif (
                not _same_rows(rows[name], found[0])
                or failed_frames[name].keys() != found[1].keys()
            ):
                self._conflict(
                    f"video {video_id!r} has other {name} in {taken} than in {place.source}"
                )
            elif failed_frames[name] != found[1]:
                self._note_reasons(video_id, name)
                failed_frames[name] = {
                    n: min(reason, found[1][n]) for n, reason in failed_frames[name].items()
                }
        if reasons and not taken:
            failed[name] = min(reasons)
            if len(set(reasons)) > 1:
                self._note_reasons(video_id, name)

    def _note_reasons(self, video_id: str, name: str) -> None:
        # The least, not the first: the order of the sources then makes no difference.
        self.notes.append(
            f"video {video_id!r} failed for several reasons in {name}: the first by alphabet was "
            "kept"
        )

    def _conflict(self, what: str) -> None:
        if self._on_conflict == "error":
            raise ConflictError(f"{what}; choose one with --on-conflict first or last")
        self.notes.append(f"{what}: the {self._on_conflict} one was taken")


def _ways(provenance: Mapping[str, Any]) -> list[Any]:
    """Return in which ways a feature was made; several, if it was merged of such before."""
    if provenance.get("extractor") == "mixed":
        return list(provenance["ways"])
    return [{key: value for key, value in provenance.items() if key != "document"}]


def _order(places: Sequence[_Place], video_id: str) -> tuple[int, str, str]:
    splits = (place.store.index.splits[place.position] for place in places)
    split = next((name for name in splits if name), "")
    return split_rank(split), split, video_id


def _read_feature(place: _Place, name: str) -> tuple[FeatureRows, dict[int, str]] | str:
    """Return rows and failed frames of a feature of a video; why it failed.

    Or ``""`` if it is not there yet.
    """
    store, position = place.store, place.position
    if name not in store.features or store.states(name)[position] == State.PENDING:
        return ""
    failures = store.failures_of(name, position)
    if failures.video is not None:
        return failures.video
    spec = store.feature(name)
    rows = store.index.rows(position) if spec.axis == "frame" else slice(position, position + 1)
    companions = {c.name: store[f"{name}_{c.name}"][rows] for c in spec.companions}
    return FeatureRows(store[name][rows], companions), dict(failures.frames)


def _same_rows(one: FeatureRows, other: FeatureRows) -> bool:
    return _same(one.values, other.values) and all(
        _same(one.companions[name], other.companions[name]) for name in one.companions
    )


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
