"""Reading the forms of pickle that keypoint scripts write, all as lists of frames by split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import InvalidError
from kpstore.interop.files import check_there, without_hidden
from kpstore.interop.plain_values import to_json
from kpstore.interop.splits import UNSPLIT, split_rank
from kpstore.interop.unpickling import load_pickle
from kpstore.schema.layout import N_FACE, N_POINTS, PART_SLICES

Content = Mapping[str, object]
Frames = Sequence[object] | NDArray[np.generic]
Form = Literal["raw", "split", "workers", "flat", "face", "model_input", "sequences"]

FORMS: Mapping[Form, str] = {
    "raw": "lists by split, as the extraction scripts write them",
    "split": "one file per split, as split_phoenix_keypoints writes them",
    "workers": "a worker's results that were not merged",
    "flat": "lists without splits",
    "face": "an array of faces",
    "model_input": "an array of 143 points, as prepare_model_input writes it",
    "sequences": "lists of frames, one for each sequence",
}
NONE = "the file holds None for this frame"
"""Why frames from a pickle failed."""
SPLIT_FILE = "mediaPipe_Phoenix."
_NO_SPLIT = "workers' files do not say which split they belong to; see --split"
MOST_WORKERS = 10_000
"""Highest number up to which missing files of workers are looked for."""
WORKER_FILE = re.compile(r"temp_split_(\d+)_gpu(\d+)\.(?:pkl|pickle)\Z")
_ABOUT = ("stats", "keypoint_info", "dataset_info")
OTHER_KEYS = (*_ABOUT, "keypoints", "results", "sequences")
"""Keys at the top of a file that are not splits; no split can have such a name."""


@dataclass(frozen=True)
class Listed:
    """Frames of one split in the order of the file.

    Parameters
    ----------
    place : where they are in the file, for messages.
    split : name of the split; ``""`` for none.
    frames : dicts of parts, None where a frame failed; or rows of points, an array (N, points, 3)
        or a list.
    paths : paths of the images; None if the file has none.
    video_ids : id of the video of each frame; None if the file has none.
    """

    place: str
    split: str
    frames: Frames
    paths: Sequence[str] | None = None
    video_ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, texts in (("image_paths", self.paths), ("video_ids", self.video_ids)):
            if texts is None:
                continue
            if len(texts) != len(self.frames):
                raise InvalidError(
                    f"{self.place}: {len(texts)} {name} for {len(self.frames)} keypoints"
                )
            odd = next((n for n, text in enumerate(texts) if not isinstance(text, str)), None)
            if odd is not None:
                raise InvalidError(
                    f"{self.place}: {name}[{odd}] is a {type(texts[odd]).__name__}, a text is "
                    "needed"
                )


@dataclass(frozen=True)
class Contents:
    """Contents of a file or a folder.

    Parameters
    ----------
    form : see :data:`FORMS`.
    listed : frames by split.
    points : 143, or 68 if there are only faces.
    document : other contents of the file (JSON).
    notes : what cannot be carried over, one line each.
    """

    form: Form
    listed: Sequence[Listed]
    points: int = N_POINTS
    document: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def recognises(path: Path) -> bool:
    """Return whether a file begins like a pickle, or a folder has files named like these forms."""
    try:
        if path.is_dir():
            return any(
                WORKER_FILE.match(p.name) or p.name.startswith(SPLIT_FILE) for p in path.iterdir()
            )
        with path.open("rb") as file:
            first = file.read(2)
    except OSError:
        return False
    return first[:1] == b"\x80" and first[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")


def read_contents(path: Path, budget: MemoryBudget) -> Contents:
    """Return the contents of a pickle, or of a folder with a pickle per worker or per split.

    Parameters
    ----------
    budget : holds the contents.

    Raises
    ------
    InvalidError
        If it is neither.
    """
    if not path.is_dir():
        check_there(path, "pickle")
        return _read_file(path, budget)
    files = [p for p in without_hidden(path.iterdir()) if p.is_file()]
    numbered = [(tuple(map(int, m.groups())), p) for p in files if (m := WORKER_FILE.match(p.name))]
    if numbered:
        return _merge([_read_file(p, budget) for _, p in sorted(numbered)], "workers", path)
    splits = [p for p in files if p.name.startswith(SPLIT_FILE) or p.suffix in (".pkl", ".pickle")]
    if not splits:
        raise InvalidError(
            f"{path} holds neither workers' files (temp_split_0_gpu0.pkl, …) nor files of splits "
            f"({SPLIT_FILE}train, …); name the file to import"
        )
    found = [_read_file(p, budget) for p in splits]
    found.sort(key=lambda contents: split_rank(contents.listed[0].split if contents.listed else ""))
    return _merge(found, "split", path)


def _merge(found: Sequence[Contents], form: Form, path: Path) -> Contents:
    allowed = {"workers"} if form == "workers" else {"raw", "split"}
    odd = next((contents for contents in found if contents.form not in allowed), None)
    if odd is not None:
        raise InvalidError(
            f"{path} holds a pickle of {FORMS[odd.form]} ({odd.form}), which is imported by "
            "itself: name each such file, with the same store"
        )
    listed = [group for contents in found for group in contents.listed]
    document: dict[str, Any] = {"form": form}
    for contents in found:
        for key, value in contents.document.items():
            if key in ("splits", "workers"):
                document[key] = [*document.get(key, []), *value]
            elif key in ("stats", "split_dataset_info"):
                document[key] = {**document.get(key, {}), **value}
            else:
                document.setdefault(key, value)
    if form == "workers":
        listed = [_joined(listed, path)]
    splits = [group.split for group in listed]
    if len(set(splits)) != len(splits):
        twice = next(split for split in splits if splits.count(split) > 1)
        raise InvalidError(f"{path} holds split {twice!r} in two files; import them by themselves")
    notes = list(dict.fromkeys(note for contents in found for note in contents.notes))
    return Contents(form, listed, N_POINTS, document, notes)


def _joined(listed: Sequence[Listed], path: Path) -> Listed:
    """Return the frames of all workers in one list, as merging scripts joined them."""
    return Listed(
        str(path),
        "",
        [frame for group in listed for frame in group.frames],
        [text for group in listed for text in group.paths or ()],
        [text for group in listed for text in group.video_ids or ()],
    )


def _read_file(path: Path, budget: MemoryBudget) -> Contents:
    content = load_pickle(path, budget)
    if isinstance(content, np.ndarray) and content.shape == () and content.dtype == object:
        content = content.item()  # np.save of a dict
    if not isinstance(content, dict):
        raise InvalidError(
            f"{path} holds a {type(content).__name__}; a dict with keypoints is needed"
        )
    readers = {"results": _read_worker, "sequences": _read_sequences, "keypoints": _read_single}
    for key, read in readers.items():
        if key in content:
            return read(path, content)
    if any(isinstance(value, dict) and "keypoints" in value for value in content.values()):
        return _read_raw(path, content)
    keys = ", ".join(map(repr, list(content)[:8])) or "nothing"
    raise InvalidError(
        f"{path} holds {keys}; there is no 'keypoints', no split with 'keypoints', no 'results' "
        "and no 'sequences' in it, so it is not a pickle of keypoints"
    )


def _about(path: Path, content: Content) -> dict[str, object]:
    """Return what goes into the document as it is in the file."""
    return {key: to_json(content[key], f"{path}[{key!r}]") for key in _ABOUT if key in content}


def _unknown(place: str, content: Content, known: Sequence[str]) -> list[str]:
    """Return a note for every key that no script writes."""
    return [
        f"{place}: {key!r}, which no script is known to write"
        for key in content
        if key not in known
    ]


def _read_raw(path: Path, content: Content) -> Contents:
    splits = [key for key in content if key not in _ABOUT]
    listed: list[Listed] = []
    notes: list[str] = []
    for split in splits:
        group, place = content[split], f"{path}[{split!r}]"
        if not isinstance(split, str) or not isinstance(group, dict):
            raise InvalidError(
                f"{place} is a {type(group).__name__}; a split is a dict of lists, named by a text"
            )
        notes += _unknown(place, group, ("keypoints", "image_paths", "video_ids"))
        named = "" if split == UNSPLIT and "" not in splits else split
        listed.append(_listed(place, named, group))
    info = content.get("dataset_info")
    is_split = isinstance(info, dict) and "original_splits" in info and len(splits) == 1
    form: Form = "split" if is_split else "raw"
    document = {"form": form, "splits": splits, **_about(path, content)}
    if is_split:
        document["split_dataset_info"] = {splits[0]: document.pop("dataset_info")}
    return Contents(form, listed, N_POINTS, document, notes)


def _listed(place: str, split: str, group: Mapping[str, Any], frames: Any = None) -> Listed:
    frames = group.get("keypoints") if frames is None else frames
    if not isinstance(frames, (list, tuple, np.ndarray)):
        raise InvalidError(
            f"{place}['keypoints'] is a {type(frames).__name__}; a list of frames is needed"
        )
    return Listed(
        place, split, frames, *(_texts(place, group, name) for name in ("image_paths", "video_ids"))
    )


def _texts(place: str, group: Content, name: str) -> Sequence[str] | None:
    texts = group.get(name)
    if isinstance(texts, np.ndarray):
        texts = texts.tolist()
    if texts is not None and not isinstance(texts, (list, tuple)):
        raise InvalidError(
            f"{place}[{name!r}] is a {type(texts).__name__}; a list of texts is needed"
        )
    return texts


def _read_worker(path: Path, content: Content) -> Contents:
    results = content["results"]
    if not isinstance(results, list):
        raise InvalidError(f"{path}['results'] is a {type(results).__name__}; a list is needed")
    for number, result in enumerate(results):
        if not isinstance(result, dict) or not {"keypoints", "image_path"} <= set(result):
            raise InvalidError(
                f"{path}['results'][{number}] is a {type(result).__name__} without 'keypoints' or "
                "'image_path'"
            )
    with_ids = all("video_id" in result for result in results)
    listed = Listed(
        f"{path}['results']",
        "",
        [result["keypoints"] for result in results],
        [result["image_path"] for result in results],
        [result["video_id"] for result in results] if with_ids else None,
    )
    others = [key for key in content if key != "results"]
    facts = {key: to_json(content[key], f"{path}[{key!r}]") for key in others}
    document = {"form": "workers", "workers": [facts]}
    return Contents("workers", [listed], N_POINTS, document, [_NO_SPLIT])


def _read_sequences(path: Path, content: Content) -> Contents:
    sequences = content["sequences"]
    if not isinstance(sequences, (list, np.ndarray)) or not all(
        isinstance(frames, (list, np.ndarray)) for frames in sequences
    ):
        raise InvalidError(f"{path}['sequences'] is not a list of lists of frames")
    ids = [
        f"sequence_{number:05d}"
        for number, frames in enumerate(sequences)
        for _ in range(len(frames))
    ]
    frames = [frame for sequence in sequences for frame in sequence]
    notes = _unknown(path.name, content, (*_ABOUT, "sequences"))
    notes.append(
        f"{path.name}: sequences have no names; they are videos sequence_00000, sequence_00001, …"
    )
    empty = sum(len(sequence) == 0 for sequence in sequences)
    if empty:
        notes.append(f"{path.name}: {empty} sequences without frames")
    listed = Listed(f"{path}['sequences']", "", frames, None, ids)
    document = {"form": "sequences", **_about(path, content)}
    return Contents("sequences", [listed], _points_of(frames, str(path)), document, notes)


def _read_single(path: Path, content: Content) -> Contents:
    arrays = ("keypoints", "image_paths", "video_ids", "keypoints_dict")
    known = (*_ABOUT, *arrays, "split", "num_samples", "keypoint_shape")
    notes, document = _unknown(path.name, content, known), _about(path, content)
    split = content.get("split")
    if split is not None and not isinstance(split, str):
        raise InvalidError(f"{path}['split'] is a {type(split).__name__}; a text is needed")
    if split is not None:
        document["split"] = split
    given = content.get("keypoints_dict")
    as_frames = isinstance(given, (list, np.ndarray))
    listed = _listed(
        str(path), "" if split in (None, UNSPLIT) else split, content, given if as_frames else None
    )
    points = _points_of(listed.frames, str(path))
    keypoints = content["keypoints"]
    form: Form = "flat"
    if isinstance(keypoints, np.ndarray) and keypoints.dtype != object:
        form = "face" if points == N_FACE else "model_input"
    if as_frames:
        document["keypoints_dict"] = "frames"
        notes.append(
            f"{path.name}: 'keypoints_dict' has the frames; the array 'keypoints', made from them, "
            "is not read"
        )
    elif given is not None:
        document["keypoints_dict"] = "arrays"
        notes += _check_repeated(path, given, listed.frames)
    return Contents(form, [listed], points, {"form": form, **document}, notes)


def _check_repeated(path: Path, given: object, frames: Frames) -> list[str]:
    """Return a note on a ``keypoints_dict`` that differs from the array."""
    note = f"{path.name}: 'keypoints_dict', which is not the parts of 'keypoints'"
    if not isinstance(given, dict) or set(given) != set(PART_SLICES):
        return [note]
    points = np.asarray(frames)
    same = all(
        np.array_equal(np.asarray(given[part]), points[:, rows], equal_nan=True)
        for part, rows in PART_SLICES.items()
    )
    return [] if same else [note]


def _points_of(frames: Frames, place: str) -> int:
    """Return the points per frame, 68 or 143, of the array or the first frame that is not None."""
    if isinstance(frames, np.ndarray) and frames.dtype != object:
        shape = frames.shape[1:]
    else:
        first = next((frame for frame in frames if frame is not None), {})
        if isinstance(first, dict):
            return N_POINTS
        shape = np.asarray(first).shape
    if shape not in ((N_FACE, 3), (N_POINTS, 3)):
        raise InvalidError(f"{place}: keypoints of {shape} a frame; (68, 3) and (143, 3) are known")
    return int(shape[0])
