"""``kpstore stats``: count, extremes, mean, deviation and quantiles of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import render
from .arguments import At, Json, ListCommand, Splits, StoreArgument, split_names
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.inspect.statistics import Statistics

_SHOWN = ("min", "1", "5", "25", "50", "75", "95", "99", "max", "mean", "std")


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(
        cls=ListCommand,
        epilog="Examples:\n\nkpstore stats phoenix.kps\n\n"
        "kpstore stats phoenix.kps --feature keypoints --split train --json",
    )(stats)


def stats(
    store: StoreArgument,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this feature; may be given several times."),
    ] = None,
    split: Splits = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of threads; one per core by default."),
    ] = None,
    at: At = None,
    json: Json = False,
) -> None:
    """Show statistics of a feature by split, part and coordinate, measured once per version.

    Only detected parts of done frames count; quantiles are exact to 0.1 %.
    """
    import kpstore
    from kpstore.inspect.statistics import statistics_by_split

    opened = kpstore.open(store, at)
    with frames_bar("measuring") as on_rows:
        found = statistics_by_split(
            opened, feature, splits=split_names(split), workers=workers, on_rows=on_rows
        )
    if json:
        render.print_json(
            {
                name: {s: one.to_json() for s, one in splits.items()}
                for name, splits in found.items()
            }
        )
        return
    for name, splits in found.items():
        _print_feature(name, splits)


def _print_feature(name: str, splits: dict[str, Statistics]) -> None:
    render.heading(name)
    rows = [row for split, one in splits.items() for row in _rows(render.split_name(split), one)]
    titles = (f">{key} %" if key.isdecimal() else f">{key}" for key in _SHOWN)
    render.print_table(("split", "part", "", ">count", ">missing", *titles), rows)


def _rows(split: str, one: Statistics) -> list[tuple[str, ...]]:
    values = one.to_json()["statistics"]
    return [
        (split, part.replace("_", " "), column, *_cells(group))
        for part, columns in values.items()
        for column, group in columns.items()
    ]


def _cells(group: dict[str, Any]) -> list[str]:
    numbers = {**group, **group["quantiles"]}
    shown = ["-" if numbers[key] is None else f"{numbers[key]:.4g}" for key in _SHOWN]
    return [group["count"], group["missing"], *shown]
