"""Commands about whole stores: ``merge`` and ``convert`` make one of others, ``verify`` looks whether one is sound.

``repair`` has what is damaged made again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import At, Json, StoreArgument
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.inspect.against_source import SourceComparison
    from kpstore.store.chunk_checks import Problem, Verification
    from kpstore.store.repair import Repair


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.command(
        epilog="Examples:\n\nkpstore merge train.kps dev.kps test.kps phoenix.kps\n\n"
        "kpstore merge train.pkl dev.pkl phoenix.kps --on-conflict first"
    )(merge)
    parent.command(
        epilog="Examples:\n\nkpstore convert phoenix.kps phoenix.h5\n\nkpstore convert phoenix.h5 phoenix.kps --history"
    )(convert)
    parent.command(
        "verify",
        epilog="Examples:\n\nkpstore verify phoenix.kps\n\nkpstore verify phoenix.kps --all\n\n"
        "kpstore verify phoenix.kps --source PHOENIX-2014-T",
    )(verify_store)
    parent.command(
        "repair",
        epilog="Examples:\n\nkpstore repair phoenix.kps --dry-run\n\nkpstore repair phoenix.kps",
    )(repair_store)


def merge(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="A B … OUT", help="Stores, or files that can be imported; last the new store."
        ),
    ],
    on_conflict: Annotated[
        Literal["error", "first", "last"],
        typer.Option(
            help="Where two hold other rows of one video: stop, or take the first or the last."
        ),
    ] = "error",
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Also features of one name that were made in different ways."),
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the data set; that of A by default.")] = "",
    json: Json = False,
) -> None:
    """Put several stores together into a new one. Videos that several hold get the features of all of them."""
    from kpstore.interop.merge import merge as merge_stores

    if len(places) < 3:
        raise InvalidError(
            "merge needs two sources or more and a place for the new store: kpstore merge A B OUT"
        )
    with frames_bar("merging") as on_progress:
        report = merge_stores(
            places[:-1],
            places[-1],
            on_conflict=on_conflict,
            mixed=mixed,
            name=name,
            on_progress=on_progress,
        )
    if json:
        render.print_json(report.to_json())
        return
    typer.echo(
        f"{report.location}: {', '.join(report.features) or 'no features'}; "
        f"{render.count(report.videos, 'video')}, {render.count(report.frames, 'frame')}"
    )
    for note in report.notes[: render.SHOWN_FAILURES]:
        typer.echo(f"  {note}")
    if len(report.notes) > render.SHOWN_FAILURES:
        typer.echo(f"  … and {len(report.notes) - render.SHOWN_FAILURES} more (--json lists all)")


def convert(
    source: StoreArgument,
    target: Annotated[
        str,
        typer.Argument(
            metavar="NEW", help="The copy: a file NAME.h5, or a directory.", show_default=False
        ),
    ],
    at: At = None,
    history: Annotated[
        bool,
        typer.Option(
            "--history", help="All versions and their tags; without it, one version alone."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Copy a store to another backend, or in the same one to leave its old versions behind."""
    from dataclasses import asdict

    from rich.progress import Progress

    from kpstore.interop.convert import convert as convert_store

    with Progress(
        console=render.console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task("versions", total=None)
        made = convert_store(
            source,
            target,
            at=at,
            with_history=history,
            on_version=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if json:
        render.print_json(asdict(made))
        return
    typer.echo(
        f"{made.location}: {render.count(made.versions, 'version')}, the newest is {made.snapshot}"
    )
    if made.notes:
        typer.echo("notes:")
        for note in made.notes:
            typer.echo(f"  {note}")


def verify_store(
    store: StoreArgument,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="The data set: a folder of PHOENIX-2014-T, videos or mouth crops, or lists (.yml).",
            show_default=False,
        ),
    ] = None,
    at: At = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Look at every version, tag and branch, and at what the store says of them.",
        ),
    ] = False,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="How many problems to list.")] = 20,
    json: Json = False,
) -> None:
    """Read all of a version and check that it is sound.

    With --source, compare it with what the data set holds.

    Exit code 1 if anything is wrong, missing or extra. 'kpstore repair' has what is damaged made
    again.
    """
    import kpstore
    from kpstore.inspect.verify import verify, verify_all

    if every and at is not None:
        raise InvalidError(f"--all looks at every version, --at {at} at one; choose one of them")
    with frames_bar("checking") as on_progress:
        if every:
            found = verify_all(store, on_rows=on_progress)
        else:
            found = verify(kpstore.open(store, at, cache="off"), on_rows=on_progress)
    compared = (
        _compared_with(kpstore.open(store, at, cache="off"), source) if source is not None else None
    )
    if json:
        told = {**found.to_json(), **({} if compared is None else {"source": compared.to_json()})}
        render.print_json(told)
    else:
        print_verification(found, limit)
        if compared is not None:
            print_coverage_of_source(compared, limit)
    if found.problems or (compared is not None and compared.differs):
        raise typer.Exit(1)


def repair_store(
    store: StoreArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many ids and problems to list.")
    ] = 20,
    json: Json = False,
) -> None:
    """Make pending again what is damaged in the newest version, so that an ingest makes just that anew.

    Exit code 1 if something is damaged that cannot be mended.
    """
    from kpstore.store.repair import repair

    with frames_bar("reading") as on_progress:
        done = repair(store, dry_run=dry_run, on_rows=on_progress)
    if json:
        render.print_json(done.to_json())
    else:
        print_repair(done, limit)
    if done.left:
        raise typer.Exit(1)


def print_repair(done: Repair, limit: int) -> None:
    """Print what was damaged, what became of it, and how to go on."""
    if not done.problems:
        typer.echo(f"{done.location} at {done.snapshot}: nothing is damaged, nothing to repair")
        return
    render.heading("damaged")
    for problem in done.problems[:limit]:
        typer.echo(f"{problem.array}: {problem.where}: {problem.what}")
    if len(done.problems) > limit:
        typer.echo(f"… and {len(done.problems) - limit} more (--limit, --json)")
    for feature in done.features:
        if feature.videos:
            verb = "would be" if done.dry_run else "are"
            held = f"{render.count(len(feature.videos), 'video')}, {render.count(feature.frames, 'frame')}"
            typer.echo(f"{feature.feature}: {held} {verb} pending again; {feature.again}")
            _print_some(feature.videos, limit)
        if feature.rebuilt:
            typer.echo(
                f"{feature.feature}: {', '.join(feature.rebuilt)} {_done(done)} from what is sound"
            )
    if done.labels:
        typer.echo(f"labels: {', '.join(done.labels)} {_done(done)}")
    for line in done.left:
        typer.echo(f"left: {line}")
    if done.made:
        typer.echo(
            f"version {done.made} holds no damage{' but what is left' if done.left else ''}; "
            "earlier ones keep it"
        )


def _done(done: Repair) -> str:
    return "would be rebuilt" if done.dry_run else "rebuilt"


def _compared_with(store: Store, root: Path) -> SourceComparison:
    from kpstore.inspect.against_source import compare_with_source, find_source

    return compare_with_source(store, find_source(root))


def print_verification(found: Verification, limit: int) -> None:
    """Print what was checked and found."""
    versions = "" if found.versions == 1 else f"{render.count(found.versions, 'version')}, "
    typer.echo(
        f"{found.location} at {found.snapshot}: {versions}{render.count(found.arrays, 'array')}, "
        f"{render.size(found.size_bytes)} read, "
        + (render.count(len(found.problems), "problem") if found.problems else "sound")
    )
    for heading, problems in (("problems", found.problems), ("worth a look", found.notes)):
        if problems:
            render.heading(heading)
            rows = [
                (p.array, p.what, render.number(p.count), _place(found, p))
                for p in problems[:limit]
            ]
            render.print_table(("array", "what", ">how often", "where, or first at"), rows)
            if len(problems) > limit:
                typer.echo(f"… and {len(problems) - limit} more (--limit, --json)")
    if found.lacks:
        typer.echo(f"note: {found.lacks}")


def _place(found: Verification, problem: Problem) -> str:
    """Return where a problem is, and in which versions if not in the newest."""
    if not problem.versions or found.snapshot in problem.versions:
        return problem.where
    first, *others = problem.versions
    return f"{problem.where}; version {first}" + (f" and {len(others)} more" if others else "")


def print_coverage_of_source(found: SourceComparison, limit: int) -> None:
    """Print a store beside its data set."""
    render.heading(f"beside {found.source}")
    rows = [
        (
            render.split_name(name),
            *map(render.number, (s.source_videos, s.store_videos, s.source_frames, s.store_frames)),
            *map(render.number, (len(s.missing), len(s.extra), len(s.other_length))),
        )
        for name, s in found.splits.items()
    ]
    columns = (
        ">videos there",
        ">in store",
        ">frames there",
        ">in store",
        ">missing",
        ">extra",
        ">other length",
    )
    render.print_table(("split", *columns), rows)
    for name, split in found.splits.items():
        shown = render.split_name(name)
        for what, ids in (("missing", split.missing), ("extra", split.extra)):
            _print_ids(f"{shown}: {what}", ids, limit)
        lengths = [
            f"{v}: {there} frames there, {here} in the store"
            for v, (there, here) in split.other_length.items()
        ]
        _print_ids(f"{shown}: of another length", lengths, limit)
        told: dict[str, list[str]] = {}
        for feature in dict.fromkeys((*split.pending, *split.failed)):
            pending, failed = split.pending.get(feature, 0), split.failed.get(feature, 0)
            parts = [f"{render.count(pending, 'video')} pending"] if pending else []
            parts += [f"{render.count(failed, 'frame')} failed"] if failed else []
            told.setdefault(", ".join(parts), []).append(feature)
        for text, features in told.items():
            typer.echo(f"{shown}: {render.listed(features)}: {text}")
    _print_ids("in another split", found.other_split, limit)
    _print_ids("the data set itself", found.problems, limit)
    if not found.differs:
        typer.echo("the store holds all of it")


def _print_ids(what: str, ids: Sequence[str], limit: int) -> None:
    if ids:
        typer.echo(f"{what}: {render.number(len(ids))}")
        _print_some(ids, limit)


def _print_some(ids: Sequence[str], limit: int) -> None:
    for video_id in ids[:limit]:
        typer.echo(f"  {video_id}")
    if len(ids) > limit:
        typer.echo(f"  … and {render.number(len(ids) - limit)} more (--limit, --json)")
