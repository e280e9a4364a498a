"""``kpstore bench``: how fast a store reads on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kpstore.errors import InvalidError, NotFoundError
from kpstore.visible import visible

from . import render
from .arguments import At, Json, StoreArgument, frame_features

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.bench.comparison import BenchReport


Against = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Formats to compare with, on copies of the same rows: npy, npz, pickle, h5py, "
        "h5py-lzf, h5py-lz4, zarr, zarr-lz4, tensorstore, tensorstore-lz4, lance; `all` for "
        "those that are installed.",
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for the copies of --against, removed at the end."),
]
Cache = Annotated[
    str,
    typer.Option(
        metavar="auto|off|PATH", help="Decoded copies on the local disk, for compressed stores."
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save a plot as .png, .svg or .pdf.")
]


def add_to(parent: typer.Typer) -> None:
    """Add this command."""
    parent.command(
        epilog="Examples:\n\nkpstore bench phoenix.kps\n\n"
        "kpstore bench phoenix.kps --against h5py,npz --plot bench.png\n\n"
        "kpstore bench phoenix.kps --feature keypoints --frames 100000 --runs 3 --json"
    )(bench)


def bench(
    store: StoreArgument,
    feature: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Feature to read; by default, the widest one of frames."),
    ] = None,
    against: Against = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Number of frames to read, from the first.")
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, help="Runs of each workload; the median is shown.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Longest time of a workload in a run.")
    ] = 1.0,
    cache: Cache = "auto",
    scratch: Scratch = None,
    plot: Plot = None,
    at: At = None,
    json: Json = False,
) -> None:
    """Measure how fast a store reads, compared with an array in memory and with other formats.

    Measures opening, random frames, clips, one video by id, a scan and a shuffled epoch: medians of
    several runs on the same rows, with the files in the system's cache.
    """
    import kpstore
    from kpstore.bench.comparison import bench as run_bench
    from kpstore.bench.measure import BenchSettings
    from kpstore.bench.peers import installed_peers

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidError(f"--plot {plot}: use a name that ends in .png, .svg or .pdf")
    if scratch is not None and not scratch.is_dir():
        raise InvalidError(f"--scratch {scratch} is not a folder")
    opened = kpstore.open(store, at)
    named = [name for name in (against or "").split(",") if name]
    with render.console(stderr=True).status("") as status:
        report = run_bench(
            opened,
            feature or _widest(opened),
            against=installed_peers() if against == "all" else named,
            cache=cache,
            n_rows=frames,
            settings=BenchSettings(runs=runs, seconds=seconds),
            scratch=scratch,
            on_step=lambda step: status.update(visible(step)),
        )
    if plot is not None:
        from kpstore.bench.plot import plot as draw

        draw(report, plot)
    render.show(report, json, _print)
    if plot is not None:
        render.say(f"picture: {plot}", err=True)
    sys.stdout.flush()


def _widest(store: Store) -> str:
    names = frame_features(store)
    if not names:
        raise NotFoundError(f"{store.location} has no feature of frames to read")
    return max(names, key=lambda name: store.reader.meta(name).row_bytes)


def _print(report: BenchReport) -> None:
    part = "" if report.n_rows == report.total_rows else f" of {report.total_rows:,}"
    render.say(f"{report.feature} of {report.location}: {report.n_rows:,}{part} frames")
    render.say(f"{report.machine}; files on {report.filesystem}, in the system's cache")
    subjects = list(dict.fromkeys(figure.subject for figure in report.figures))
    for workload, unit in dict.fromkeys(
        (figure.workload, figure.unit) for figure in report.figures
    ):
        render.heading(f"{workload}, {unit}")
        rows = []
        for subject in subjects:
            figure = report.of(subject, workload)
            if figure is not None:
                ratio = report.ratio(figure)
                spread = f"{_short(figure.lowest)} to {_short(figure.highest)}"
                shown = "" if ratio is None else f"{ratio:.2f}"
                rows.append((subject, _short(figure.median), spread, shown))
        render.print_table(("", ">median", ">lowest to highest", ">of memory's speed"), rows)
    render.heading("how each reads")
    render.print_table(("", ""), list(report.how.items()))
    if report.peak is not None:
        render.say(
            f"memory of an epoch: {report.peak.own:.0f} MiB, {report.peak.with_mapped:.0f} MiB "
            "with mapped files"
        )


def _short(value: float) -> str:
    """Return a number with three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}" if value < 100_000 else f"{value / 1000:,.0f} k"
    return f"{value:.3g}"
