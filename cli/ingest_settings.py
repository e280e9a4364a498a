"""Options of the commands of ``kpstore ingest``, and what they stand for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kpstore import plugins
from kpstore.errors import InvalidError

from .arguments import Json, Splits

if TYPE_CHECKING:
    from kpstore.extractors.base import AnyExtractor
    from kpstore.ingest.options import Options

_MODEL, _MACHINE, _RESUME = (
    "What to extract",
    "Where to run",
    "What to do again, and when to commit",
)
MAX_DEFAULT_WORKERS = 4


def default_workers() -> int:
    """Return one worker per core that this process may use, at most four: more only where somebody asks for them."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_WORKERS)


MaxVideos = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first N videos of each split.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any other option of the recipe.",
        rich_help_panel=_MODEL,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="The model's weights, a file or folder.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class RunSettings:
    """Options that every ingest has."""

    name: Annotated[str | None, typer.Option(help="Name of the data set, for a new store.")] = None
    compression: Annotated[
        Literal["raw", "lz4", "zstd"],
        typer.Option(
            help="Of the values: raw reads fastest, lz4 saves a fifth. For a new feature."
        ),
    ] = "raw"
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Worker processes; 0 runs in this one. By default one per core, at most {MAX_DEFAULT_WORKERS}.",
            rich_help_panel=_MACHINE,
            show_default=False,
        ),
    ] = None
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs of this machine to use.", rich_help_panel=_MACHINE)
    ] = 0
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="cpu, cuda or cuda:0 for all workers, instead of --gpus.",
            rich_help_panel=_MACHINE,
        ),
    ] = None
    workers_per_gpu: Annotated[int, typer.Option(min=1, rich_help_panel=_MACHINE)] = 1
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Use this Dask scheduler's workers.", rich_help_panel=_MACHINE
        ),
    ] = None
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Extract again what is there.", rich_help_panel=_RESUME),
    ] = False
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Try videos with failures again.", rich_help_panel=_RESUME
        ),
    ] = False
    ignore_problems: Annotated[
        bool,
        typer.Option(
            "--ignore-problems",
            help="Go on although videos are missing or extra.",
            rich_help_panel=_RESUME,
        ),
    ] = False
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Commit at least this often.", rich_help_panel=_RESUME)
    ] = 5.0
    checkpoint_frames: Annotated[
        int,
        typer.Option(
            min=1, help="Commit at the latest after this many frames.", rich_help_panel=_RESUME
        ),
    ] = 100_000
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False
    json: Json = False

    def options(self) -> Options:
        """Return how to run."""
        from kpstore.ingest.options import Options

        if self.checkpoint_minutes <= 0:
            raise InvalidError(
                f"--checkpoint-minutes is {self.checkpoint_minutes}; it must be more than 0"
            )
        on_gpu = (self.device or "").startswith("cuda")
        return Options(
            workers=(1 if on_gpu else default_workers()) if self.workers is None else self.workers,
            device=self.device or "",
            scheduler=self.scheduler,
            gpus=self.gpus,
            workers_per_gpu=self.workers_per_gpu,
            overwrite=self.overwrite,
            retry_failed=self.retry_failed,
            ignore_problems=self.ignore_problems,
            compression=self.compression,
            checkpoint_s=self.checkpoint_minutes * 60,
            checkpoint_frames=self.checkpoint_frames,
            name=self.name or "",
        )


@dataclass(frozen=True)
class RecipeSettings(RunSettings):
    """Options of an ingest that may use any recipe."""

    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "--extractor",
            help=f"How to extract: {', '.join(plugins.names('kpstore.extractors'))}.",
            rich_help_panel=_MODEL,
        ),
    ] = "holistic"
    mode: Annotated[
        Literal["image", "video"] | None,
        typer.Option(
            help="Look for the person in each image, or track from image to image.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    independent_frames: Annotated[
        bool,
        typer.Option(
            "--independent-frames",
            help="No frame depends on those before it.",
            rich_help_panel=_MODEL,
        ),
    ] = False
    face_list: Annotated[
        str | None,
        typer.Option(help="The 68 face points: phoenix, ibug, or a file.", rich_help_panel=_MODEL),
    ] = None
    handedness: Annotated[
        Literal["subject", "legacy"] | None,
        typer.Option(
            help="Recipe parts: how left and right are told apart.", rich_help_panel=_MODEL
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="Recipes dinov2, faces: dinov2_vits14, _vitb14, _vitl14, _vitg14.",
            rich_help_panel=_MODEL,
        ),
    ] = None
    weights: Weights = None
    set: Set = None

    def extractor(self) -> AnyExtractor:
        """Return what to extract with."""
        from kpstore.extractors.registry import make_extractor

        return make_extractor(
            self.recipe,
            **{
                "mode": self.mode,
                "independent_frames": self.independent_frames or None,
                "face_list": self.face_list,
                "handedness": self.handedness,
                "model": self.model,
                "weights": self.weights,
                **_pairs(self.set),
            },
        )


@dataclass(frozen=True)
class Settings(RecipeSettings):
    """Options of an ingest of a data set that has splits."""

    splits: Splits = None
    max_videos_per_split: MaxVideos = None


@dataclass(frozen=True)
class FaceSettings(RunSettings):
    """Options of an ingest of faces."""

    dinov2_model: Annotated[
        str,
        typer.Option(
            help="dinov2_vits14, _vitb14, _vitl14 or _vitg14, with or without _reg.",
            rich_help_panel=_MODEL,
        ),
    ] = "dinov2_vitb14"
    weights: Weights = None
    model_pack: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help="Detector: a pack of InsightFace, or a folder.",
            rich_help_panel=_MODEL,
        ),
    ] = "buffalo_l"
    formula: Annotated[
        Literal["corrected", "json"],
        typer.Option(
            help="Of angles; json makes what users' JSON files hold.", rich_help_panel=_MODEL
        ),
    ] = "corrected"
    face: Annotated[
        Literal["largest", "best", "first"] | None,
        typer.Option(help="Which face of several; by default the largest.", rich_help_panel=_MODEL),
    ] = None
    set: Set = None
    splits: Splits = None
    max_videos_per_split: MaxVideos = None

    def extractor(self) -> AnyExtractor:
        """Return what to extract with."""
        from kpstore.extractors.registry import make_extractor

        chosen = {
            name: getattr(self, name) for name in ("weights", "model_pack", "formula", "face")
        }
        return make_extractor("faces", **{"model": self.dinov2_model, **chosen, **_pairs(self.set)})


@dataclass(frozen=True)
class LipSettings(RunSettings):
    """Options of an ingest of mouth crops."""

    weights: Weights = None
    set: Set = None
    max_videos_per_split: MaxVideos = None

    def extractor(self) -> AnyExtractor:
        """Return what to extract with."""
        from kpstore.extractors.registry import make_extractor

        return make_extractor("lip_resnet18", **{"weights": self.weights, **_pairs(self.set)})


def _pairs(given: list[str] | None) -> dict[str, Any]:
    return dict(_pair(text) for text in given or ())


def _pair(text: str) -> tuple[str, Any]:
    """Return ``"model_complexity=2"`` as name and value; what is not JSON is text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InvalidError(f"--set {text!r}: use NAME=VALUE, for example --set model_complexity=1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
