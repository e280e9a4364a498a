"""``kpstore ingest``: extract features from a data set into a store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import ListCommand, Splits, StoreArgument, split_names
from .commands import takes
from .ingest_settings import FaceSettings, LipSettings, RecipeSettings, RunSettings, Settings

if TYPE_CHECKING:
    from kpstore.extractors.base import AnyExtractor
    from kpstore.ingest.estimate import Estimate
    from kpstore.ingest.report import IngestReport
    from kpstore.sources.base import Source

app = typer.Typer(
    no_args_is_help=True, help="Extract features from a data set into a store; again to go on."
)


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.add_typer(app, name="ingest")


NewStore = Annotated[
    str,
    typer.Argument(
        metavar="STORE", help="Directory of the store, made if it is not there.", show_default=False
    ),
]


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --workers 4\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --split train dev --max-videos-per-split 100\n
kpstore ingest phoenix PHOENIX-2014-T phoenix.kps --dry-run""",
)
@takes(settings=Settings)
def phoenix(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder of PHOENIX-2014-T.", show_default=False)
    ],
    store: NewStore,
    settings: Settings,
) -> None:
    """Extract from RWTH-PHOENIX-Weather 2014 T. Stop it at any time; the same command goes on."""
    from kpstore.sources.phoenix import PhoenixSource

    source = PhoenixSource(root, split_names(settings.splits), settings.max_videos_per_split)
    ingest(source, store, settings, settings.extractor())


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest videos CLIPS clips.kps\n
kpstore ingest videos CLIPS clips.kps --mode video --workers 8""",
)
@takes(settings=Settings)
def videos(
    root: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of videos.", show_default=False)
    ],
    store: NewStore,
    settings: Settings,
) -> None:
    """Extract from video files and folders of pictures.

    Folders called train, dev, test and the like are splits.
    """
    from kpstore.sources.videos import VideosSource

    source = VideosSource(root, split_names(settings.splits), settings.max_videos_per_split)
    ingest(source, store, settings, settings.extractor())


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest faces --video-dir persons --face-dir fronts faces.kps\n
kpstore ingest faces --video-dir persons --face-dir fronts faces.kps --dinov2-model dinov2_vits14 --weights VITS14\n
kpstore ingest faces --video-dir persons --face-dir fronts faces.kps --formula json --gpus 2""",
)
@takes(settings=FaceSettings)
def faces(
    store: NewStore,
    video_dir: Annotated[
        Path,
        typer.Option(
            "--video-dir", metavar="DIR", help="A folder of pictures, or a video, of each person."
        ),
    ],
    face_dir: Annotated[
        Path,
        typer.Option("--face-dir", metavar="DIR", help="A frontal picture PERSON.jpg of each."),
    ],
    settings: FaceSettings,
    base_dir: Annotated[
        Path | None,
        typer.Option(
            "--base-dir",
            metavar="DIR",
            help="What stored paths are relative to; by default the store's folder, if it holds all pictures.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Extract faces of persons: landmarks, angles from a frontal picture, DINOv2."""
    from kpstore.sources.faces import FacesSource

    base = Path(store).absolute().parent if base_dir is None else base_dir
    folders = [Path(os.path.abspath(folder)) for folder in (video_dir, face_dir)]
    if base_dir is None and not all(folder.is_relative_to(base) for folder in folders):
        base = Path(os.path.commonpath(folders))
    source = FacesSource(
        video_dir, face_dir, base, split_names(settings.splits), settings.max_videos_per_split
    )
    ingest(source, store, settings, settings.extractor())


@app.command(
    cls=ListCommand,
    epilog="""Examples:\n
kpstore ingest lips --conf configs/LRS2-IIANet.yml --split all --weights resnet18.pth.tar lips.kps --device cuda:0\n
kpstore ingest lips --npz-dir mouths --weights resnet18.pth.tar lips.kps""",
)
@takes(settings=LipSettings)
def lips(
    store: NewStore,
    settings: LipSettings,
    conf: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="Configuration that names the lists of utterances."),
    ] = None,
    npz_dir: Annotated[
        Path | None,
        typer.Option("--npz-dir", metavar="DIR", help="A folder of npz files, instead of lists."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder that holds all listed files; by default the deepest that does.",
        ),
    ] = None,
    split: Splits = None,
) -> None:
    """Extract embeddings of mouth crops, npz files that a lip-reading configuration lists, by its ResNet18."""
    from kpstore.sources.lips import LipsSource

    source = LipsSource(
        _lists(conf, npz_dir),
        root,
        None if split == ["all"] else split_names(split),
        settings.max_videos_per_split,
    )
    ingest(source, store, settings, settings.extractor())


def _lists(conf: Path | None, npz_dir: Path | None) -> Path:
    """Return the configuration or the folder of npz files, whichever was given."""
    lists = conf or npz_dir
    if lists is None or (conf and npz_dir):
        raise InvalidError(
            "name the utterances, in one of two ways: --conf CONFIG.yml, or --npz-dir DIR"
        )
    if conf and conf.is_dir():
        raise InvalidError(
            f"--conf {conf} is a folder; give a configuration (.yml), or all of its npz files: "
            "--npz-dir"
        )
    if npz_dir and not npz_dir.is_dir():
        found = "is a file; is it meant for --conf?" if npz_dir.exists() else "does not exist"
        raise InvalidError(f"no folder of npz files at {npz_dir}: it {found}")
    return lists


@app.command(
    epilog="""Examples:\n
kpstore ingest features phoenix.kps --extractor dinov2 --root PHOENIX-2014-T --weights VITB14\n
kpstore ingest features clips.kps --extractor holistic --root clips""",
)
@takes(settings=RecipeSettings)
def features(
    store: StoreArgument,
    settings: RecipeSettings,
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="What the store's paths are relative to; by default the store's own folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Extract further features from the videos that a store holds already."""
    import kpstore
    from kpstore.sources.listed import ListedSource
    from kpstore.store.records import Records

    opened = kpstore.open(store)
    place = Path(store).absolute().parent if root is None else root
    source = ListedSource(place, Records(opened).all(), opened.name)
    ingest(source, store, settings, settings.extractor())


def ingest(source: Source, store: str, settings: RunSettings, extractor: AnyExtractor) -> None:
    """Run an ingest, or say what it would do, and render how it went."""
    from kpstore.ingest.estimate import estimate
    from kpstore.ingest.run import plan_ingest, run_ingest

    from .watcher import make_watcher

    options = settings.options()
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
        again = (
            "run it again without --overwrite"
            if settings.overwrite
            else "run the same command again"
        )
        typer.echo(
            f"interrupted: {committed} of {report.videos} videos are committed; {again} to go on",
            err=True,
        )
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
        f"\n{expected.feature}: {render.number(expected.frames)} frames in {expected.tasks} tasks, "
        f"about {render.size(expected.size_bytes)} and {render.duration(expected.seconds)} with "
        f"{render.count(max(expected.workers, 1), 'worker')}"
    )
    if expected.overwritten:
        typer.echo(f"{expected.overwritten} videos that are there would be extracted again")
    _print_notes(expected.problems)
    typer.echo("nothing was done (--dry-run)")


def print_report(report: IngestReport, store: str) -> None:
    """Print how an ingest went."""
    before = (
        f", {render.number(report.videos_before)} were there already"
        if report.videos_before
        else ""
    )
    failed = f", {render.number(report.videos_failed)} failed" if report.videos_failed else ""
    if report.frames == 0 and not report.interrupted:
        again = ", some with failures (--retry-failed does those again)" if report.failures else ""
        typer.echo(
            f"{report.feature}: nothing to do, all {render.number(report.videos)} videos were done "
            f"before{again}"
        )
    else:
        typer.echo(
            f"{report.feature}: {render.count(report.videos_done, 'video')} done{failed}{before}; "
            f"{render.number(report.frames)} frames, {render.number(report.frames_failed)} of them "
            f"failed, in {render.duration(report.seconds)} ({report.frames_per_second:.1f} "
            f"frames/s, {render.count(report.workers, 'worker')})"
        )
    _print_notes(report.notes)
    if report.failures:
        typer.echo(
            f"{render.count(len(report.failures), 'failure')} in {store} (--retry-failed tries "
            "them again):"
        )
        for line in render.failure_lines(report.failures, f"kpstore info {store} --detailed"):
            typer.echo(line)
    typer.echo(f"version {report.snapshot} of {store}")


def _print_notes(notes: Any) -> None:
    if notes:
        typer.echo(
            f"{render.count(len(notes), 'thing')} {'was' if len(notes) == 1 else 'were'} passed "
            "over:"
        )
        for line in notes[: render.SHOWN_FAILURES]:
            typer.echo(f"  {line}")
        if len(notes) > render.SHOWN_FAILURES:
            typer.echo(
                f"  … and {len(notes) - render.SHOWN_FAILURES} more: --dry-run --json lists them "
                "all"
            )
