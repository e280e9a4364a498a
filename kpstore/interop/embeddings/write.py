"""Exporting embeddings as npz files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from kpstore.errors import InvalidError
from kpstore.interop.base import ExportedFile, ExportReport, FileExporter, OnProgress, Splits
from kpstore.interop.embeddings.read import KEY, Layout
from kpstore.interop.files import check_free, inside, written_aside
from kpstore.interop.outputs import check_no_links, document_of, lost_notes
from kpstore.options import Option
from kpstore.schema.feature import State
from kpstore.schema.lips import EMBEDDING_ENDING, LIP_FEATURE
from kpstore.store import format as fmt
from kpstore.store.store import BaseStore
from kpstore.store.video import Video


@dataclass(frozen=True)
class EmbeddingsExport(FileExporter):
    """Writes ``ID_embedding.npz`` into a folder for every utterance that is done.

    Utterances with a frame that failed or is pending are left out, and their frames counted.

    Parameters
    ----------
    feature : a vector per frame.
    layout : axes of the arrays; by default as they were imported, or else (512, T).
    splits : only these.
    """

    feature: Annotated[str, Option("Which feature.")] = LIP_FEATURE
    layout: Annotated[
        Layout | None, Option("Order of the axes; as imported by default, else channels_first.")
    ] = None
    splits: Splits = None

    def _write(
        self, store: BaseStore, path: Path, overwrite: bool, report: OnProgress
    ) -> ExportReport:
        spec = store.feature(self.feature)
        if spec.axis != "frame" or len(spec.shape) != 1:
            raise InvalidError(
                f"feature {self.feature!r} has rows of {spec.shape} by {spec.axis}; a vector per "
                "frame is needed"
            )
        chosen, left_out = self._choose(store)
        targets = _targets(path, chosen)
        check_no_links(path, targets.values())
        check_free(targets.values(), overwrite=overwrite)
        path.mkdir(parents=True, exist_ok=True)
        as_imported = document_of(store, self.feature, "embeddings").get("layout")
        time_first = (self.layout or as_imported) == "time_first"
        frames = 0
        with written_aside(*targets.values()) as asides:
            for video, aside in zip(chosen, asides, strict=True):
                values = video[self.feature]
                array = np.ascontiguousarray(values if time_first else values.T)
                with aside.open("wb") as out:
                    np.savez_compressed(out, **{KEY: array})  # type: ignore[arg-type]
                frames += video.n_frames
                report(video.n_frames)
        notes = lost_notes(store, [self.feature])
        if any(store.splits):
            notes.append("splits: the folder does not hold them")
        return ExportReport([ExportedFile(path, frames, len(chosen), None, left_out)], notes)

    def _choose(self, store: BaseStore) -> tuple[list[Video], dict[str, int]]:
        """Return the videos to write, and the number of frames left out by reason."""
        status, states = store[fmt.status_name(self.feature)], store.states(self.feature)
        chosen, left_out = [], Counter({"failed": 0, "pending": 0})
        for position in store.index.select(split=self.splits):
            video = Video(store, int(position))
            of_frames = status[video.rows]
            if states[position] == State.DONE and (of_frames == State.DONE).all():
                chosen.append(video)
            else:
                left_out["failed" if (of_frames == State.FAILED).any() else "pending"] += (
                    video.n_frames
                )
        return chosen, dict(left_out)


def _targets(folder: Path, videos: Sequence[Video]) -> dict[str, Path]:
    targets = {video.id: inside(folder, f"{video.id}{EMBEDDING_ENDING}") for video in videos}
    owner: dict[Path, str] = {}
    for video_id, target in targets.items():
        if owner.setdefault(target, video_id) != video_id:
            raise InvalidError(
                f"videos {owner[target]!r} and {video_id!r} would both be written to {target}"
            )
    return targets
