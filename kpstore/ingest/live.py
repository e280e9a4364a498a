"""A store in which missing rows are computed when they are read; nothing is stored.

For a look at videos that are not extracted yet, and for data sets of paths alone; ``kpstore ingest
features`` stores the rows.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import ArrayMeta, Backend
from kpstore.backends.chunks import Chunks
from kpstore.backends.session_chunks import SessionChunks
from kpstore.errors import (
    ExtractorError,
    InvalidError,
    MismatchError,
    UnsupportedError,
    one_line,
)
from kpstore.extractors.base import AnyExtractor, Extractor, settle, takes_videos
from kpstore.extractors.registry import make_extractor, provenance_of, recorded
from kpstore.ingest.frames import extract_frames, read_reference
from kpstore.ingest.job import Job, UnreadableVideoError, VideoRows, failed_video, opened_extractor
from kpstore.ingest.whole_videos import extract_alone
from kpstore.schema import spec_fields
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.fields import shown
from kpstore.sources.listed import ListedSource
from kpstore.store import format as fmt
from kpstore.store.provenance import check_same
from kpstore.store.records import Records
from kpstore.store.store import BaseStore
from kpstore.visible import logger

_log = logger(__name__)

# Readers decode in several threads, but a model runs in one
_one_at_a_time = threading.RLock()


def _after_fork() -> None:
    """Replace the lock: one that another thread holds would never open in a forked process."""
    global _one_at_a_time
    _one_at_a_time = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)

# Number of videos whose files are checked before anything is computed
_LOOKED_FOR = 16
KEPT_BYTES = 256 * 2**20
"""Size of the computed rows to keep, so that a video in two chunks is computed once."""


class LiveBackend:
    """A read-only backend that adds computed features to another one.

    Parameters
    ----------
    stored : the backend that holds the stored rows.
    job : computes the others; each process opens its extractor when it is first needed.
    provenance : of the extractor's features.
    """

    def __init__(self, stored: Backend, job: Job, provenance: Mapping[str, Provenance]) -> None:
        self._stored, self._job, self._provenance = stored, job, provenance

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stored, name)

    @property
    def location(self) -> str:
        """The store's, and a note that some rows are computed."""
        return f"{self._stored.location} (and what is computed, {self._job.run_id})"

    def session(self, snapshot: str) -> LiveSession:
        """Open a version."""
        stored = BaseStore(self._stored, snapshot, cache="off")
        return LiveSession(stored, self._job, self._provenance)

    def begin(self, branch: str = "main") -> Any:
        """Refuse to write: computed rows are not stored."""
        stored = self._stored.location
        raise UnsupportedError(
            f"{self.location} can only be read; 'kpstore ingest features {stored}' stores the rest"
        )


class LiveSession:
    """A version in which rows of videos that wait for their features are computed.

    See :class:`kpstore.backends.base.ReadSession`.
    """

    def __init__(self, stored: BaseStore, job: Job, provenance: Mapping[str, Provenance]) -> None:
        extractor = job.extractor
        self._base, self._records, self._provenance = stored.session, Records(stored), provenance
        self._index, self._specs = stored.index, {spec.name: spec for spec in extractor.specs}
        self._job = job
        self._waiting = _waiting(stored, extractor)
        self._metas: dict[str, ArrayMeta] = {}
        self._feature_of: dict[str, str] = {}
        for name, spec in self._specs.items():
            metas = fmt.feature_metas(
                spec, n_videos=len(self._index), n_frames=self._index.total_frames
            )
            known = [array for array in metas if array in self._base.names()]
            self._metas |= metas | {array: self._base.meta(array) for array in known}
            self._feature_of |= dict.fromkeys(metas, name)
        self._labels = {
            dim: pair
            for spec in extractor.specs
            for dim, pair in fmt.label_metas(spec).items()
            if dim not in self._base.names()
        }
        self._kept: OrderedDict[int, VideoRows] = OrderedDict()
        self._references: dict[int, Mapping[str, FeatureRows]] = {}

    @property
    def snapshot(self) -> str:
        """Id of the version."""
        return self._base.snapshot

    def attrs(self) -> Mapping[str, Any]:
        """Return the version's attributes, with the computed features among them."""
        attrs = dict(self._base.attrs())
        about = dict(attrs[fmt.ROOT])
        made = {
            name: {"spec": spec.to_json(), "provenance": dict(self._provenance[name])}
            for name, spec in self._specs.items()
        }
        return {**attrs, fmt.ROOT: {**about, "features": {**made, **about["features"]}}}

    def names(self) -> list[str]:
        """Names of all arrays, sorted."""
        return sorted({*self._base.names(), *self._metas, *self._labels})

    def meta(self, name: str) -> ArrayMeta:
        """Return shape and type of an array."""
        if name in self._metas:
            return self._metas[name]
        return self._labels[name][0] if name in self._labels else self._base.meta(name)

    def digest(self, name: str) -> str | None:
        """Return None: some of the rows were never committed."""
        return None

    def checksums(self, name: str) -> NDArray[np.uint64] | None:
        """Return the checksums of an array's chunks; None if some of its rows are computed."""
        return self._base.checksums(name) if self._is_stored(name) else None

    def stored(self, name: str) -> NDArray[np.bool_]:
        """Return which chunks may be stored, or computed: all, if some of the rows are computed."""
        if self._is_stored(name):
            return self._base.stored(name)
        return np.ones(self.meta(name).n_chunks, dtype=np.bool_)

    def place(self, name: str, chunk: int) -> str:
        """Return the location of a stored chunk."""
        return self._base.place(name, chunk) if name in self._base.names() else "computed"

    def chunks(self, name: str) -> Chunks:
        """Return the chunks of an array; through this session if some of its rows are computed."""
        return self._base.chunks(name) if self._is_stored(name) else SessionChunks(self, name)

    def _is_stored(self, name: str) -> bool:
        computed = name in self._metas and self._waiting[self._feature_of[name]].any()
        return name in self._base.names() and not computed

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` as a new array, computed where videos wait for them."""
        if name in self._labels:
            return self._labels[name][1][start:stop].copy()
        if name not in self._metas:
            return self._base.read(name, start, stop)
        if name in self._base.names():
            rows = self._base.read(name, start, stop)
        else:
            rows = self._metas[name].unwritten(stop - start)
        feature = self._feature_of[name]
        waiting = self._waiting[feature]
        if name == fmt.state_name(feature):
            rows[waiting[start:stop]] = State.DONE
        elif self._specs[feature].axis == "video" and name != fmt.failure_name(feature):
            for position in (start + np.flatnonzero(waiting[start:stop])).tolist():
                found = self._reference_rows(position)[feature]
                rows[position - start] = _part(found, feature, name)[0]
        elif name != fmt.failure_name(feature):
            self._fill(name, feature, start, rows)
        return rows

    def _fill(self, name: str, feature: str, start: int, rows: NDArray[Any]) -> None:
        """Put computed rows into those from ``start`` on, of an array along the frame axis."""
        if not len(rows):
            return
        owners = self._index.video_of(np.arange(start, start + len(rows)))
        for position in np.unique(owners[self._waiting[feature][owners]]).tolist():
            video = self._index.rows(position)
            first, last = max(video.start, start), min(video.stop, start + len(rows))
            found = self._video_rows(position)
            if name == fmt.status_name(feature):
                values = found.failures.frame_states(video.stop - video.start)
            else:
                values = _part(found.rows[feature], feature, name)
            rows[first - start : last - start] = values[first - video.start : last - video.start]

    def _video_rows(self, position: int) -> VideoRows:
        with _one_at_a_time:
            if position not in self._kept:
                self._kept[position] = self._tried(position, self._compute)
                while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(position)
            return self._kept[position]

    def _reference_rows(self, position: int) -> Mapping[str, FeatureRows]:
        """Return the features of a whole video, without reading its frames."""
        with _one_at_a_time:
            if position not in self._references:
                self._references[position] = self._tried(position, self._compute_reference).rows
            return self._references[position]

    def _compute(self, position: int) -> VideoRows:
        extract = extract_alone if takes_videos(self._job.extractor) else extract_frames
        return extract(self._job, self._records[position])

    def _compute_reference(self, position: int) -> VideoRows:
        record = self._records[position]
        extractor = cast("Extractor", opened_extractor(self._job))
        return VideoRows(extractor.start_video(read_reference(self._job, record)))

    def _tried(self, position: int, compute: Callable[[int], VideoRows]) -> VideoRows:
        try:
            return compute(position)
        except ExtractorError:
            raise
        except Exception as error:  # as in an ingest, a bad video costs no other one
            shown = error.cause if isinstance(error, UnreadableVideoError) else error
            _log.warning(
                "video %r cannot be computed: %s", self._index.ids[position], one_line(shown)
            )
            return failed_video(self._job, self._records[position], error)


def _part(rows: FeatureRows, feature: str, array: str) -> NDArray[Any]:
    return rows.values if array == feature else rows.companions[array.removeprefix(f"{feature}_")]


def _size(found: VideoRows) -> int:
    return sum(
        rows.values.nbytes + sum(c.nbytes for c in rows.companions.values())
        for rows in found.rows.values()
    )


def _waiting(store: BaseStore, extractor: AnyExtractor) -> dict[str, NDArray[np.bool_]]:
    """Return by feature which videos are pending, (videos,) bool; failed videos are not."""
    every = np.ones(len(store.index), dtype=bool)
    return {
        spec.name: store.states(spec.name) == State.PENDING
        if spec.name in store.features
        else every
        for spec in extractor.specs
    }


def asked_extractor(
    store: BaseStore,
    asked: str | AnyExtractor | None,
    features: str | Sequence[str],
    options: Mapping[str, Any],
) -> AnyExtractor:
    """Return the extractor that :meth:`kpstore.Store.computed` was asked for.

    Raises
    ------
    InvalidError
        If it is none, or the store does not record how ``features`` were made.
    """
    if asked is None or isinstance(asked, str):
        given = [features] if isinstance(features, str) else spec_fields.names(features)
        known = {
            name: found for name, found in store.features.items() if name in given or not given
        }
        recipe, made_with = recorded(
            {name: stored.spec for name, stored in known.items()},
            {name: stored.provenance for name, stored in known.items()},
            asked,
        )
        return make_extractor(recipe, **{**made_with, **options})
    if options:
        raise InvalidError(
            f"options {sorted(options)} are for a recipe; this extractor exists already"
        )
    if not hasattr(asked, "specs"):
        raise InvalidError(f"{shown(asked)} is no extractor; give one, or a recipe's name")
    return asked


def live_backend(
    stored: Backend, store: BaseStore, extractor: AnyExtractor, root: Path, device: str
) -> LiveBackend:
    """Return a backend through which a store looks complete.

    Logs, once, how much of it is computed.

    Raises
    ------
    MismatchError
        If the store holds features of the same names that were made in another way.
    NotFoundError
        If the frames are not where ``root`` says.
    """
    specs = {spec.name: spec for spec in extractor.specs}
    made = {name: store.features[name] for name in specs if name in store.features}
    for note in settle(extractor, {name: one.provenance for name, one in made.items()}, device):
        _log.warning("%s", note)
    provenance = provenance_of(extractor)
    for name, one in made.items():
        _check_same(one, specs[name], provenance[name])
    waiting = np.flatnonzero(np.any(list(_waiting(store, extractor).values()), axis=0))
    if len(waiting):
        records, names = Records(store), ", ".join(specs)
        ListedSource(root, tuple(records[p] for p in waiting[:_LOOKED_FOR].tolist())).scan()
        what = f"{names} of {len(waiting)} videos of {store.location}"
        _log.warning(
            "%s are computed when they are read; 'kpstore ingest features' would store them", what
        )
    job = Job(f"live-{uuid.uuid4().hex}", ListedSource(root), extractor, device)
    return LiveBackend(stored, job, provenance)


def _check_same(stored: fmt.StoredFeature, spec: FeatureSpec, provenance: Provenance) -> None:
    if stored.provenance.get("extractor") != "imported":
        check_same(stored, spec, provenance)
    elif (stored.spec.shape, stored.spec.axis) != (spec.shape, spec.axis):
        raise MismatchError(
            f"{spec.name!r} is stored with rows of {stored.spec.shape}, the extractor makes "
            f"{spec.shape}; use the model that the file was made with"
        )
