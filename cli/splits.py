"""``kpstore splits``: what splits have in common, and how to set them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import render
from .arguments import At, Json, StoreArgument

if TYPE_CHECKING:
    from kpstore.inspect.leakage import SplitCheck
    from kpstore.interop.split_files import SplitChange


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(no_args_is_help=True, help="Check what splits have in common, or set them.")
    app.command(
        epilog="Examples:\n\nkpstore splits check phoenix.kps\n\n"
        "kpstore splits check phoenix.kps --ignore-signers --json"
    )(check)
    app.command(
        "set",
        epilog="Examples:\n\nkpstore splits set phoenix.kps signer_independent.csv --dry-run\n\n"
        "kpstore splits set phoenix.kps signer_independent.csv",
    )(set_)
    parent.add_typer(app, name="splits")


def check(
    store: StoreArgument,
    feature: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Feature to compare; keypoints, or else the first one."),
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Annotation that names the person; signer or speaker by default."
        ),
    ] = None,
    ignore_signers: Annotated[
        bool, typer.Option("--ignore-signers", help="Allow a person in several splits.")
    ] = False,
    near: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="DISTANCE", help="Largest distance of near-copies; 0.1 by default."
        ),
    ] = None,
    at: At = None,
    json: Json = False,
) -> None:
    """Find videos, frames and people that are in two splits; exit code 1 if there are any."""
    import kpstore
    from kpstore.inspect.leakage import NEAR, check_splits

    opened = kpstore.open(store, at)
    found = check_splits(
        opened,
        feature=feature,
        signer=signer,
        signers=not ignore_signers,
        near=NEAR if near is None else near,
    )
    render.show(found, json, print_check)
    if found:
        raise typer.Exit(1)


def print_check(found: SplitCheck) -> None:
    """Print how many videos of each kind two splits share, and the first of them."""
    from kpstore.inspect.leakage import KINDS

    compared = [f"values of {found.feature}"] if found.feature else []
    compared += [f"people by {found.signer}"] if found.signer else []
    render.say(
        f"{render.count(found.videos, 'video')} in {', '.join(found.splits) or 'no split'}; "
        f"compared: ids, paths{''.join(f', {what}' for what in compared)}"
    )
    left_out = [] if found.feature else ["frames", "near"]
    left_out += [] if found.signer else ["signer"]
    counts = {kind: n for kind, n in found.counts().items() if kind not in left_out}
    render.print_table(
        ("shared by two splits", ">found"), [(KINDS[kind], n) for kind, n in counts.items()]
    )
    for kind in KINDS:
        shared = [one for one in found.shared if one.kind == kind]
        if shared:
            render.heading(KINDS[kind])
            rows = [(", ".join(one.splits), ", ".join(one.videos), one.detail) for one in shared]
            render.print_table(("splits", "videos", ""), rows[: render.SHOWN_FAILURES])
        if len(shared) > render.SHOWN_FAILURES:
            render.say(f"… and {len(shared) - render.SHOWN_FAILURES} more: --json lists them all")


def set_(
    store: StoreArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV, TSV or JSON.", show_default=False)
    ],
    keep_others: Annotated[
        bool,
        typer.Option("--keep-others", help="Keep the splits of videos that the file omits."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Set the splits of videos from a file, in one commit; no frame is written again.

    The file is a table with the columns video_id (or name) and split, separated by commas,
    semicolons, tabs or |; or JSON: the split of each video, or the videos of each split.
    """
    import kpstore
    from kpstore.interop.split_files import set_splits

    change = set_splits(
        kpstore.open(store, mode="r" if dry_run else "a"),
        file,
        keep_others=keep_others,
        dry_run=dry_run,
    )
    render.show(change, json, lambda found: _print_change(found, dry_run))


def _print_change(change: SplitChange, dry_run: bool) -> None:
    names = dict.fromkeys((*change.before, *change.after))
    rows = [(render.split_name(n), change.before.get(n, 0), change.after.get(n, 0)) for n in names]
    render.print_table(("split", ">videos before", ">after"), rows)
    word = "would change" if dry_run else "changed"
    kept = f", {change.kept} kept as they were" if change.kept else ""
    made = "" if dry_run or not change.changed else f"; version {change.snapshot}"
    render.say(f"{render.count(change.changed, 'video')} {word}{kept}{made}")
