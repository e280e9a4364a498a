"""``kpstore predict``: predictions of a trained model for a store's frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kpstore.errors import InvalidError

from . import render
from .arguments import At, Json, StoreArgument
from .watcher import total_bar

if TYPE_CHECKING:
    from kpstore.trainers.predict import Predicted

_EPILOG = (
    "Examples:\n\nkpstore predict runs/faces/best.safetensors phoenix.kps --split dev --as "
    "faces_again\n\nkpstore predict runs/skeleton/best.safetensors phoenix.kps --split test --png "
    "drawn/ --limit-frames 100\n\n`kpstore reconstruct` is another name for this command."
)


def add_to(app: typer.Typer) -> None:
    """Add this command, under both of its names."""
    app.command("predict", epilog=_EPILOG)(predict)
    app.command("reconstruct", epilog=_EPILOG, help="The same as `predict`.")(predict)


CheckpointArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="best.safetensors of a training.", show_default=False
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="With --png: at most N frames, evenly spread."),
]
NewFeature = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Feature to write; FEATURE_predicted or FEATURE_drawn by default.",
    ),
]


def predict(
    checkpoint: CheckpointArgument,
    store: StoreArgument,
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="Only this split; all frames by default.")
    ] = None,
    feature: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keypoints to read; by default those that the model was trained on.",
        ),
    ] = None,
    name: NewFeature = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write pictures to this folder instead of a feature."),
    ] = None,
    at: At = None,
    limit_frames: Limit = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Frames per call of the model.")
    ] = 32,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|cuda:N", help="A GPU if there is one.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Write the predictions of a trained model to the store as a new feature, or to PNG files.

    The feature is one new version, or nothing. Videos that have it already, from the same
    checkpoint, are skipped. Faces are (68, 3); skeletons are pictures of one byte per pixel,
    64 KiB per frame at 256 x 256. With --png, a run that was killed resumes where it stopped.
    """
    import kpstore
    from kpstore.trainers import predict as trained

    if png is None and (at is not None or limit_frames is not None):
        raise InvalidError(
            "--at and --limit-frames are for --png; a feature is written for whole videos of the "
            "newest version"
        )
    if png is not None and name is not None:
        raise InvalidError("--as names a feature, --png writes pictures; choose one")
    predictor = trained.open_predictor(checkpoint, device=device, batch_size=batch_size)
    with total_bar("frames") as on_progress:
        if png is not None:
            found = trained.predict_pictures(
                kpstore.open(store, at),
                predictor,
                png,
                split=split,
                feature=feature,
                limit=limit_frames,
                on_progress=on_progress,
            )
        else:
            opened = kpstore.open(store, mode="a")
            found = trained.predict_feature(
                opened, predictor, split=split, feature=feature, name=name, on_progress=on_progress
            )
    render.show(found, json, _print)


def _print(found: Predicted) -> None:
    where = found.feature if found.folder is None else found.folder
    version = f", version {found.snapshot}" if found.snapshot else ""
    render.say(f"{where}: {render.count(found.frames, 'frame')}{version}")
    for n, what in (
        (found.empty, "with nothing detected in it"),
        (found.done_before, "left out, there already"),
        (found.not_extracted, "left out, not extracted yet"),
    ):
        if n:
            render.say(f"{render.count(n, 'frame')} {what}")
