"""``kpstore export``: other formats out of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import render
from .arguments import At, Json, ListCommand, Splits, StoreArgument, split_names
from .watcher import frames_bar

if TYPE_CHECKING:
    from kpstore.interop.npz import ExportedSplit

app = typer.Typer(no_args_is_help=True, help="Write other formats out of a store.")


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.add_typer(app, name="export")


@app.command(
    cls=ListCommand,
    epilog="Examples:\n\nkpstore export npz phoenix.kps OUT\n\nkpstore export npz phoenix.kps OUT --splits train dev",
)
def npz(
    store: StoreArgument,
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder for the files.", show_default=False)],
    feature: Annotated[str, typer.Option(help="Which feature.")] = "keypoints",
    splits: Splits = None,
    at: At = None,
    missing: Annotated[
        Literal["zeros", "nan"], typer.Option(help="What a part that was not detected becomes.")
    ] = "zeros",
    failed: Annotated[Literal["drop", "keep"], typer.Option(help="Frames that failed.")] = "drop",
    empty: Annotated[Literal["drop", "keep"], typer.Option(help="Frames in which nothing was detected.")] = "drop",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    json: Json = False,
) -> None:
    """Write {split}_keypoints.npz and {split}_stats.json, as keypoint trainers read them."""
    import kpstore
    from kpstore.interop.npz import export_npz

    with frames_bar("exporting") as on_progress:
        exported = export_npz(
            kpstore.open(store, at),
            out_dir,
            feature=feature,
            splits=split_names(splits),
            missing=missing,
            failed=failed,
            empty=empty,
            overwrite=force,
            on_progress=on_progress,
        )
    render.print_json([split.to_json() for split in exported]) if json else print_exported(exported)


def print_exported(exported: list[ExportedSplit]) -> None:
    """Print what was written, and what was not."""
    for split in exported:
        left = ", ".join(f"{render.number(n)} {reason}" for reason, n in split.left_out.items() if n)
        typer.echo(
            f"{split.path}: {render.count(split.frames, 'frame')} of {render.count(split.videos, 'video')}"
            + (f"; left out: {left}" if left else "")
        )
