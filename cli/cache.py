"""``kpstore cache``: decoded copies on the local disk, for random reads of compressed stores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import render
from .arguments import At, Json, StoreArgument, frame_features
from .watcher import total_bar

if TYPE_CHECKING:
    from kpstore.api import Store
    from kpstore.store.cache import DecodedCache

Folder = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", help="The cache; $KPSTORE_CACHE or ~/.cache/kpstore by default."
    ),
]


def add_to(parent: typer.Typer) -> None:
    """Add these commands."""
    app = typer.Typer(
        no_args_is_help=True,
        help="Manage decoded copies of compressed stores on the local disk.\n\n"
        "They make random reads as fast as memory. `kpstore.open(…, cache=…)` makes them when they "
        "pay off; the oldest are removed when the cache holds $KPSTORE_CACHE_GB gigabytes (100 by "
        "default).",
    )
    app.command("list", epilog="Example:\n\nkpstore cache list --json")(list_entries)
    app.command(
        epilog="Examples:\n\nkpstore cache build phoenix.kps\n\n"
        "kpstore cache build phoenix.kps --feature keypoints"
    )(build)
    app.command(epilog="Examples:\n\nkpstore cache clear\n\nkpstore cache clear phoenix.kps")(clear)
    parent.add_typer(app, name="cache")


def _cache(folder: Path | None) -> DecodedCache:
    from kpstore.errors import InvalidError
    from kpstore.store.cache import DecodedCache

    if folder is not None and str(folder) in ("off", "auto"):
        raise InvalidError(
            f"--cache {folder}: give a folder, or leave it out for $KPSTORE_CACHE or "
            "~/.cache/kpstore"
        )
    return DecodedCache(folder)


def list_entries(folder: Folder = None, json: Json = False) -> None:
    """List the arrays in the cache, in the order in which they are removed to make room."""
    cache = _cache(folder)
    entries = cache.entries()
    if json:
        render.print_json([entry.to_json() for entry in entries])
        return
    held = render.size(sum(entry.size_bytes for entry in entries))
    render.say(f"{cache.folder}: {held} of at most {render.size(cache.limit_bytes)}")
    now = time.time()
    rows = [
        (
            entry.name,
            entry.snapshot,
            render.size(entry.size_bytes),
            f"{render.duration(max(0.0, now - entry.used))} ago",
        )
        for entry in entries
    ]
    if rows:
        render.print_table(("array", "version", ">size", ">opened"), rows)


def build(
    store: StoreArgument,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this array; may be given several times. All features of frames by default.",
        ),
    ] = None,
    folder: Folder = None,
    at: At = None,
) -> None:
    """Decode features of a store to the cache before training needs them."""
    import kpstore
    from kpstore.errors import InvalidError

    opened = kpstore.open(store, at, cache="auto" if folder is None else _cache(folder).folder)
    wanted, refused = feature or frame_features(opened), 0
    if not wanted:
        render.say(f"{opened.location} has no features of frames; nothing to cache")
    for name in wanted:
        if opened[name].dtype.kind == "O":
            raise InvalidError(f"{name!r} is text, which is not cached")
        reader = opened.reader
        with total_bar(name) as on_chunk:
            cached = reader.cache(name, on_chunk)
        why = reader.how(name) if cached else f"not cached: {reader.cache_refusal}"
        render.say(f"{name}: {why}")
        refused += not cached
    if refused:
        raise typer.Exit(1)


def clear(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="[STORE]", help="Only copies of this store's arrays.", show_default=False
        ),
    ] = None,
    folder: Folder = None,
) -> None:
    """Remove decoded copies; stores stay, and running programs keep the copies that they read."""
    import kpstore

    cache = _cache(folder)
    opened = None if store is None else kpstore.open(store)
    versions = None if opened is None else set(_versions(opened))
    location = "" if opened is None else opened.location
    render.say(f"{render.size(cache.clear(versions, location))} freed")


def _versions(store: Store) -> list[str]:
    heads = {*store.branches.values(), *store.tags.values()}
    return [commit.id for head in heads for commit in store.backend.history(head)]
