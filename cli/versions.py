"""Commands about versions: ``tag``, ``branch``, ``rollback``, ``gc``, ``diff``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kpstore.errors import InvalidError, NotFoundError

from . import render
from .arguments import At, Json, StoreArgument, duration_of
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.inspect.compare import VersionDiff
    from kpstore.inspect.contents import ContentDiff


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.command(
        epilog="Examples:\n\nkpstore tag phoenix.kps\n\nkpstore tag phoenix.kps v1.0\n\n"
        "kpstore tag phoenix.kps before-hands --at 2026-01-31T12:00"
    )(tag)
    parent.command(
        epilog="Examples:\n\nkpstore branch phoenix.kps\n\nkpstore branch phoenix.kps try --at v1.0"
        "\n\nkpstore branch phoenix.kps before-rollback-20260131-120000 --delete"
    )(branch)
    parent.command(epilog="Example:\n\nkpstore rollback phoenix.kps --to v1.0")(rollback)
    parent.command(
        epilog="Examples:\n\nkpstore gc phoenix.kps\n\nkpstore gc phoenix.kps --older-than 0 "
        "--keep 3 --yes"
    )(gc)
    parent.command(
        epilog="Examples:\n\nkpstore diff single.pkl distributed.kps --atol 1e-6\n\n"
        "kpstore diff phoenix.kps v1.0 main"
    )(diff)


def tag(
    store: StoreArgument,
    name: Annotated[str | None, typer.Argument(help="The tag; without it, list all tags.")] = None,
    at: At = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the tag; its name cannot be used again.")
    ] = False,
    json: Json = False,
) -> None:
    """Give a version a permanent name, or list the names."""
    import kpstore

    if name is None and (delete or at is not None):
        raise InvalidError("--delete and --at need the name of a tag: kpstore tag STORE NAME")
    if name is None:
        _list_named(kpstore.open(store), "tag", json)
        return
    opened = kpstore.open(store, at, mode="a")
    if delete:
        opened.delete_tag(name)
        render.say(f"tag {name} removed; the version it named stays in the log")
    else:
        opened.tag(name)
        render.say(f"tag {name} names version {opened.snapshot}")


def branch(
    store: StoreArgument,
    name: Annotated[
        str | None, typer.Argument(help="The branch; without it, list all branches.")
    ] = None,
    at: At = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the branch; 'kpstore gc' frees its space.")
    ] = False,
    json: Json = False,
) -> None:
    """Start a branch at a version, remove one, or list them."""
    import kpstore

    if name is None and (delete or at is not None):
        raise InvalidError("--delete and --at need the name of a branch: kpstore branch STORE NAME")
    if name is None:
        _list_named(kpstore.open(store), "branch", json)
    elif delete:
        if at is not None:
            raise InvalidError("--delete removes a branch whatever its version: leave out --at")
        kpstore.open(store, mode="a").delete_branch(name)
        render.say(
            f"branch {name} removed; versions that no other name leads to go with 'kpstore gc'"
        )
    else:
        opened = kpstore.open(store, at, mode="a")
        opened.branch(name)
        render.say(f"branch {name} begins at version {opened.snapshot}")


def gc(
    store: StoreArgument,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Remove versions of this age: 0, 12h, 7d, 4w."
        ),
    ] = "7d",
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Newest versions of each branch that stay.")
    ] = 1,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; otherwise only say what would go.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove old versions, and what killed writers have left.

    Versions that tags and branches name stay, and younger ones that they build upon. Open readers
    of versions that stay are not disturbed. Refused while anything is being written.
    """
    import kpstore

    age = duration_of("--older-than", older_than)
    found = kpstore.open(store, mode="a").collect_garbage(older_than=age, keep=keep, apply=yes)
    if json:
        render.print_json({**found.to_json(), "removed": yes})
        return
    gone = f"{render.count(len(found.versions), 'version')} and {render.size(found.bytes_freed)}"
    stay = (
        f"{render.count(found.kept, 'version')} and {render.size(found.bytes - found.bytes_freed)}"
    )
    if yes:
        render.say(f"removed {gone}; {stay} stay")
        return
    render.say(f"would remove {gone}; {stay} would stay")
    if found.versions or found.bytes_freed:
        render.say("nothing was removed; --yes removes it for good")


def _list_named(store: Store, what: Literal["tag", "branch"], json: bool) -> None:
    from kpstore.inspect.summary import read_named

    names = read_named(store, store.tags if what == "tag" else store.branches)
    if json:
        render.print_json({name: entry.to_json() for name, entry in names.items()})
    elif names:
        rows = [
            (n, e.commit.id, render.local_time(e.commit.time), e.commit.message)
            for n, e in names.items()
        ]
        render.print_table((what, "version", "made", "message"), rows)
    else:
        render.say(f"no tags yet; kpstore tag {store.location} NAME makes one")


def rollback(
    store: StoreArgument,
    to: Annotated[
        str,
        typer.Option("--to", metavar="VERSION", help="A tag, snapshot id or time to go back to."),
    ],
) -> None:
    """Make an earlier version the newest; later versions stay on a branch."""
    import kpstore

    opened = kpstore.open(store, mode="a")
    target, kept = opened.at(to).snapshot, opened.rollback(to)
    render.say(f"version {target} is the newest again; the former newest is kept as {kept}")
    if (newest := opened.at().snapshot) != target:
        render.say(
            f"videos that were removed since then stay out; version {newest} has it on record"
        )
    render.say(f"to undo: kpstore rollback {store} --to {kept}")


def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A store, or a file that can be imported.")
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another one; or a version of store A.")
    ],
    third: Annotated[
        str | None,
        typer.Argument(metavar="[V2]", help="Another version of store A.", show_default=False),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this feature; may be given several times."),
    ] = None,
    atol: Annotated[float, typer.Option(min=0.0, help="Largest difference of equal values.")] = 0.0,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Number of differences to list.")
    ] = 20,
    json: Json = False,
) -> None:
    """Show differences between two stores or files, frame by frame, or between two versions.

    Exit code 1 if there are any. Frames are matched by their image paths. A version is a tag, a
    branch, a snapshot id or a time; a single one is compared with the newest.
    """
    import kpstore
    from kpstore.backends.object_address import is_address

    if third is None and (is_address(second) or os.path.exists(second)):
        _diff_contents(first, second, tuple(feature) if feature else None, atol, limit, json)
        return
    if feature or atol:
        raise InvalidError("--feature and --atol compare two stores or files: kpstore diff A B")
    try:
        old = kpstore.open(first, second)
    except NotFoundError as error:
        if third is not None or is_address(first) or not os.path.exists(first):
            raise
        raise NotFoundError(f"file {second!r} does not exist, and {error}") from None
    new = kpstore.open(first, third)
    changes = kpstore.diff(old, new)
    render.print_json(asdict(changes)) if json else print_diff(changes)
    if changes:
        raise typer.Exit(1)


def _diff_contents(
    first: str, second: str, features: tuple[str, ...] | None, atol: float, limit: int, json: bool
) -> None:
    from kpstore.inspect.contents import compare
    from kpstore.interop.transfer import opened

    with opened(first) as a, opened(second) as b, frames_bar("comparing") as on_progress:
        found = compare(a, b, features=features, atol=atol, limit=limit, on_progress=on_progress)
    render.show(found, json, print_contents)
    if found:
        raise typer.Exit(1)


def print_contents(found: ContentDiff) -> None:
    """Print how two stores differ: counts, then the first differences."""
    rows: list[Sequence[object]] = [
        ("videos", *found.videos),
        ("frames", *found.frames),
        ("videos only here", len(found.videos_only_a), len(found.videos_only_b)),
        ("frames only here", found.frames_only_a, found.frames_only_b),
        ("features only here", ", ".join(found.features_only_a), ", ".join(found.features_only_b)),
    ]
    for name, (a, b) in found.coverage.items():
        rows += [(f"{name} {state}", a[state], b[state]) for state in ("done", "failed", "pending")]
        rows += [
            (f"{name} {part} detected", n, b["detected"].get(part, 0))
            for part, n in a["detected"].items()
        ]
    render.print_table(("", ">A", ">B"), rows)
    for name, count in found.columns.items():
        render.say(f"{name} differs in {render.count(count, 'video')}")
    for name, feature in found.features.items():
        in_state = f", {feature.states:,} in state" if feature.states else ""
        rows_of = render.count(feature.rows, "row")
        render.say(f"{name}: {feature.differing:,} of {rows_of} differ{in_state}")
        parts = [
            (part or "all", d.values, d.only_a, d.only_b, f"{d.largest:.3g}")
            for part, d in feature.parts.items()
        ]
        if parts:
            render.print_table(
                ("part", ">other values", ">only in A", ">only in B", ">largest difference"), parts
            )
    _print_names("videos only in A", found.videos_only_a)
    _print_names("videos only in B", found.videos_only_b)
    if found.first:
        render.heading("first differences")
        listed = [
            (d.where, d.feature, d.part, d.what, "" if d.largest is None else f"{d.largest:.3g}")
            for d in found.first
        ]
        render.print_table(("where", "feature", "part", "what", ">by"), listed)
    for note in found.notes:
        render.say(note)
    if not found:
        render.say("no difference")


def print_diff(changes: VersionDiff) -> None:
    """Print how two versions differ, video by video."""
    if not changes:
        render.say("no difference")
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
            render.say(f"{name}: made in another way")
        _print_names(f"{name}: videos changed", change.videos)


def _print_names(what: str, names: tuple[str, ...]) -> None:
    if names:
        render.say(f"{what}: {len(names)}")
        render.print_some(names)
