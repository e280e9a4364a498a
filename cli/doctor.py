"""``kpstore doctor``: check the installation, this machine, stores and data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import render
from .arguments import Json

if TYPE_CHECKING:
    from kpstore.doctor import Checkup

_MARKS = {"ok": "ok", "absent": "-", "problem": "PROBLEM"}


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(
        epilog="Examples:\n\nkpstore doctor\n\n"
        "kpstore doctor phoenix.kps PHOENIX-2014-T configs/LRS2-IIANet.yml --json"
    )(doctor)


def doctor(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Stores, data sets, configurations (.yml) and DINOv2 weights to check.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show versions, optional parts, cores, GPUs and models, and how to install missing ones.

    Exit code 1 if a PATH has a problem, or if something that it needs is not installed.
    """
    from kpstore.doctor import check_up

    found = check_up(paths or ())
    render.show(found, json, _print)
    if not found.is_sound:
        raise typer.Exit(1)


def _print(found: Checkup) -> None:
    rows = [(f.area, f.name, _MARKS[f.state], f.found, f.advice) for f in found.findings]
    render.print_table(("", "what", "", "found", "to do"), rows)
