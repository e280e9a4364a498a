"""Commands that describe a store: ``info``, ``progress``, ``log``."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from . import render
from .arguments import At, Json, StoreArgument

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.ingest.report import FeatureProgress, Progress
    from kpstore.inspect.coverage import Coverage
    from kpstore.inspect.summary import FeatureSummary, LogEntry, Summary

Item = TypeVar("Item")

_SHOWN_REMOVED = 5
"""Number of removed videos or features that ``info`` names."""


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    parent.command(
        epilog="Examples:\n\nkpstore info phoenix.kps\n\n"
        "kpstore info phoenix.kps --detailed --at v1.0 --json"
    )(info)
    parent.command(epilog="Example:\n\nkpstore progress phoenix.kps --watch")(progress)
    parent.command(
        epilog="Examples:\n\nkpstore log phoenix.kps --limit 5\n\nkpstore log phoenix.kps --json"
    )(log)


# -- info ------------------------------------------------------------------------------------------


def info(
    store: StoreArgument,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Show every video, all failures, full provenance.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=0, help="Number of videos in the table of --detailed; 0 for all.")
    ] = 50,
    at: At = None,
    json: Json = False,
) -> None:
    """Show videos, frames, splits, features, detection rates, sizes and provenance."""
    import kpstore
    from kpstore.inspect.summary import summarize

    opened = kpstore.open(store, at)
    summary = summarize(opened)
    if json:
        details = _details(opened, limit) if detailed else {}
        render.print_json({**summary.to_json(), **details})
        return
    print_summary(summary)
    if detailed:
        _print_details(opened, limit)


def print_summary(summary: Summary) -> None:
    """Print a summary of a version."""
    disk = summary.disk
    on_disk = ""
    if disk:
        on_disk = f", {render.size(disk.size_bytes)} in {render.count(disk.files, 'file')}"
    render.say(
        f"{summary.name}: {render.count(summary.videos, 'video')}, "
        f"{render.count(summary.frames, 'frame')}{on_disk}"
    )
    commit = summary.newest.commit
    render.say(f"version {commit.id} of {render.local_time(commit.time)}: {commit.message}")
    if summary.lacks:
        render.say(summary.lacks)
    for kind, what, of in (
        ("video", "frame", summary.removed.videos),
        ("feature", "row", summary.removed.features),
    ):
        if of:
            rows = render.count(sum(one.rows for one in of.values()), what)
            last = render.local_time(max(one.time for one in of.values()))
            some = ", ".join(map(repr, list(of)[:_SHOWN_REMOVED]))
            more = ", … (--json)" if len(of) > _SHOWN_REMOVED else ""
            count = render.count(len(of), kind)
            render.say(f"removed: {count}, {rows}, the last on {last}: {some}{more}")
    if summary.tags:
        render.say(f"tags {', '.join(summary.tags)}")
    if summary.splits:
        render.say()
        splits = [(render.split_name(s.name), s.videos, s.frames) for s in summary.splits]
        render.print_table(("split", ">videos", ">frames"), splits)
    for alike in _grouped(summary.features, _all_but_shape):
        _print_features(alike)


def _grouped(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Return items with equal keys together, in order of first appearance."""
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _all_but_shape(feature: FeatureSummary) -> tuple[object, ...]:
    """Return what is printed below a feature's heading, equal for those of one extraction."""
    counts = (feature.videos_done, feature.videos_failed, feature.videos_pending)
    return (_maker(feature), feature.axis, counts, repr(feature.coverage))


def _print_features(alike: Sequence[FeatureSummary]) -> None:
    render.say()
    for feature in alike:
        shape = " × ".join(f"{length:,}" for length in feature.shape)
        title = f"{feature.name}: {shape} {feature.dtype}, {feature.chunk_rows:,} rows a chunk"
        render.title(title)
    feature = alike[0]
    render.say(f"made by {_maker(feature)}")
    render.say(
        f"videos: {feature.videos_done:,} done, {feature.videos_failed:,} failed, "
        f"{feature.videos_pending:,} pending"
    )
    parts = list(feature.total.detected)
    rows = [
        _coverage_row(render.split_name(split), cover) for split, cover in feature.coverage.items()
    ]
    if len(rows) > 1:
        rows.append(_coverage_row("all", feature.total))
    columns = ("split", f">{feature.axis}s done", ">failed", ">pending")
    render.print_table((*columns, *(f">{part.replace('_', ' ')}" for part in parts)), rows)
    if parts:
        render.say("parts: share of the done frames in which each was detected")


def _coverage_row(name: str, cover: Coverage) -> tuple[str | int, ...]:
    shares = (render.share(cover.share(part)) for part in cover.detected)
    return (name, cover.done, cover.failed, cover.pending, *shares)


def _maker(feature: FeatureSummary) -> str:
    made = feature.provenance
    names = [str(made[key]) for key in ("recipe", "extractor") if key in made][:1] or ["unknown"]
    versions = [f"{key} {made[key]}" for key in ("mediapipe", "kpstore") if key in made]
    faces = made.get("face_list")
    named = [f"face list {faces['name']}"] if isinstance(faces, dict) and "name" in faces else []
    return ", ".join([*names, *named, *versions])


def _details(store: Store, limit: int) -> dict[str, Any]:
    table = store.videos
    table = table if limit == 0 else table.head(limit)
    videos = json.loads(table.reset_index().to_json(orient="records"))
    failures = {
        name: [vars(failure) for failure in store.failures(name)] for name in store.features
    }
    return {"video_table": videos, "failures": failures}


def _print_details(store: Store, limit: int) -> None:
    made = {
        name: json.dumps(dict(store.provenance(name)), indent=2, ensure_ascii=False)
        for name in store.features
    }
    for names in _grouped(made, made.__getitem__):
        render.heading(f"how {render.listed(names)} {'was' if len(names) == 1 else 'were'} made")
        render.say_lines(made[names[0]])
    failures = {name: store.failures(name) for name in store.features}
    for names in _grouped(failures, lambda name: tuple(failures[name])):
        found = failures[names[0]]
        render.heading(f"failures of {render.listed(names)}: {len(found)}")
        for line in render.failure_lines(found, "", limit=len(found)):
            render.say(line)
    table = store.videos
    shown = table if limit == 0 else table.head(limit)
    states = _grouped(
        (f"{name}_state" for name in store.features), lambda column: tuple(table[column])
    )
    columns = ["split", "n_frames", "fps", "width", "height", *(alike[0] for alike in states)]
    render.heading("videos")
    rows = (map(str, row) for row in shown[columns].itertuples())  # 1280 pixels are not 1,280
    render.print_table(("video", *columns), map(tuple, rows))
    for first, *others in states:
        if others:
            render.say(f"{first} is also {render.listed(others)}")
    if len(shown) < len(table):
        render.say(f"… and {len(table) - len(shown)} more: --limit 0 shows all")


# -- progress --------------------------------------------------------------------------------------


def progress(
    store: StoreArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until the run ends.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two updates of --watch.")
    ] = 2.0,
    json: Json = False,
) -> None:
    """Show the progress of an ingest, during and after the run, without disturbing it."""
    while True:
        run, totals = _look(store)
        if json:
            _print_progress_json(run, totals, watch)
        elif watch and run is not None and run.running:
            _print_moving(run)
        else:
            print_progress(store, run, totals)
        if not watch or run is None or not run.running:
            return
        time.sleep(interval)


def _look(store: str) -> tuple[Progress | None, list[FeatureProgress]]:
    import kpstore
    from kpstore.ingest.report import feature_progress, read_progress

    opened = kpstore.open(store)
    return read_progress(opened.backend), feature_progress(opened)


def _print_progress_json(run: Progress | None, totals: list[FeatureProgress], watch: bool) -> None:
    value = {
        "run": None if run is None else run.to_json(),
        "features": {
            total.feature: {k: v for k, v in vars(total).items() if k != "feature"}
            for total in totals
        },
    }
    if watch:
        render.print_json(value, indent=None)  # one line per update, for scripts that read along
    else:
        render.print_json(value)


def _print_moving(run: Progress) -> None:
    from .watcher import progress_line

    line = f"{run.feature}: {progress_line(run)}"
    if sys.stdout.isatty():
        render.say_over(line)
    else:
        render.say(line)


def print_progress(store: str, run: Progress | None, totals: list[FeatureProgress]) -> None:
    """Print the state of the current or last run, and of the videos of each feature."""
    from .watcher import progress_line

    if sys.stdout.isatty() and run is not None:
        render.say_over()
    if run is None:
        render.say(f"no ingest has run on {store} yet")
    elif run.running:
        render.say(f"running: {run.feature}, {progress_line(run)}")
        render.say(
            f"  process {run.pid}, {run.workers} workers; {run.frames_committed:,} frames committed"
        )
    elif run.frames_committed < run.frames:
        render.say(
            f"stopped before its end: {run.feature}, {progress_line(run).partition(', ')[0]} seen,"
        )
        render.say(f"  {run.frames_committed:,} committed; run the same ingest again to continue")
    else:
        seconds = run.updated - run.started
        render.say(f"finished: {run.feature}, {progress_line(run)}, {render.duration(seconds)}")
    if totals:
        rows = [(t.feature, t.done, t.failed, t.pending) for t in totals]
        render.print_table(("videos of", ">done", ">failed", ">pending"), rows)


# -- log -------------------------------------------------------------------------------------------


def log(
    store: StoreArgument,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Number of versions to show.")
    ] = None,
    at: At = None,
    json: Json = False,
) -> None:
    """Show the versions of a store, newest first."""
    import kpstore
    from kpstore.inspect.summary import read_log

    entries = read_log(kpstore.open(store, at), limit=limit)
    if json:
        render.print_json([entry.to_json() for entry in entries])
    else:
        print_log(entries)


def print_log(entries: list[LogEntry]) -> None:
    """Print a line per version, and below it what the ingest reported."""
    for entry in entries:
        names = [*(f"tag {tag}" for tag in entry.tags), *entry.branches]
        decoration = f" ({', '.join(names)})" if names else ""
        commit = entry.commit
        render.say(f"{commit.id}  {render.local_time(commit.time)}  {commit.message}{decoration}")
        if entry.report is not None:
            render.say(f"    {_report_line(entry.report)}")


def _report_line(report: Any) -> str:
    keys = ("videos_done", "frames", "frames_failed", "seconds", "frames_per_second")
    told = [report.get(key, 0) for key in keys]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in told):
        return "the report of this version cannot be read"
    videos, frames, failed, seconds, rate = told
    text = (
        f"{render.count(videos, 'video')}, {render.count(frames, 'frame')} in "
        f"{render.duration(seconds)} ({rate:.1f} frames/s)"
    )
    missed = f", {render.count(failed, 'frame')} failed" if failed else ""
    return f"{text}{missed}{', interrupted' if report.get('interrupted') else ''}"
