"""Estimates of an ingest from its plan: videos per split, time and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kpstore.extractors.base import AnyExtractor, frame_specs
from kpstore.ingest.pending import IngestPlan, title
from kpstore.schema.index import VideoRecord


@dataclass(frozen=True)
class SplitPlan:
    """Videos of one split of the source.

    Parameters
    ----------
    videos : all of them; ``new`` are not in the store yet, ``done`` need nothing, ``to_do`` will be
        extracted.
    frames : frames to extract.
    """

    videos: int = 0
    new: int = 0
    done: int = 0
    to_do: int = 0
    frames: int = 0


@dataclass(frozen=True)
class Estimate:
    """What an ingest would do.

    Parameters
    ----------
    splits : by name.
    tasks : number of pieces of work for the workers.
    overwritten : videos whose results would be replaced.
    size_bytes : of the new rows, before compression.
    seconds : at the extractor's typical speed, which depends on the machine.
    problems : the source's problems, and notes about the data set and what the store keeps.
    """

    feature: str
    splits: Mapping[str, SplitPlan]
    frames: int
    tasks: int
    overwritten: int
    workers: int
    size_bytes: int
    seconds: float
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the estimate as JSON values."""
        return {**asdict(self), "seconds": round(self.seconds, 1), "problems": list(self.problems)}


def estimate(plan: IngestPlan, extractor: AnyExtractor, *, workers: int) -> Estimate:
    """Return the estimate for a plan; nothing runs.

    Parameters
    ----------
    workers : worker processes; 0 for this process alone.
    """
    row_bytes = sum(
        sum(array.row_bytes for array in spec.arrays.values()) + 1
        for spec in frame_specs(extractor)
    )
    new = {video.id for video in plan.new_videos}
    to_do = {video.record.id for task in plan.tasks for video in task.videos}
    by_split: dict[str, list[VideoRecord]] = {}
    for video in plan.listing.videos:
        by_split.setdefault(video.split, []).append(video)
    # More workers than tasks have nothing to do.
    busy = max(1, min(workers, len(plan.tasks)))
    return Estimate(
        feature=title(extractor),
        splits={name: _split_plan(videos, new, to_do) for name, videos in by_split.items()},
        frames=plan.n_frames,
        tasks=len(plan.tasks),
        overwritten=len(plan.overwritten),
        workers=workers,
        size_bytes=plan.n_frames * row_bytes,
        seconds=plan.n_frames / (max(extractor.typical_fps, 0.1) * busy),
        problems=(*plan.listing.problems, *plan.listing.notes, *plan.notes),
    )


def _split_plan(videos: list[VideoRecord], new: set[str], to_do: set[str]) -> SplitPlan:
    wanted = [video for video in videos if video.id in to_do]
    return SplitPlan(
        videos=len(videos),
        new=sum(video.id in new for video in videos),
        done=len(videos) - len(wanted),
        to_do=len(wanted),
        frames=sum(video.n_frames for video in wanted),
    )
