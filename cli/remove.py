"""``kpstore remove``: videos or features out of the newest version, or out of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import Json, StoreArgument

if TYPE_CHECKING:
    from kpstore.store.removal import Removal


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(
        epilog="Examples:\n\nkpstore remove phoenix.kps --video 01April_2010_Thursday_heute-6694"
        "\n\nkpstore remove phoenix.kps --video clip1 --video clip2 --everywhere --yes\n\n"
        "kpstore remove phoenix.kps --feature keypoints_predicted\n\n"
        "kpstore remove phoenix.kps --video clip1 --take-back"
    )(remove)


def remove(
    store: StoreArgument,
    video: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Remove this video; may be given several times."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Remove this feature; may be given several times."),
    ] = None,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere", help="From all versions, tags and branches, with the bytes on disk."
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", help="With --everywhere: remove it; otherwise only say what would go."
        ),
    ] = False,
    take_back: Annotated[
        bool, typer.Option("--take-back", help="Let removed videos be added again.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove videos or features: from the newest version, or with --everywhere for good.

    A removed video stays out of later ingests, imports and merges. Without --everywhere, earlier
    versions keep it, and a rollback undoes it. With it, the newest version that held it goes, and
    all that are older. Refused while anything is being written.
    """
    import kpstore

    opened = kpstore.open(store, mode="a")
    if take_back:
        if everywhere or feature:
            raise InvalidError("--take-back is for videos: kpstore remove STORE --video ID")
        made = opened.take_back(video or ())
        render.print_json({"snapshot": made}) if json else _print_taken_back(video or [], made)
        return
    what: dict[str, list[str]] = {"videos": video or [], "features": feature or []}
    if everywhere:
        render.show(opened.remove_everywhere(**what, apply=yes), json, _print_everywhere)
    else:
        render.show(opened.remove(**what), json, _print_removal)


def _print_taken_back(videos: list[str], snapshot: str) -> None:
    some = render.count(len(videos), "video")
    render.say(f"{some} may be added again, by the next ingest for instance; version {snapshot}")


def _print_removal(found: Removal) -> None:
    render.say(f"removed {_removed(found)}; version {found.snapshot}")
    _print_derived(found)
    render.say(
        "earlier versions still hold it: --everywhere removes it from them too; to undo: kpstore "
        f"rollback {found.location} --to {found.former}"
    )


def _print_everywhere(found: Removal) -> None:
    named = [f"branch {name}" for name in found.branches] + [f"tag {name}" for name in found.tags]
    names, gone = render.listed(named), render.count(len(found.versions), "version")
    if found.applied:
        render.say(f"removed for good: {_removed(found)}")
        lead = f"now without it: {names}; " if names else ""
        render.say(f"{lead}{gone} removed, {render.count(found.kept, 'version')} left")
    else:
        render.say(f"would remove for good: {_removed(found)}")
        lead = f"{names} would lead to new versions without it; " if names else ""
        render.say(f"{lead}{gone} would go, {render.count(found.kept, 'version')} would be left")
    _print_derived(found)
    if not found.applied:
        render.say("nothing was removed; --yes removes it, and nothing brings it back")


def _print_derived(found: Removal) -> None:
    if found.derived:
        render.say(
            f"made from it, and still there: {', '.join(found.derived)} (kpstore remove "
            f"{found.location} --feature NAME)"
        )


def _removed(found: Removal) -> str:
    """Return what was removed: ``video 'a' (2,000 frames)``, ``3 videos (5,000 frames)``."""
    for kind, what, of in (
        ("video", "frame", found.removed.videos),
        ("feature", "row", found.removed.features),
    ):
        if of:
            first = repr(next(iter(of)))
            who = f"{kind} {first}" if len(of) == 1 else render.count(len(of), kind)
            return f"{who} ({render.count(sum(one.rows for one in of.values()), what)})"
    return "nothing"
