"""``kpstore demo``: each step once, on real photographs and with the real model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import render
from .formats import print_exported
from .ingest import print_report
from .look import print_log, print_summary
from .watcher import make_watcher

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.sources.base import Source


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(epilog="Example:\n\nkpstore demo demo-output")(demo)


def demo(
    target: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder for everything that is made.")
    ] = Path("kpstore-demo"),
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 runs in this one.")] = 2,
) -> None:
    """Extract keypoints from real photographs, and show what can be done with them."""
    from PIL import Image

    import kpstore
    from kpstore.inspect.summary import read_log, summarize
    from kpstore.interop.transfer import export_file
    from kpstore.render.sheet import keypoint_sheet
    from kpstore.sources.demo import write_demo_dataset
    from kpstore.sources.phoenix import PhoenixSource

    dataset, location = target / "PHOENIX-2014-T", target / "demo.kps"
    _say("a small data set in PHOENIX-2014-T's layout", f"written to {dataset}")
    source = PhoenixSource(write_demo_dataset(dataset))
    failed = _ingest(source, location, workers)
    store = kpstore.open(location)
    _say("history", f"kpstore log {location}")
    print_log(read_log(store))
    npz = target / "npz"
    _say("export", f"kpstore export npz {location} {npz} --overwrite")
    print_exported(export_file(store, npz, "npz", overwrite=True))
    _batch(store)
    picture = target / "keypoints.png"
    _say("picture", str(picture))
    Image.fromarray(keypoint_sheet(store, source)).save(picture)
    render.say(f"keypoints drawn on photographs: {picture}")
    _say("result", f"kpstore info {location}")
    print_summary(summarize(store))
    if failed:
        raise typer.Exit(1)


def _say(what: str, command: str) -> None:
    render.heading(f"── {what}: {command}")


def _ingest(source: Source, location: Path, workers: int) -> bool:
    from kpstore.extractors.registry import make_extractor
    from kpstore.ingest.options import Options
    from kpstore.ingest.run import run_ingest

    _say("extract", f"kpstore ingest phoenix … {location} --workers {workers}")
    with make_watcher() as watcher:
        report = run_ingest(
            source, location, make_extractor("holistic"), Options(workers=workers), observer=watcher
        )
    print_report(report, str(location))
    if report.interrupted:
        raise typer.Exit(130)
    return bool(report.failures)


def _batch(store: Store) -> None:
    _say(
        "train", 'DataLoader(store.frames("keypoints", split="train"), batch_size=8, shuffle=True)'
    )
    if find_spec("torch") is None:
        render.say('torch is not installed; run pip install "kpstore[torch]"')
        return
    from torch.utils.data import DataLoader

    loader = DataLoader(store.frames("keypoints", split="train"), batch_size=8, shuffle=True)
    batch = next(iter(loader))
    keypoints = batch["keypoints"]
    render.say(
        f"one batch: keypoints {tuple(keypoints.shape)} {keypoints.dtype}, rows "
        f"{batch['row'].tolist()}"
    )
