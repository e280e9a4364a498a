"""Importing pickles of keypoints, in all forms that extraction and training scripts write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from kpstore.budget import MemoryBudget
from kpstore.interop.base import (
    FileImporter,
    ImportedFeature,
    ImportedVideo,
    NotedDocument,
    imported,
)
from kpstore.interop.pickle.forms import (
    FORMS,
    MOST_WORKERS,
    WORKER_FILE,
    Contents,
    Listed,
    read_contents,
)
from kpstore.interop.pickle.planner import Planner, VideoPlan, slashed
from kpstore.interop.pickle.rows import RowMaker, Zeros
from kpstore.interop.plain_values import from_json
from kpstore.interop.splits import UNSPLIT
from kpstore.options import Option
from kpstore.schema.array import ArraySpec
from kpstore.schema.face_lists import load_face_list
from kpstore.schema.feature import MASK, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.schema.layout import N_FACE, POINT_NAMES, FaceList, keypoints_spec


def face_keypoints_spec(face_list: FaceList) -> FeatureSpec:
    """Return the feature ``face_keypoints``: (68, 3) float32 per frame, NaN where there is no face.

    Its companion ``detected`` is (1,) bool. Points have the names of the face of ``keypoints``.
    """
    whole = keypoints_spec(face_list)
    return FeatureSpec(
        "face_keypoints",
        (N_FACE, 3),
        ("face_point", "space"),
        description="keypoints of the face",
        labels={
            "face_point": POINT_NAMES[:N_FACE],
            "space": whole.labels["space"],
            "face_part": ("face",),
        },
        companions=(
            ArraySpec(
                MASK, (1,), ("face_part",), "bool", description="whether the face was detected"
            ),
        ),
        attrs={key: whole.attrs[key] for key in ("convention", "face_regions", "face_list")},
    )


@dataclass(frozen=True)
class PickleImport(FileImporter):
    """Reads pickles of keypoints, and recognises their form; see :data:`forms.FORMS`.

    A frame that is None has failed; a part that is None is NaN and not detected. Frames that the
    scripts dropped are neither in the file nor in the store; the number of a frame is only in its
    path.

    Parameters
    ----------
    face_list : which mesh points the 68 face points are: a known name, or a file.
    split : the split of all frames, where the file names none.
    zeros : in files of arrays, the meaning of a part (or a face, in files of faces) that is all
        zeros. Frames that are dicts have None for what is missing, so their zeros are values.
    """

    face_list: Annotated[str, Option("The 68 face points: phoenix, ibug, or a file.")] = "phoenix"
    split: Annotated[str, Option("Split of the frames, where the file names none.")] = ""
    zeros: Annotated[Zeros, Option("In files of arrays: what a part that is all zeros means.")] = (
        "missing"
    )

    def open(self, path: Path) -> PickleDocument:
        """Load a file, or a folder of workers' or of splits' files.

        See :class:`kpstore.interop.base.Importer`.
        """
        face_list = load_face_list(self.face_list)
        budget = MemoryBudget.of(path, self.most_bytes)
        contents = read_contents(path, budget)
        return PickleDocument(path, contents, face_list, self.split, self.zeros, budget)


class PickleDocument(NotedDocument):
    """A loaded pickle: memory holds its contents once, and the rows of one video at a time.

    Parameters
    ----------
    path : the file or the folder, for names and messages.
    contents : contents of the file.
    face_list, split, zeros : see :class:`PickleImport`.
    budget : holds the contents.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        face_list: FaceList,
        split: str,
        zeros: Zeros,
        budget: MemoryBudget,
    ) -> None:
        super().__init__()
        self._path, self._zeros, self._budget = path, zeros, budget
        planner = Planner(path.stem, split)
        for listed in contents.listed:
            planner.add(listed)
        self._plans = planner.finish()
        facts: dict[str, Any] = {**contents.document, **planner.facts}
        shapes = _shape_kind(contents.listed)
        if shapes:
            facts["image_shape"] = shapes
        self.n_frames = sum(len(plan.places) for plan in self._plans)
        info = facts.get("dataset_info")
        named = info.get("name") if isinstance(info, dict) else None
        self.name = named if isinstance(named, str) and named else path.stem
        faces = contents.points == N_FACE
        self._spec = face_keypoints_spec(face_list) if faces else keypoints_spec(face_list)
        known = {"name": face_list.name, "sha256": face_list.sha256}
        self.features = [ImportedFeature(self._spec, imported("pickle", facts, face_list=known))]
        self.note(f"read as {contents.form}: {FORMS[contents.form]}", *contents.notes)
        self.note(*planner.notes, *_compare_stats(from_json(facts.get("stats")), contents.listed))
        if contents.form == "workers":
            self.note(*(_missing_workers(path) if path.is_dir() else []))
            self.note(*_missing_results(facts.get("workers", ()), contents.listed))

    def _read(self) -> Iterator[ImportedVideo]:
        maker = RowMaker(self._spec, self._zeros, self.count)
        for plan in self._plans:
            yield self._video(plan, maker)
        if maker.gaps:
            self.note(
                f"{sum(maker.gaps)} frames of {len(maker.gaps)} videos are not in the file, by the "
                "numbers in their paths"
            )

    def _video(self, plan: VideoPlan, maker: RowMaker) -> ImportedVideo:
        listed = plan.listed
        # Places of a pickle may all hold the same frame, which takes no room in the file.
        what = f"the {len(plan.places)} frames of {plan.video_id!r}"
        self._budget.check_frames(len(plan.places), self._spec.row_bytes, what)
        if listed.paths is None:
            paths = tuple(f"{self._path.name}#{n}" for n in plan.places)
        else:
            paths = tuple(slashed(listed.paths[n]) for n in plan.places)
            maker.count_gaps(paths)
        rows, failed, size = maker.make(listed, plan.places)
        record = VideoRecord(plan.video_id, plan.split, paths, width=size[1], height=size[0])
        name = self._spec.name
        return ImportedVideo(record, {name: rows}, {name: failed} if failed else {})


def _compare_stats(stats: object, listed: Sequence[Listed]) -> list[str]:
    """Return how the file's own statistics differ from its contents."""
    notes: list[str] = []
    if not isinstance(stats, dict):
        return notes
    for group in listed:
        own = stats.get(group.split or UNSPLIT, stats if "success" in stats else None)
        if not isinstance(own, dict):
            continue
        held = sum(frame is not None for frame in group.frames)
        if own.get("success", held) != held:
            notes.append(
                f"{group.place}: the file's stats say that {own['success']} frames succeeded, it "
                f"holds {held}; they are kept as they are (export pickle --stats as_imported)"
            )
        total = own.get("total")
        if isinstance(total, int | np.integer) and total > len(group.frames):
            notes.append(
                f"{group.place}: {total - len(group.frames)} of {total} frames were dropped when "
                "the file was made"
            )
    return notes


def _missing_workers(folder: Path) -> list[str]:
    """Return which workers left no file, by the numbers of the others.

    A missing last file goes unnoticed.
    """
    there = {int(match[1]) for path in folder.iterdir() if (match := WORKER_FILE.match(path.name))}
    gone = [
        number for number in range(min(max(there, default=0), MOST_WORKERS)) if number not in there
    ]
    if not gone:
        return []
    shown = ", ".join(map(str, gone[:10])) + (", …" if gone[10:] else "")
    return [
        f"of workers 0 to {max(there)}, these left no file: {shown}; their share of the frames is "
        "missing"
    ]


def _missing_results(workers: Sequence[object], listed: Sequence[Listed]) -> list[str]:
    """Return how many frames the workers counted that their files do not hold."""
    totals = [
        total
        for facts in workers
        if isinstance(total := from_json(facts).get("total_images"), int | np.integer)
    ]
    held, total = sum(len(group.frames) for group in listed), sum(map(int, totals))
    if len(totals) != len(workers) or total <= held:
        return []
    return [
        f"the workers' files count {total} frames and hold {held}: {total - held} are not in them, "
        "because nothing was found in them or because they were lost"
    ]


def _shape_kind(listed: Sequence[Listed]) -> str:
    """Return how the file holds image shapes: as ``"tuple"``, as ``"array"``, or ``""`` if not."""
    for group in listed:
        for frame in group.frames:
            if isinstance(frame, dict) and frame.get("image_shape") is not None:
                return "array" if isinstance(frame["image_shape"], np.ndarray) else "tuple"
    return ""
