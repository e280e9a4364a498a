"""Commands about whole stores: ``merge``, ``convert``, ``verify`` and ``repair``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import At, Json, StoreArgument
from .watcher import frames_bar, total_bar

if TYPE_CHECKING:
    from kpstore.inspect.against_source import SourceComparison
    from kpstore.interop.transfer import ImportReport
    from kpstore.store.chunk_checks import Problem, Verification
    from kpstore.store.repair import Repair

_MORE = "--limit, --json"


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.command(
        epilog="Examples:\n\nkpstore merge train.kps dev.kps test.kps phoenix.kps\n\n"
        "kpstore merge train.pkl dev.pkl phoenix.kps --on-conflict first"
    )(merge)
    parent.command(
        epilog="Examples:\n\nkpstore convert phoenix.kps phoenix.h5\n\n"
        "kpstore convert phoenix.h5 phoenix.kps --history"
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
        typer.Argument(metavar="A B … OUT", help="Stores or files to import, then the new store."),
    ],
    on_conflict: Annotated[
        Literal["error", "first", "last"],
        typer.Option(
            help="If rows of a video differ: stop, or take those of the first or the last."
        ),
    ] = "error",
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Merge features even if they were made in different ways."),
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the data set; by default, that of A.")] = "",
    json: Json = False,
) -> None:
    """Merge several stores into a new one.

    A video that is in several stores gets the features of all of them.
    """
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
    render.show(report, json, _print_merged)


def _print_merged(report: ImportReport) -> None:
    render.say(
        f"{report.location}: {', '.join(report.features) or 'no features'}; "
        f"{render.count(report.videos, 'video')}, {render.count(report.frames, 'frame')}"
    )
    render.print_some(report.notes)


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
        typer.Option("--history", help="Copy all versions and their tags, not only one version."),
    ] = False,
    json: Json = False,
) -> None:
    """Copy a store to another backend, or to the same one without its old versions."""
    from dataclasses import asdict

    from kpstore.interop.convert import convert as convert_store

    with total_bar("versions") as on_version:
        made = convert_store(source, target, at=at, with_history=history, on_version=on_version)
    if json:
        render.print_json(asdict(made))
        return
    render.say(
        f"{made.location}: {render.count(made.versions, 'version')}, the newest is {made.snapshot}"
    )
    if made.notes:
        render.say("notes:")
        render.print_some(made.notes, len(made.notes))


def verify_store(
    store: StoreArgument,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="Compare with this data set: a folder of PHOENIX-2014-T, videos or mouth crops, "
            "or lists (.yml).",
            show_default=False,
        ),
    ] = None,
    at: At = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Check every version, tag and branch, and the store's records of them.",
        ),
    ] = False,
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Problems to list at most.")] = 20,
    json: Json = False,
) -> None:
    """Read a whole version and check that it is sound.

    With --source, also compare it with the data set. Exit code 1 if anything is damaged, missing or
    extra; use 'kpstore repair' to extract damaged rows again.
    """
    import kpstore
    from kpstore.inspect.verify import verify, verify_all

    if every and at is not None:
        raise InvalidError(f"--all checks every version, --at {at} only one; choose one of them")
    with frames_bar("checking") as on_progress:
        if every:
            found = verify_all(store, on_rows=on_progress)
        else:
            found = verify(kpstore.open(store, at, cache="off"), on_rows=on_progress)
    compared = None
    if source is not None:
        from kpstore.inspect.against_source import compare_with_source, find_source

        compared = compare_with_source(kpstore.open(store, at, cache="off"), find_source(source))
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
        bool, typer.Option("--dry-run", help="Show what would be done, and write nothing.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of ids and problems to list.")
    ] = 20,
    json: Json = False,
) -> None:
    """Make damaged videos of the newest version pending, so that an ingest extracts them again.

    Exit code 1 if anything is damaged beyond repair.
    """
    from kpstore.store.repair import repair

    with frames_bar("reading") as on_progress:
        done = repair(store, dry_run=dry_run, on_rows=on_progress)
    render.show(done, json, lambda found: print_repair(found, limit))
    if done.left:
        raise typer.Exit(1)


def print_repair(done: Repair, limit: int) -> None:
    """Print what was damaged, what was done about it, and what to do next."""
    if not done.problems:
        render.say(f"{done.location} at {done.snapshot}: nothing is damaged, nothing to repair")
        return
    render.heading("damaged")
    problems = [f"{one.array}: {one.where}: {one.what}" for one in done.problems]
    render.print_some(problems, limit, _MORE)
    for feature in done.features:
        if feature.videos:
            verb = "would be" if done.dry_run else "are"
            videos, frames = len(feature.videos), feature.frames
            held = f"{render.count(videos, 'video')}, {render.count(frames, 'frame')}"
            render.say(f"{feature.feature}: {held} {verb} pending again; {feature.again}")
            render.print_some(feature.videos, limit, _MORE)
        if feature.rebuilt:
            render.say(
                f"{feature.feature}: {', '.join(feature.rebuilt)} {_done(done)} from sound rows"
            )
    if done.labels:
        render.say(f"labels: {', '.join(done.labels)} {_done(done)}")
    for line in done.left:
        render.say(f"not repaired: {line}")
    if done.made:
        render.say(
            f"version {done.made} holds no damage{' except what is left' if done.left else ''}; "
            "earlier versions keep theirs"
        )


def _done(done: Repair) -> str:
    return "would be rebuilt" if done.dry_run else "rebuilt"


def print_verification(found: Verification, limit: int) -> None:
    """Print what was checked, and the problems."""
    versions = "" if found.versions == 1 else f"{render.count(found.versions, 'version')}, "
    render.say(
        f"{found.location} at {found.snapshot}: {versions}{render.count(found.arrays, 'array')}, "
        f"{render.size(found.size_bytes)} read, "
        + (render.count(len(found.problems), "problem") if found.problems else "sound")
    )
    for heading, problems in (("problems", found.problems), ("worth a look", found.notes)):
        if problems:
            render.heading(heading)
            rows = [(p.array, p.what, p.count, _place(found, p)) for p in problems[:limit]]
            render.print_table(("array", "what", ">how often", "where, or first at"), rows)
            if len(problems) > limit:
                render.say(f"… and {len(problems) - limit} more ({_MORE})")
    if found.lacks:
        render.say(f"note: {found.lacks}")


def _place(found: Verification, problem: Problem) -> str:
    """Return where a problem is, and in which versions if not in the newest."""
    if not problem.versions or found.snapshot in problem.versions:
        return problem.where
    first, *others = problem.versions
    return f"{problem.where}; version {first}" + (f" and {len(others)} more" if others else "")


def print_coverage_of_source(found: SourceComparison, limit: int) -> None:
    """Print how a store differs from its data set."""
    render.heading(f"compared with {found.source}")
    columns = ("split", ">videos there", ">in store", ">frames there", ">in store", ">missing")
    rows = []
    for name, s in found.splits.items():
        counts = (s.source_videos, s.store_videos, s.source_frames, s.store_frames)
        differing = (len(s.missing), len(s.extra), len(s.other_length))
        rows.append((render.split_name(name), *counts, *differing))
    render.print_table((*columns, ">extra", ">other length"), rows)
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
            render.say(f"{shown}: {render.listed(features)}: {text}")
    _print_ids("in another split", found.other_split, limit)
    _print_ids("the data set itself", found.problems, limit)
    _print_ids("removed from the store, and not compared", found.removed, limit)
    if not found.differs:
        render.say(f"the store holds all of {'the rest' if found.removed else 'it'}")


def _print_ids(what: str, ids: Sequence[str], limit: int) -> None:
    if ids:
        render.say(f"{what}: {len(ids):,}")
        render.print_some(ids, limit, _MORE)
