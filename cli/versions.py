"""Commands about versions: ``tag``, ``rollback``, ``diff``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import At, Json, StoreArgument

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.store.compare import VersionDiff


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.command(
        epilog="Examples:\n\nkpstore tag phoenix.kps\n\nkpstore tag phoenix.kps v1.0\n\n"
        "kpstore tag phoenix.kps before-hands --at 2026-01-31T12:00"
    )(tag)
    parent.command(epilog="Example:\n\nkpstore rollback phoenix.kps --to v1.0")(rollback)
    parent.command(epilog="Example:\n\nkpstore diff phoenix.kps v1.0 main")(diff)


def tag(
    store: StoreArgument,
    name: Annotated[str | None, typer.Argument(help="The tag; without it, all are listed.")] = None,
    at: At = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the tag; its name is not given out again.")] = False,
    json: Json = False,
) -> None:
    """Name a version for good, or list the names."""
    import kpstore

    if name is None and (delete or at is not None):
        raise InvalidError("which tag? --delete and --at need a NAME: kpstore tag STORE NAME")
    if name is None:
        _list_tags(kpstore.open(store), json)
        return
    opened = kpstore.open(store, at, mode="a")
    if delete:
        opened.delete_tag(name)
        typer.echo(f"tag {name} removed; the version it named stays in the log")
    else:
        opened.tag(name)
        typer.echo(f"tag {name} names version {opened.snapshot}")


def _list_tags(store: Store, json: bool) -> None:
    from kpstore.store.summary import read_tags

    tags = read_tags(store)
    if json:
        render.print_json({name: entry.to_json() for name, entry in tags.items()})
    elif tags:
        rows = [(n, e.commit.id, render.local_time(e.commit.time), e.commit.message) for n, e in tags.items()]
        render.print_table(("tag", "version", "made", "message"), rows)
    else:
        typer.echo(f"no tags yet; kpstore tag {store.location} NAME makes one")


def rollback(
    store: StoreArgument,
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="A tag, snapshot id or time to go back to.")],
) -> None:
    """Make an earlier version the newest; what came after it stays on a branch."""
    import kpstore

    opened = kpstore.open(store, mode="a")
    kept = opened.rollback(to)
    typer.echo(f"version {opened.at().snapshot} is the newest again; what was there until now is kept as {kept}")
    typer.echo(f"to undo: kpstore rollback {store} --to {kept}")


def diff(
    store: StoreArgument,
    old: Annotated[str, typer.Argument(metavar="V1", help="Tag, branch, snapshot id or time.", show_default=False)],
    new: Annotated[str, typer.Argument(metavar="V2", help="Another one.", show_default=False)],
    json: Json = False,
) -> None:
    """Show what differs between two versions; exit code 1 if anything does."""
    import kpstore

    changes = kpstore.diff(kpstore.open(store, old), kpstore.open(store, new))
    render.print_json(asdict(changes)) if json else print_diff(changes)
    if changes:
        raise typer.Exit(1)


def print_diff(changes: VersionDiff) -> None:
    """Print what differs, video by video."""
    if not changes:
        typer.echo("no difference")
    for what, names in (
        ("videos added", changes.videos_added),
        ("videos removed", changes.videos_removed),
        ("videos changed", changes.videos_changed),
        ("features added", changes.features_added),
        ("features removed", changes.features_removed),
    ):
        _print_names(what, names)
    for name, change in changes.features_changed.items():
        if change.provenance_changed:
            typer.echo(f"{name}: made in another way")
        _print_names(f"{name}: videos changed", change.videos)


def _print_names(what: str, names: tuple[str, ...]) -> None:
    if names:
        typer.echo(f"{what}: {len(names)}")
        for name in names[: render.SHOWN_FAILURES]:
            typer.echo(f"  {name}")
        if len(names) > render.SHOWN_FAILURES:
            typer.echo(f"  … and {len(names) - render.SHOWN_FAILURES} more: --json lists them all")
