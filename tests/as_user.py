"""Works on a store as another user: ``python -m tests.as_user USER GROUP WORK PLACE ARGUMENTS``.

The interpreter may lie where only root can read, so the work is done twice: by root in a folder of
its own, which loads whatever is needed, and then by the user.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import kpstore
from kpstore.cli.main import run
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from tests.fakes import FakeExtractor, FakeSource


def ingest(store: Path, n_videos: str) -> None:
    """Ingest some videos, tag the version, and commit a small change."""
    source = FakeSource({f"v{number}": 12 for number in range(int(n_videos))})
    run_ingest(source, store, FakeExtractor(chunk_rows=8), Options(workers=0, task_frames=24))
    opened = kpstore.open(store, mode="a")
    opened.tag(f"after-{n_videos}")
    with opened.transaction("labels") as tx:
        tx.set_splits({"v0": "dev" if int(n_videos) % 4 else "test"})


def look(place: Path, name: str) -> None:
    """Run every command that only looks; ``cache`` lies beside the store."""
    store, other = place / name, place / "o.kps"
    for words in (
        ["progress", store],
        ["progress", store, "--watch"],
        ["progress", store, "--json"],
        ["info", store],
        ["log", store],
        ["stats", store, "--feature", "points"],
        ["verify", store, "--all"],
        ["splits", "check", store],
        ["diff", store, other],
        ["cache", "list", "--cache", place / "cache"],
    ):
        print("==", *words[:1], run([str(word) for word in words]), flush=True)


def change(place: Path, name: str) -> None:
    """Run commands that change a store."""
    store = place / name
    for words in (
        ["tag", store, "v1"],
        ["splits", "set", store, place / "splits.csv"],
        ["rollback", store, "--to", "after-3"],
        ["gc", store, "--yes"],
        ["remove", store, "--video", "v0"],
        ["remove", store, "--video", "v0", "--everywhere", "--yes"],
    ):
        run([str(word) for word in words])


def clear(place: Path) -> None:
    """Clear the cache."""
    print(run(["cache", "clear", "--cache", str(place / "cache")]))


WORK: dict[str, Callable[..., None]] = {
    work.__name__: work for work in (ingest, look, change, clear)
}


def main(user: str, group: str, work: str, place: str, *arguments: str) -> None:
    """Do some work, as root and as a user."""
    with tempfile.TemporaryDirectory() as aside:
        if work == "ingest":
            ingest(Path(aside) / Path(place).name, "1")
        else:
            shutil.copytree(place, aside, dirs_exist_ok=True)
            WORK[work](Path(aside), *arguments)
    os.setgroups([int(group)])
    os.setgid(int(user))
    os.setuid(int(user))
    print("-- as the user")
    WORK[work](Path(place), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
