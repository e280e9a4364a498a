"""Ingests on faulty clusters that others started: ``python -m benchmarks.faults.cluster``.

Each attempt ingests made-up videos whose rows say which video and frame they are
(:mod:`benchmarks.faults.numbered`) with the workers of a hand-started scheduler: of 1 to 8 threads,
some with other code, another numpy, another copy of the store or no sight of the videos; and in the
middle of it one is killed, joins, goes blind, gets another store, or nothing happens. Whatever the
store then says is done has to be right, and a serial run has to complete the rest.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import kpstore
from benchmarks.faults.by_hand import ByHand, can_mount, change_view
from benchmarks.faults.numbered import (
    FEATURE,
    NumberedExtractor,
    NumberedSource,
    blind_file,
    expected_rows,
)
from kpstore.errors import KpstoreError
from kpstore.ingest.observer import SilentObserver
from kpstore.ingest.options import Options
from kpstore.ingest.report import Progress
from kpstore.ingest.run import run_ingest
from kpstore.schema.feature import State

Counts = dict[str, dict[str, int]]
OUTCOMES = ("survived", "lost_or_wrong", "unclear_message")

EVENTS = ("nothing", "killed", "late", "goes blind", "gets another store")
UNFIT = (
    "blind",
    "other kpstore",
    "other extractor",
    "other numpy",
    "another store",
    "writes elsewhere",
)


@dataclass
class Crowd:
    """The workers of one scheduler, which live through many attempts.

    A few of them are always replaced by others.

    Parameters
    ----------
    folder : holds ``videos``, ``stores``, and ``copies`` of stores, which a worker may take for the
        stores.
    """

    hands: ByHand
    folder: Path
    mounts: bool
    kinds: dict[str, str] = field(default_factory=dict)
    number: int = 0

    def fit(self) -> list[str]:
        """Names of workers with which nothing is wrong."""
        return [name for name, kind in self.kinds.items() if kind == "fit"]

    def add(self, kind: str, threads: int, *, wait: bool = True) -> str:
        """Start a worker of some kind."""
        self.number += 1
        name = f"{kind.replace(' ', '-')}-{self.number}"
        stores, copies = self.folder / "stores", self.folder / "copies"
        above, below = self.folder / f"above-{self.number}", self.folder / f"below-{self.number}"
        overlay = f"lowerdir={stores},upperdir={above},workdir={below}"
        mount = {
            "fit": "true" if self.mounts else "",
            "another store": f"mount --bind {copies} {stores}",
            "writes elsewhere": f"mkdir {above} {below} && "
            f"mount -t overlay overlay -o {overlay} {stores}",
        }.get(kind, "")
        path = {
            "other kpstore": lambda: self.hands.other_code("kpstore"),
            "other extractor": lambda: self.hands.other_code("extractor"),
            "other numpy": self.hands.other_numpy,
        }.get(kind, lambda: None)()
        process = self.hands.start(name, threads=threads, mount=mount, path=path, wait=False)
        if kind == "blind":
            self.blind(name)
        if wait:
            process.wait_for("Registered to:")
        self.kinds[name] = kind
        return name

    def remove(self, name: str) -> None:
        """Kill a worker."""
        self.hands.kill(name)
        del self.kinds[name]

    def blind(self, name: str) -> None:
        """Let a worker see no video any more."""
        (self.folder / "videos" / blind_file(name)).touch()

    def swap_store(self, name: str) -> None:
        """Let a worker see a copy of the stores from now on."""
        change_view(
            self.hands.workers[name],
            f"mount --bind {self.folder / 'copies'} {self.folder / 'stores'}",
        )


class AtFrame(SilentObserver):
    """Does something once, as soon as this many frames are done."""

    def __init__(self, frames: int, do: Callable[[], object]) -> None:
        self._frames, self._do, self._done = frames, do, False

    def on_progress(self, progress: Progress) -> None:
        """See how far it is."""
        if not self._done and progress.frames_done >= self._frames:
            self._done = True
            self._do()


def run(attempts: int, seed: int, folder: Path, journal: Path) -> Counts:
    """Return what came of the attempts, by what happened in their middle.

    Parameters
    ----------
    folder : for stores; emptied.
    journal : a line of JSON for each attempt; those that it holds already (of the same seed) are
        not made again.
    """
    known = (
        [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    )
    lines = {
        line["attempt"]: line
        for line in known
        if line["seed"] == seed and line["attempt"] < attempts
    }
    todo = [number for number in range(attempts) if number not in lines]
    if todo:
        with ByHand(folder) as hands, journal.open("a") as out:
            crowd = _crowd(hands, folder)
            for number in todo:
                lines[number] = _attempt(crowd, random.Random(f"{seed}/{number}"), number) | {
                    "seed": seed
                }
                out.write(json.dumps(lines[number]) + "\n")
                out.flush()
    return count(list(lines.values()))


def count(lines: list[dict[str, object]]) -> Counts:
    """Return counts by category."""
    counts: Counts = {}
    for line in lines:
        one = counts.setdefault(
            f"cluster: {line['event']}", dict.fromkeys(("attempts", *OUTCOMES), 0)
        )
        one["attempts"] += 1
        one[str(line["outcome"])] += 1
    return counts


def _crowd(hands: ByHand, folder: Path) -> Crowd:
    for name in ("videos", "stores", "copies"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    crowd = Crowd(hands, folder, can_mount())
    for threads in (4, 1):
        crowd.add("fit", threads, wait=False)
    for name in crowd.kinds:
        hands.workers[name].wait_for("Registered to:")
    return crowd


def _attempt(crowd: Crowd, chance: random.Random, number: int) -> dict[str, object]:
    began = time.monotonic()
    event = chance.choice(EVENTS if crowd.mounts else EVENTS[:-1])
    _prepare(crowd, chance)
    crowd_before = sorted(crowd.kinds.values())
    source = _source(crowd, chance)
    location = crowd.folder / "stores" / f"{number}.kps"
    kpstore.create(location)
    shutil.copytree(location, crowd.folder / "copies" / location.name)
    victim = chance.choice(crowd.fit())
    observer = AtFrame(
        chance.randrange(1, max(2, sum(source.lengths) * 2 // 3)),
        _what_happens(crowd, event, victim, chance),
    )
    options = Options(
        scheduler=crowd.hands.address, task_frames=chance.choice((1, 8, 24)), checkpoint_frames=60
    )
    message = ""
    try:
        run_ingest(source, location, NumberedExtractor(sleep_s=0.002), options, observer=observer)
    except KpstoreError as error:
        message = str(error)
    outcome, problem = _judge(location, source, message)
    if event in ("goes blind", "gets another store") and victim in crowd.kinds:
        crowd.remove(victim)
    for folder in ("stores", "copies"):
        shutil.rmtree(crowd.folder / folder / location.name, ignore_errors=True)
    return {
        "attempt": number,
        "event": event,
        "workers": crowd_before,
        "outcome": outcome,
        "problem": problem,
        "message": message,
        "seconds": round(time.monotonic() - began, 2),
    }


def _prepare(crowd: Crowd, chance: random.Random) -> None:
    """See that two workers are fit, and that something is wrong with others."""
    wrong = [name for name, kind in crowd.kinds.items() if kind != "fit"]
    if len(wrong) > 2:
        crowd.remove(chance.choice(wrong))
    while len(crowd.fit()) > 3:
        crowd.remove(chance.choice(crowd.fit()))
    while len(crowd.fit()) < 2:
        crowd.add("fit", chance.choice((1, 2, 4, 8)))
    if chance.random() < 0.4 or not wrong:
        kinds = UNFIT if crowd.mounts else UNFIT[:-2]
        crowd.add(chance.choice(kinds), chance.choice((1, 2, 4, 8)), wait=chance.random() < 0.5)


def _source(crowd: Crowd, chance: random.Random) -> NumberedSource:
    lengths = [chance.randrange(0, 16) for _ in range(chance.randrange(8, 24))]
    frames = [(video, frame) for video, length in enumerate(lengths) for frame in range(length)]
    bad = chance.sample(frames, min(len(frames), chance.choice((0, 0, 2))))
    unreadable = chance.sample(range(len(lengths)), chance.choice((0, 0, 0, 1)))
    return NumberedSource(lengths, crowd.folder / "videos", bad[:1], bad[1:], unreadable)


def _what_happens(
    crowd: Crowd, event: str, victim: str, chance: random.Random
) -> Callable[[], object]:
    threads = chance.choice((1, 2, 4, 8))
    return {
        "nothing": lambda: None,
        "killed": lambda: crowd.remove(victim),
        "late": lambda: crowd.add("fit", threads, wait=False),
        "goes blind": lambda: crowd.blind(victim),
        "gets another store": lambda: crowd.swap_store(victim),
    }[event]


def _judge(location: Path, source: NumberedSource, message: str) -> tuple[str, str]:
    """Return the outcome, and what is wrong if anything is."""
    if "\n" in message or len(message) > 1000:
        return "unclear_message", message
    problem = _wrong_rows(kpstore.open(location), source, everything=not message)
    if not problem and message:
        run_ingest(source, location, NumberedExtractor(sleep_s=0), Options(workers=0))
        problem = _wrong_rows(kpstore.open(location), source, everything=True)
    return ("lost_or_wrong", problem) if problem else ("survived", "")


def _wrong_rows(store: kpstore.Store, source: NumberedSource, *, everything: bool) -> str:
    """Return the first thing that a store calls done, or failed, and that is not so."""
    if FEATURE not in store.features:
        return "the feature is not there" if everything else ""
    if len(store.index) != len(source.lengths):
        return f"{len(store.index)} videos instead of {len(source.lengths)}"
    states, values, status = store.states(FEATURE), store[FEATURE][:], store[f"{FEATURE}_status"][:]
    for video in range(len(source.lengths)):
        position = store.index.position(f"v{video:03}")
        rows, expected = store.index.rows(position), expected_rows(source, video)
        if states[position] == State.PENDING:
            if everything:
                return f"video {video} is pending"
            continue
        if states[position] != (State.FAILED if video in source.unreadable else State.DONE):
            return f"video {video} is {State(states[position]).name}"
        if not np.array_equal(values[rows], expected, equal_nan=True):
            return f"video {video} holds other rows"
        if not np.array_equal(status[rows] == State.DONE, ~np.isnan(expected[:, 0])):
            return f"video {video} holds other states of frames"
    return ""


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attempts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "kpstore-faults-cluster"
    )
    args = parser.parse_args()
    logging.getLogger("kpstore").setLevel(logging.ERROR)
    args.folder.mkdir(parents=True, exist_ok=True)
    print(
        json.dumps(
            run(args.attempts, args.seed, args.folder, args.folder / "journal.jsonl"), indent=2
        )
    )


if __name__ == "__main__":
    main()
