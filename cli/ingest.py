"""``kpstore ingest``: extract a feature from a data set into a store."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from kpstore import plugins
from kpstore.errors import InvalidError

from . import render
from .arguments import Json, ListCommand, Splits, split_names

if TYPE_CHECKING:
    from kpstore.extractors.base import AnyExtractor
    from kpstore.ingest.estimate import Estimate
    from kpstore.ingest.report import Report
    from kpstore.ingest.run import Options
    from kpstore.sources.base import Source

_MODEL, _MACHINE, _RESUME = "What to extract", "Where to run", "What to do again, and when to commit"
MAX_DEFAULT_WORKERS = 4

app = typer.Typer(no_args_is_help=True, help="Extract a feature from a data set into a store; again to go on.")


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.add_typer(app, name="ingest")


def default_workers() -> int:
    """Return one worker per core that this process may use, at most four: more only where somebody asks for them."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_WORKERS)


@dataclass(frozen=True)
class Settings:
    """All options that every ingest has."""

    recipe: Annotated[
        str,
        typer.Option(help=f"How to extract: {', '.join(plugins.names('kpstore.extractors'))}.", rich_help_panel=_MODEL),
    ] = "holistic"
    mode: Annotated[
        Literal["image", "video"] | None,
        typer.Option(help="Look for the person in each image, or track from image to image.", rich_help_panel=_MODEL),
    ] = None
    independent_frames: Annotated[
        bool,
        typer.Option("--independent-frames", help="No frame depends on those before it.", rich_help_panel=_MODEL),
    ] = False
    face_list: Annotated[
        str | None,
        typer.Option(help="The 68 face points: phoenix, ibug, or a file.", rich_help_panel=_MODEL),
    ] = None
    handedness: Annotated[
        Literal["subject", "legacy"] | None,
        typer.Option(help="Recipe parts: how left and right are told apart.", rich_help_panel=_MODEL),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other option of the recipe.", rich_help_panel=_MODEL),
    ] = None
    splits: Splits = None
    max_videos_per_split: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N videos of each split.")
    ] = None
    name: Annotated[str | None, typer.Option(help="Name of the data set, for a new store.")] = None
    compression: Annotated[
        Literal["raw", "lz4", "zstd"],
        typer.Option(help="Of the values: raw reads fastest, lz4 saves a fifth. For a new feature."),
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
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of this machine to use.", rich_help_panel=_MACHINE)] = 0
    workers_per_gpu: Annotated[int, typer.Option(min=1, rich_help_panel=_MACHINE)] = 1
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Use this Dask scheduler's workers.", rich_help_panel=_MACHINE),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Extract again what is there.", rich_help_panel=_RESUME)
    ] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try videos with failures again.", rich_help_panel=_RESUME)
    ] = False
    ignore_problems: Annotated[
        bool,
        typer.Option("--ignore-problems", help="Go on although videos are missing or extra.", rich_help_panel=_RESUME),
    ] = False
    checkpoint_minutes: Annotated[float, typer.Option(help="Commit at least this often.", rich_help_panel=_RESUME)] = (
        5.0
    )
    checkpoint_frames: Annotated[
        int, typer.Option(min=1, help="Commit at the latest after this many frames.", rich_help_panel=_RESUME)
    ] = 100_000
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False
    json: Json = False

    def options(self) -> Options:
        """Return how to run."""
        from kpstore.ingest.run import Options

        if self.checkpoint_minutes <= 0:
            raise InvalidError(f"--checkpoint-minutes is {self.checkpoint_minutes}; it must be more than 0")
        return Options(
            workers=default_workers() if self.workers is None else self.workers,
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
                **dict(_pair(text) for text in self.set or ()),
            },
        )


def _pair(text: str) -> tuple[str, Any]:
    """Return ``"model_complexity=2"`` as name and value; what is not JSON is text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InvalidError(f"--set {text!r}: use NAME=VALUE, for example --set model_complexity=1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of :class:`Settings`, which it gets as its argument ``settings``."""
    hints = get_type_hints(Settings, include_extras=True)
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name]) for f in fields(Settings)]

    def wrapper(**given: Any) -> None:
        settings = Settings(**{field.name: given.pop(field.name) for field in fields(Settings)})
        command(**given, settings=settings)

    parameters = [*own, *shared]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper


NewStore = Annotated[
    str, typer.Argument(metavar="STORE", help="Directory of the store, made if it is not there.", show_default=False)
]


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --workers 4\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --splits train dev --max-videos-per-split 100\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --dry-run""",
)
@takes_settings
def phoenix(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Folder of PHOENIX-2014-T.", show_default=False)],
    store: NewStore,
    settings: Settings,
) -> None:
    """Extract from RWTH-PHOENIX-Weather 2014 T. Stop it at any time; the same command goes on."""
    from kpstore.sources.phoenix import PhoenixSource

    source = PhoenixSource(root, split_names(settings.splits), settings.max_videos_per_split)
    ingest(source, store, settings)


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest videos CLIPS clips.kps\n
kpstore ingest videos CLIPS clips.kps --mode video --workers 8""",
)
@takes_settings
def videos(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of videos.", show_default=False)],
    store: NewStore,
    settings: Settings,
) -> None:
    """Extract from video files and folders of pictures; folders called train, dev, test and the like are splits."""
    from kpstore.sources.videos import VideosSource

    source = VideosSource(root, split_names(settings.splits), settings.max_videos_per_split)
    ingest(source, store, settings)


def ingest(source: Source, store: str, settings: Settings) -> None:
    """Run an ingest, or say what it would do, and render how it went."""
    from kpstore.ingest.estimate import estimate
    from kpstore.ingest.run import plan_ingest, run_ingest

    from .watcher import make_watcher

    extractor, options = settings.extractor(), settings.options()
    if settings.dry_run:
        plan = plan_ingest(source, store, extractor, options)
        expected = estimate(plan, extractor, workers=options.n_workers)
        render.print_json(expected.to_json()) if settings.json else print_estimate(expected)
        return
    with make_watcher() as watcher:
        report = run_ingest(source, store, extractor, options, observer=watcher)
    render.print_json(report.to_json()) if settings.json else print_report(report, store)
    if report.interrupted:
        committed = report.videos_done + report.videos_failed + report.videos_before
        again = "run it again without --overwrite" if settings.overwrite else "run the same command again"
        typer.echo(f"interrupted: {committed} of {report.videos} videos are committed; {again} to go on", err=True)
        raise typer.Exit(130)
    if report.failures:
        raise typer.Exit(1)


def print_estimate(expected: Estimate) -> None:
    """Print a plan."""
    rows = [
        (render.split_name(name), *map(render.number, (s.videos, s.new, s.done, s.to_do, s.frames)))
        for name, s in expected.splits.items()
    ]
    render.print_table(("split", ">videos", ">new", ">done", ">to do", ">frames to do"), rows)
    typer.echo(
        f"\n{expected.feature}: {render.number(expected.frames)} frames in {expected.tasks} tasks, about "
        f"{render.size(expected.size_bytes)} and {render.duration(expected.seconds)} with "
        f"{render.count(expected.workers, 'worker')}"
    )
    if expected.overwritten:
        typer.echo(f"{expected.overwritten} videos that are there would be extracted again")
    _print_notes(expected.problems)
    typer.echo("nothing was done (--dry-run)")


def print_report(report: Report, store: str) -> None:
    """Print how an ingest went."""
    before = f", {render.number(report.videos_before)} were there already" if report.videos_before else ""
    failed = f", {render.number(report.videos_failed)} failed" if report.videos_failed else ""
    if report.frames == 0 and not report.interrupted:
        again = ", some with failures (--retry-failed does those again)" if report.failures else ""
        typer.echo(
            f"{report.feature}: nothing to do, all {render.number(report.videos)} videos were done before{again}"
        )
    else:
        typer.echo(
            f"{report.feature}: {render.count(report.videos_done, 'video')} done{failed}{before}; "
            f"{render.number(report.frames)} frames, {render.number(report.frames_failed)} of them failed, in "
            f"{render.duration(report.seconds)} ({report.frames_per_second:.1f} frames/s, "
            f"{render.count(report.workers, 'worker')})"
        )
    _print_notes(report.notes)
    if report.failures:
        typer.echo(f"{render.count(len(report.failures), 'failure')} in {store} (--retry-failed tries them again):")
        for line in render.failure_lines(report.failures, f"kpstore info {store} --detailed"):
            typer.echo(line)
    typer.echo(f"version {report.snapshot} of {store}")


def _print_notes(notes: Any) -> None:
    if notes:
        typer.echo(f"{len(notes)} things were passed over:")
        for line in notes[: render.SHOWN_FAILURES]:
            typer.echo(f"  {line}")
        if len(notes) > render.SHOWN_FAILURES:
            typer.echo(f"  … and {len(notes) - render.SHOWN_FAILURES} more: --dry-run --json lists them all")
