"""``kpstore doctor``: what is installed, what this machine has, and whether stores and data sets can be used."""

from __future__ import annotations

from typing import Annotated

import typer

from . import render
from .arguments import Json

_MARKS = {"ok": "ok", "absent": "-", "problem": "PROBLEM"}


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(
        epilog="Examples:\n\nkpstore doctor\n\nkpstore doctor phoenix.kps PHOENIX-2014-T configs/LRS2-IIANet.yml --json"
    )(doctor)


def doctor(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Stores, data sets, configurations (.yml) and DINOv2 weights to look at.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show versions, optional parts, cores, GPUs and models, and how to get what is not there.

    Ends with exit code 1 if something is wrong with a PATH, or something that it needs is missing.
    """
    from kpstore.doctor import check_up

    found = check_up(paths or ())
    if json:
        render.print_json(found.to_json())
    else:
        rows = [(f.area, f.name, _MARKS[f.state], f.found, f.advice) for f in found.findings]
        render.print_table(("", "what", "", "found", "to do"), rows)
    if not found.is_sound:
        raise typer.Exit(1)
