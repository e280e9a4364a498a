"""``kpstore ingest``: a command for each source, which extracts from it into a store."""

from __future__ import annotations

import argparse
import inspect
import json as json_text
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperGroup

from kpstore import plugins
from kpstore.errors import InvalidError, one_line
from kpstore.options import WHAT, Option

from . import render
from .arguments import Json, StoreArgument
from .commands import LazyCommand, loaded, one_command, option_parameters, optional, takes

if TYPE_CHECKING:
    from kpstore.extractors.base import AnyExtractor
    from kpstore.ingest.estimate import Estimate
    from kpstore.ingest.options import Options
    from kpstore.ingest.report import IngestReport
    from kpstore.sources.base import Source

SOURCES: plugins.Group = "kpstore.sources"
RECIPES: plugins.Group = "kpstore.extractors"

NewStore = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The store, a directory or a file NAME.h5; created if it does not exist.",
        show_default=False,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any other option of the recipe.", rich_help_panel=WHAT
    ),
]


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(
        cls=_IngestGroup,
        no_args_is_help=True,
        help="Extract features from a data set into a store; repeat the command to continue.",
    )
    app.callback()(lambda: None)
    parent.add_typer(app, name="ingest")


class _IngestGroup(TyperGroup):
    """Commands made when they are needed, because plug-ins add sources and recipes."""

    def list_commands(self, ctx: object) -> list[str]:
        """Return the sources, and ``features``."""
        return sorted({*plugins.names(SOURCES), "features"})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Keep the words of the command line: the options depend on the recipe that it names."""
        ctx.meta[SOURCES] = args
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of a source."""
        if cmd_name not in self.list_commands(ctx):
            return None
        kind, refusing = _StoredVideos, None
        if cmd_name != "features":
            kind, refusing = loaded(SOURCES, cmd_name)
        if refusing is not None:
            return refusing
        summary = getattr(kind, "summary", None) or (inspect.getdoc(kind) or "").split("\n\n")[0]
        words, examples = ctx.meta.get(SOURCES, ()), getattr(kind, "examples", ())
        return LazyCommand(
            cmd_name,
            summary,
            lambda: one_command(cmd_name, _ingesting(kind, words), summary, examples),
        )


@dataclass(frozen=True)
class _StoredVideos:
    """The videos that a store holds already."""

    summary: ClassVar[str] = "Extract further features from the videos that a store holds already."
    examples: ClassVar[tuple[str, ...]] = (
        "kpstore ingest features phoenix.kps --recipe dinov2 --root PHOENIX-2014-T "
        "--weights VITB14",
        "kpstore ingest features clips.kps --recipe holistic --root clips",
    )

    root: Annotated[
        Path | None,
        Option(
            "Folder that the store's paths are relative to; by default that of the store.", "DIR"
        ),
    ] = None

    def for_store(self, location: str) -> Source:
        import kpstore
        from kpstore.backends.places import folder_of
        from kpstore.sources.listed import ListedSource
        from kpstore.store.records import Records

        opened = kpstore.open(location)
        place = folder_of(location, "--root") if self.root is None else self.root
        return ListedSource(place, Records(opened).all(), opened.name)


def _ingesting(kind: type[Any], words: Sequence[str]) -> Callable[..., None]:
    """Return the command of a source.

    If a source names its recipe, the command has the options of that recipe alone.
    """
    from kpstore.extractors.registry import make_extractor
    from kpstore.ingest.options import Options

    fixed = getattr(kind, "recipe", None)
    options = (
        option_parameters(plugins.load(RECIPES, fixed)) if fixed else _recipe_options(_named(words))
    )

    def run(
        store: NewStore,
        source: Any,
        options: Options,
        given: Set = None,
        dry_run: DryRun = False,
        json: Json = False,
        **chosen: Any,
    ) -> None:
        recipe = chosen.pop("recipe", fixed)
        opened = source.for_store(store) if hasattr(source, "for_store") else source
        pairs = dict(map(_pair, given or ()))
        for name in pairs:
            if fixed is None and chosen.get(name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise InvalidError(
                    f"{name} is set twice, by {option} and by --set; use one of them"
                )
        extractor = make_extractor(recipe, **{**chosen, **pairs})
        if dry_run:
            _plan(opened, store, extractor, options, json)
        else:
            _ingest(opened, store, extractor, options, json)

    if kind is _StoredVideos:
        run.__annotations__["store"] = StoreArgument
    return takes(options, source=kind, options=Options)(run)


def _recipe_options(chosen: str) -> list[inspect.Parameter]:
    """Return the option that names the recipe, and those of all recipes, the chosen one's first.

    Recipes that need a reference picture are left out unless chosen.
    """
    names = plugins.names(RECIPES)
    if chosen and chosen not in names:
        plugins.load(RECIPES, chosen)  # its error lists the names
    note = typer.Option(
        "--recipe",
        "--extractor",
        help=f"How to extract: {', '.join(names)}.",
        rich_help_panel=WHAT,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    recipe = inspect.Parameter(
        "recipe", keyword, default="holistic", annotation=Annotated[str, note]
    )
    found: dict[str, list[tuple[str, inspect.Parameter]]] = {}
    for name in sorted(names, key=lambda name: name != chosen):
        try:
            kind = plugins.load(RECIPES, name)
            offered = option_parameters(kind)
        except Exception as error:  # whatever an outsider's module raises
            if name == chosen:
                raise InvalidError(f"recipe {name!r} cannot be used: {one_line(error)}") from error
            continue
        if name == chosen or not getattr(kind, "needs_reference", False):
            for parameter in offered:
                found.setdefault(parameter.name, []).append((name, parameter))
    parameters = [recipe]
    for made in found.values():
        owners = sorted(name for name, _ in made)
        label = f"Recipe{'s' if len(owners) > 1 else ''} {', '.join(owners)}: "
        parameters.append(optional(made[0][1], label))
    return parameters


def _named(words: Sequence[str]) -> str:
    """Return the recipe that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", "--extractor", dest="recipe", nargs="?")
    return parser.parse_known_args(list(words))[0].recipe or ""


def _pair(text: str) -> tuple[str, Any]:
    """Return ``"model_complexity=2"`` as name and value; what is not JSON is text."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InvalidError(f"--set {text!r}: use NAME=VALUE, for example --set model_complexity=1")
    try:
        return name, json_text.loads(value)
    except ValueError:
        return name, value


def _plan(
    source: Source, store: str, extractor: AnyExtractor, options: Options, json: bool
) -> None:
    """Print what an ingest would do."""
    from kpstore.ingest.estimate import estimate
    from kpstore.ingest.run import plan_ingest

    plan = plan_ingest(source, store, extractor, options)
    expected = estimate(plan, extractor, workers=options.n_workers)
    render.print_json(expected.to_json()) if json else print_estimate(expected)


def _ingest(
    source: Source, store: str, extractor: AnyExtractor, options: Options, json: bool
) -> None:
    """Run an ingest, and print how it went."""
    from kpstore.ingest.run import run_ingest

    from .watcher import make_watcher

    waits = "a frame that hangs is waited for (with --workers 1 or more it is given up)"
    with make_watcher(waits if options.in_this_process else "") as watcher:
        report = run_ingest(source, store, extractor, options, observer=watcher)
    render.print_json(report.to_json()) if json else print_report(report, store)
    if report.interrupted:
        committed = report.videos_done + report.videos_failed + report.videos_before
        again = (
            "run it again without --overwrite"
            if options.overwrite
            else "run the same command again"
        )
        render.say(
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
    render.say()
    render.say(
        f"{expected.feature}: {render.number(expected.frames)} frames in {expected.tasks} tasks, "
        f"about {render.size(expected.size_bytes)} and {render.duration(expected.seconds)} with "
        f"{render.count(max(expected.workers, 1), 'worker')}"
    )
    if expected.overwritten:
        render.say(f"{expected.overwritten} videos that are there would be extracted again")
    _print_notes(expected.problems)
    render.say("nothing was done (--dry-run)")


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
        render.say(
            f"{report.feature}: nothing to do, all {render.number(report.videos)} videos were done "
            f"before{again}"
        )
    else:
        render.say(
            f"{report.feature}: {render.count(report.videos_done, 'video')} done{failed}{before}; "
            f"{render.number(report.frames)} frames, {render.number(report.frames_failed)} of them "
            f"failed, in {render.duration(report.seconds)} ({report.frames_per_second:.1f} "
            f"frames/s, {render.count(report.workers, 'worker')})"
        )
    _print_notes(report.notes)
    if report.failures:
        render.say(
            f"{render.count(len(report.failures), 'failure')} in {store} (--retry-failed tries "
            "them again):"
        )
        for line in render.failure_lines(report.failures, f"kpstore info {store} --detailed"):
            render.say(line)
    render.say(f"version {report.snapshot} of {store}")


def _print_notes(notes: Sequence[str]) -> None:
    if notes:
        render.say(f"{render.count(len(notes), 'note')}:")
        render.print_some(notes, more="--dry-run --json")
