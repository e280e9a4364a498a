"""Names, attributes and chunks of a store's arrays (docs/format.md says the same in prose)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from kpstore.backends.base import TEXT, ArrayMeta, ReadSession
from kpstore.backends.checksums import TABLE
from kpstore.backends.object_address import is_address
from kpstore.backends.optional import KeepsCopies
from kpstore.backends.places import OBJECTS
from kpstore.budget import MemoryBudget
from kpstore.errors import DAMAGE, CorruptError, InvalidError, KpstoreError, NotFoundError
from kpstore.schema.feature import FeatureRows, FeatureSpec, Provenance, State
from kpstore.schema.fields import shown, stored_json
from kpstore.schema.index import VideoIndex
from kpstore.store.removed import Removals

FORMAT_VERSION = 2
"""Format of new stores; older ones keep theirs until :func:`upgraded` (docs/decisions/008)."""
READABLE_VERSIONS = (1, 2)
CHECKSUMS = "checksums"
"""The part of the format that stores a checksum of every chunk by its place."""
PARTS = (CHECKSUMS,)
"""Parts of format 2 that this version of kpstore reads and writes."""
ROOT = "kpstore"
"""Attribute of the store that holds kpstore's own description of it."""

OWN_SPLITS: Final = "own_splits"
"""Key in :data:`ROOT` that is true once splits have been set by hand."""

REMOVED: Final = "removed"
"""Key in :data:`ROOT` of what was removed; see :mod:`kpstore.store.removed`."""

PROCESSORS = "processors"
"""Key of a feature's provenance: kinds of processors that computed it; last bits depend on them."""

VIDEO_CHUNK_ROWS = 65_536
TEXT_CHUNK_ROWS = 4_096


def _of_video(dtype: str = TEXT, fill: float = 0, **attrs: str) -> ArrayMeta:
    return ArrayMeta((0,), dtype, VIDEO_CHUNK_ROWS, ("video",), fill, attrs)


VIDEO_ARRAYS: dict[str, ArrayMeta] = {
    "video_id": _of_video(cf_role="timeseries_id"),
    "split": _of_video(long_name="train, dev, test, … or empty"),
    "n_frames": _of_video(
        "int64", long_name="frames of this video", sample_dimension="frame", units="1"
    ),
    "fps": _of_video("float64", float("nan"), long_name="frames per second", units="s-1"),
    "width": _of_video("int32", long_name="frame width, 0 if unknown", units="pixel"),
    "height": _of_video("int32", long_name="frame height, 0 if unknown", units="pixel"),
}
ANNOTATION = _of_video()
"""A text column about videos, before it has rows."""
IMAGE_PATH = "image_path"
FRAME_ARRAYS: dict[str, ArrayMeta] = {
    IMAGE_PATH: ArrayMeta(
        (0,),
        TEXT,
        TEXT_CHUNK_ROWS,
        ("frame",),
        attrs={"long_name": "path relative to the data set; clip.mp4#n is frame n"},
    ),
}
FRAME_VIDEO = "frame_video"
"""Position of each frame's video: not stored, but a coordinate of labelled data sets."""
RESERVED_NAMES = frozenset({*VIDEO_ARRAYS, *FRAME_ARRAYS, "video", "frame", FRAME_VIDEO, TABLE})
"""Names that no feature may have, even in a store without videos."""


@dataclass(frozen=True)
class StoredFeature:
    """A feature as a store holds it: what it is and how it was made."""

    spec: FeatureSpec
    provenance: Provenance


class About(TypedDict):
    """kpstore's own description of a store, which its attributes hold under :data:`ROOT`."""

    format_version: int
    parts: NotRequired[list[str]]
    name: str
    created: str
    kpstore_version: str
    annotations: list[str]
    features: dict[str, Mapping[str, Any]]
    own_splits: NotRequired[bool]
    removed: NotRequired[Mapping[str, Any]]


def status_name(feature: str) -> str:
    """Name of the (frame,) uint8 array of :class:`State` for one feature."""
    return f"{feature}_status"


def state_name(feature: str) -> str:
    """Name of the (video,) uint8 array of :class:`State` for one feature."""
    return f"{feature}_state"


def failure_name(feature: str) -> str:
    """Name of the (video,) text array of failures, as JSON; empty where nothing failed."""
    return f"{feature}_failure"


def row_state_name(spec: FeatureSpec) -> str:
    """Name of the array with a :class:`State` for each row of a feature, frames or videos."""
    return status_name(spec.name) if spec.axis == "frame" else state_name(spec.name)


def root_attrs(name: str, created: str, kpstore_version: str) -> dict[str, object]:
    """Return the attributes of a new store."""
    about: About = {
        "format_version": FORMAT_VERSION,
        "parts": list(PARTS),
        "name": name,
        "created": created,
        "kpstore_version": kpstore_version,
        "annotations": [],
        "features": {},
    }
    return {"Conventions": "CF-1.11", "title": name, ROOT: about}


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_names(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name.isidentifier() for name in value)
        and len(set(value)) == len(value)
    )


def _are_features(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(stored, dict) and isinstance(stored.get("provenance"), dict)
        for stored in value.values()
    )


_SOUND: Mapping[str, Callable[[object], bool]] = {
    "name": lambda value: isinstance(value, str),
    "annotations": _are_names,
    "features": _are_features,
    "parts": _are_texts,
    "own_splits": lambda value: isinstance(value, bool),
}
"""Whether an entry of a store's description is of its kind: a store may come from anyone."""


def read_root(session: ReadSession, location: str) -> About:
    """Return kpstore's own part of the attributes.

    Raises
    ------
    InvalidError
        If this is not a kpstore store, or one of a format that this kpstore cannot read.
    CorruptError
        If the description is incomplete.
    """
    about = session.attrs().get(ROOT)
    if not isinstance(about, dict):
        raise InvalidError(
            f"{location} holds arrays but is not a kpstore store (no {ROOT!r} attribute)"
        )
    version = about.get("format_version")
    if version not in READABLE_VERSIONS:
        raise InvalidError(
            f"{location} has format version {version!r}, this kpstore reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; open it with the kpstore that wrote it, "
            "or upgrade"
        )
    required = {"name", "annotations", "features", *(["parts"] if version > 1 else [])}
    missing = required - about.keys()
    if missing:
        raise CorruptError(
            f"{location}: its description lacks {', '.join(sorted(missing))}; it is damaged"
        )
    odd = [key for key, is_sound in _SOUND.items() if key in about and not is_sound(about[key])]
    if odd:
        raise CorruptError(
            f"{location}: its description has no sound {', '.join(odd)}; it is damaged"
        )
    unknown = [str(part) for part in about.get("parts", []) if part not in PARTS]
    if unknown:
        raise InvalidError(
            f"{location} is written with {', '.join(map(repr, unknown))}, a part of the format "
            "that this kpstore does not know; open it with the kpstore that wrote it, or upgrade"
        )
    return cast("About", about)


def lacks(about: About) -> str:
    """Return what a store of an older format lacks, in one line; empty for the newest format."""
    if CHECKSUMS in about.get("parts", []):
        return ""
    return (
        f"format {about['format_version']}: no checksums by place, so chunks that have changed "
        "places are read as each other's values; 'kpstore convert' makes a copy in the newest "
        "format"
    )


def upgraded(attrs: Mapping[str, Any]) -> dict[str, object]:
    """Return the attributes of a whole store as the newest format has them."""
    return {**attrs, ROOT: {**attrs[ROOT], "format_version": FORMAT_VERSION, "parts": list(PARTS)}}


def read_features(about: About) -> dict[str, StoredFeature]:
    """Return the features that the attributes describe."""
    features: dict[str, StoredFeature] = {}
    for name, stored in about["features"].items():
        try:
            spec = FeatureSpec.from_json(stored["spec"])
            features[name] = StoredFeature(spec, stored_json(stored["provenance"]))
        except DAMAGE as error:
            reason = str(error) if isinstance(error, InvalidError) else repr(error)
            raise CorruptError(
                f"the store's description of feature {name!r} cannot be read: {reason}. Versions "
                "before it was added can be ('kpstore log'); 'kpstore rollback' makes one of them "
                "the newest again"
            ) from error
    return features


def wanted_metas(
    features: Mapping[str, StoredFeature], annotations: Sequence[str]
) -> dict[str, ArrayMeta]:
    """Return what the arrays of features and annotations are to be, apart from their lengths.

    These are those of the lists of videos and frames, which come first.
    """
    wanted = {"video_id": VIDEO_ARRAYS["video_id"], **FRAME_ARRAYS}
    for stored in features.values():
        wanted |= feature_metas(stored.spec, n_videos=0, n_frames=0)
    return {**wanted, **dict.fromkeys(annotations, ANNOTATION)}


def check_arrays(wanted: Mapping[str, ArrayMeta], session: ReadSession, location: str) -> None:
    """Raise :class:`CorruptError` if arrays are not what the store's description says.

    Both are trusted together later on, and a store may come from anyone.
    """
    lengths: dict[str, tuple[str, int]] = {}
    names = set(session.names())
    for name in (name for name in wanted if name in names):
        try:
            meta = session.meta(name)
        except KpstoreError:  # whoever reads it is told
            continue
        axis, named = wanted[name].dims[0], meta.dims[0] if meta.dims else ""
        along = named if named in ("frame", "video") else axis  # others may name it as they like
        first, n_rows = lengths.setdefault(axis, (name, meta.n_rows))
        found, right = ((m.dtype, m.shape[1:]) for m in (meta, wanted[name]))
        if (found, along) != (right, axis):
            raise CorruptError(
                f"{location}: {name!r} has {found[0]} {found[1]} for each {along}, its description "
                f"says {right[0]} {right[1]} for each {axis}; 'kpstore verify' shows more"
            )
        if meta.n_rows != n_rows:
            raise CorruptError(
                f"{location}: {name!r} has {meta.n_rows} rows and {first!r} {n_rows}, both one for "
                f"each {axis}; 'kpstore verify' shows more"
            )


def read_removals(about: About) -> Removals:
    """Return what was removed from the store, according to the attributes."""
    return Removals.from_json(about[REMOVED]) if REMOVED in about else Removals()


def feature_metas(spec: FeatureSpec, *, n_videos: int, n_frames: int) -> dict[str, ArrayMeta]:
    """Return every array of a feature: values, companions, states and failures."""
    n_rows = n_frames if spec.axis == "frame" else n_videos
    flags = {
        "flag_values": [int(s) for s in State],
        "flag_meanings": " ".join(s.name.lower() for s in State),
    }
    metas: dict[str, ArrayMeta] = {}
    for name, array in spec.arrays.items():
        attrs = {"units": array.units, "long_name": array.description or name}
        if name == spec.name:
            linked = [spec.companion(companion.name) for companion in spec.companions]
            linked += [status_name(spec.name)] if spec.axis == "frame" else []
            attrs["ancillary_variables"] = " ".join(linked)
        metas[name] = ArrayMeta(
            (n_rows, *array.shape),
            array.dtype,
            spec.chunk_rows,
            (spec.axis, *array.dims),
            array.fill,
            attrs,
            # float32 keypoints shrink by a fifth to two fifths and read slower when compressed
            # (docs/decisions/003).
            codec=spec.compression if name == spec.name else "zstd",
        )
    if spec.axis == "frame":
        metas[status_name(spec.name)] = ArrayMeta(
            (n_frames,), "uint8", spec.chunk_rows, ("frame",), 0, flags
        )
    metas[state_name(spec.name)] = ArrayMeta(
        (n_videos,), "uint8", VIDEO_CHUNK_ROWS, ("video",), 0, flags
    )
    metas[failure_name(spec.name)] = ArrayMeta((n_videos,), TEXT, TEXT_CHUNK_ROWS, ("video",))
    return metas


def feature_arrays(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the names of all arrays of a feature."""
    return tuple(feature_metas(spec, n_videos=0, n_frames=0))


def label_metas(spec: FeatureSpec) -> dict[str, tuple[ArrayMeta, NDArray[np.object_]]]:
    """Return the coordinate arrays of a feature's labels, by dimension, with their values."""
    return {
        dim: (ArrayMeta((len(names),), TEXT, len(names), (dim,)), np.array(names, dtype=object))
        for dim, names in spec.labels.items()
    }


def row_arrays(
    spec: FeatureSpec, rows: FeatureRows, status: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """Return the values to write for some rows of a feature, by array.

    Parameters
    ----------
    status : (rows,) uint8, a :class:`State` for each row; only features of frames keep it.
    """
    companions = {spec.companion(name): array for name, array in rows.companions.items()}
    states = {status_name(spec.name): status} if spec.axis == "frame" else {}
    return {spec.name: rows.values, **companions, **states}


def check_feature(features: Mapping[str, StoredFeature], name: str) -> StoredFeature:
    """Return a feature by name; :class:`NotFoundError` lists the known ones."""
    if not isinstance(name, str) or name not in features:
        raise NotFoundError(
            f"feature {shown(name)} not found; this store has {sorted(features) or 'none yet'}"
        )
    return features[name]


_INDEX = ("video_id", "split", "n_frames")
_FRAME_PLACE_BYTES = 16
"""Memory of a frame in tables of rows."""


def read_index(
    session: ReadSession, location: str, read: Callable[[str], NDArray[Any]] | None = None
) -> VideoIndex:
    """Return the list of videos of a version.

    Parameters
    ----------
    location : of the store, which may come from anyone.
    read : returns all rows of an array; by default through the session.

    Raises
    ------
    InvalidError
        If the list, or one of all its frames, would take much more memory than the store has bytes.
    CorruptError
        If its arrays contradict each other.
    """
    lacking = set(_INDEX) - set(session.names())
    if len(lacking) == len(_INDEX):
        empty = np.empty(0, dtype=object)
        return VideoIndex(empty, empty, np.empty(0, dtype=np.int64))
    if lacking:
        raise CorruptError(f"{location} lacks {', '.join(sorted(lacking))}; it is damaged")
    metas = [session.meta(name) for name in _INDEX]
    budget = _budget(location)
    budget.check(sum(meta.n_rows * meta.row_bytes for meta in metas), "its list of videos")
    whole = read or (lambda name: session.read(name, 0, session.meta(name).n_rows))
    index = VideoIndex(*(whole(name) for name in _INDEX))
    # Counted as floats, as a stranger's numbers may add up to more than 64 bits.
    n_frames, what = index.n_frames.sum(dtype=np.float64), "its list of frames"
    budget.check(int(n_frames) * _FRAME_PLACE_BYTES, what)
    n_paths = session.meta(IMAGE_PATH).n_rows if IMAGE_PATH in session.names() else n_frames
    if n_frames != n_paths:
        raise CorruptError(
            f"{location}: its videos have {n_frames:.0f} frames, {IMAGE_PATH!r} has {n_paths}; "
            "'kpstore verify' shows more"
        )
    return index


def _budget(location: str) -> MemoryBudget:
    """Return the memory that reading a store may take; what is in memory already is no risk."""
    if is_address(location):
        # Listing all objects takes long, and is only done for what needs much memory.
        return MemoryBudget(location, lambda: _objects_bytes(location), fixed=True)
    there = Path(location).exists()
    return MemoryBudget.of(Path(location), None if there else sys.maxsize, fixed=True)


def _objects_bytes(location: str) -> int:
    backend = OBJECTS(location)
    return sum(backend.sizes()) if isinstance(backend, KeepsCopies) else 0
