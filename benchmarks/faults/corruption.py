"""Damage stores at random: reads are equal or an error in one line, or verify finds it.

``python -m benchmarks.faults.corruption --backend icechunk --attempts 1000 --seed 0 --folder DIR``

Each attempt copies a store of several versions, features and codecs, damages one thing in it, and
reads its newest version, an older one and a tag. Of each fourth attempt the newest version is
repaired and ingested again, and has to hold the bits of an undisturbed run. What was tried is in a
journal in the folder: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kpstore
from benchmarks.faults.damage import damage
from kpstore.errors import KpstoreError
from kpstore.extractors.base import Extracted
from kpstore.ingest.options import Options
from kpstore.ingest.run import run_ingest
from kpstore.inspect.verify import verify, verify_all
from kpstore.schema.feature import ArraySpec, Compression, FeatureRows, FeatureSpec
from kpstore.schema.index import VideoRecord
from kpstore.sources.base import FrameError, Listing
from kpstore.store.repair import repair

SUFFIXES = {"icechunk": ".kps", "hdf5": ".h5"}
SURVIVED = ("equal", "error", "found")
_REPAIRED = 4
"""One in this many attempts is repaired."""
_LIMIT_S = 120.0
"""After which an attempt counts as one that never ends."""
_SERIAL = Options(workers=0, checkpoint_frames=60)


# -- a store that can be made again ----------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Videos whose frames are noise from a seed.

    Some frames cannot be read, and one whole video.
    """

    lengths: Mapping[str, int]
    name: str = "numbers"
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"kind": "numbers"})

    def scan(self, on_video: Callable[[int], None] | None = None) -> Listing:
        """List the videos."""
        videos = []
        for number, (video_id, n_frames) in enumerate(self.lengths.items()):
            paths = tuple(f"{video_id}/images{frame:04d}.png" for frame in range(n_frames))
            notes = {"gloss": f"GLOSS {number}", "text": f"für {video_id}"}
            videos.append(
                VideoRecord(
                    video_id, ("train", "dev", "test")[number % 3], paths, 25.0, 8, 6, notes
                )
            )
        return Listing(tuple(videos))

    def read_frames(
        self, video: VideoRecord, *, skip: Any = ()
    ) -> Iterator[NDArray[np.uint8] | FrameError]:
        """Yield noise, or what is wrong with a frame."""
        if video.id == "blind":
            raise OSError("the disk said no")
        for number in range(video.n_frames):
            rng = np.random.default_rng([number, *video.id.encode()])
            torn = number in skip or rng.random() < 0.02
            yield (
                FrameError("truncated") if torn else rng.integers(0, 250, (6, 8, 3), dtype=np.uint8)
            )


@dataclass
class Sums:
    """A feature of frames with a companion, and one of videos.

    What a frame gives depends on those before it.
    """

    compression: Compression = "raw"
    batch_size: int = 1
    typical_fps: float = 10_000.0

    @property
    def _name(self) -> str:
        return f"sums_{self.compression}"

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """The two features."""
        seen = ArraySpec("detected", (2,), ("part",), "bool")
        values = FeatureSpec(
            self._name,
            (16, 8),
            ("point", "space"),
            labels={"space": tuple("abcdefgh")},
            companions=(seen,),
            chunk_rows=32,
            compression=self.compression,
        )
        return values, FeatureSpec(f"{self._name}_first", (4,), ("x",), axis="video", chunk_rows=4)

    @property
    def provenance(self) -> Mapping[str, Mapping[str, Any]]:
        """How both are made."""
        return {
            spec.name: {"extractor": "sums", "compression": self.compression} for spec in self.specs
        }

    def open(self, device: str = "cpu") -> None:
        """Need nothing."""

    def start_video(self, reference: NDArray[np.uint8] | None = None) -> Mapping[str, FeatureRows]:
        """Forget the video before."""
        self._sum = np.zeros(128, dtype=np.float32)
        return {f"{self._name}_first": FeatureRows(np.full((1, 4), 7, dtype=np.float32))}

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> Extracted:
        """Return rows."""
        rows = self.specs[0].empty_rows(len(images))
        for number, image in enumerate(images):
            self._sum = 0.5 * self._sum + image.reshape(-1)[:128].astype(np.float32) / 50
            rows.values[number] = self._sum.reshape(16, 8)
            rows.companions["detected"][number] = image[0, 0, :2] % 2
        return Extracted({self._name: rows})

    def close(self) -> None:
        """Need nothing."""


LENGTHS = {"a": 40, "b": 7, "none": 0, "c": 90, "blind": 5, "d": 33, "e": 64}


def make_again(location: str) -> None:
    """Ingest all videos; what is there already stays."""
    for compression in ("raw", "lz4"):
        run_ingest(Numbers(LENGTHS), location, Sums(compression), _SERIAL)


def make_store(location: str) -> None:
    """Make a store of several versions: the first videos, a tag, other splits, the other videos."""
    few = {video_id: LENGTHS[video_id] for video_id in ("a", "b", "none")}
    run_ingest(Numbers(few), location, Sums("raw"), _SERIAL)
    kpstore.open(location, mode="a").tag("first")
    with kpstore.open(location, mode="a").transaction("other splits") as tx:
        tx.set_splits({"a": "dev"})
    make_again(location)


# -- reading as people do --------------------------------------------------------------------------


def readings(
    location: str, versions: Sequence[str | None]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is read, by name: calls that people make, on each of some versions."""
    yield "tags", lambda: kpstore.open(location, cache="off").tags
    yield "branches", lambda: kpstore.open(location, cache="off").branches
    for at in versions:
        opened: list[kpstore.Store] = []

        def store(at: str | None = at, opened: list[kpstore.Store] = opened) -> kpstore.Store:
            if not opened:
                opened.append(kpstore.open(location, at, cache="off"))
            return opened[0]

        calls: dict[str, Callable[[kpstore.Store], Any]] = {
            "features": lambda s: [
                [n, f.spec.to_json(), dict(f.provenance)] for n, f in s.features.items()
            ],
            "videos": lambda s: s.videos.to_csv(),
            "history": lambda s: [
                [c.id, c.message, c.time.isoformat(), dict(c.metadata)] for c in s.history()
            ],
            "failures": lambda s: [str(f) for f in s.failures("sums_raw")],
            "a video": lambda s: (
                s.video("a")["sums_raw"],
                s.video("a").image_paths,
                s.video("a").annotations,
            ),
            "a batch": lambda s: s.frames(["sums_raw", "sums_raw_detected"], missing="nan").batch(
                range(0, 40, 3)
            ),
        }
        for name, call in calls.items():
            yield f"{at}: {name}", lambda call=call, store=store: call(store())
        for name in ARRAYS if at is None else [name for name in ARRAYS if "lz4" not in name]:
            yield f"{at}: array {name}", lambda name=name, store=store: store()[name][:]


ARRAYS = (
    *(
        "video_id",
        "split",
        "n_frames",
        "fps",
        "width",
        "height",
        "gloss",
        "text",
        "image_path",
        "space",
    ),
    *(
        f"sums_{c}{end}"
        for c in ("raw", "lz4")
        for end in ("", "_detected", "_status", "_state", "_failure")
    ),
    *(f"sums_{c}_first{end}" for c in ("raw", "lz4") for end in ("", "_state", "_failure")),
)


def digest(found: Any) -> str:
    """Return a hash of whatever a reading gave, bit for bit."""
    if isinstance(found, Mapping):
        found = [[key, digest(value)] for key, value in found.items()]
    elif isinstance(found, tuple):
        found = [digest(value) for value in found]
    elif isinstance(found, np.ndarray):
        found = (
            found.tolist()
            if found.dtype == object
            else [found.dtype.str, found.shape, found.tobytes().hex()]
        )
    return hashlib.sha256(json.dumps(found, default=str, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Reading:
    """What reading a store gave: digests by name, errors in one line, and what is neither."""

    digests: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, str] = field(default_factory=dict)


def read_store(location: str, versions: Sequence[str | None]) -> Reading:
    """Read all that people read."""
    found = Reading()
    for name, call in readings(location, versions):
        said = _try(call)
        if isinstance(said, _Said):
            (found.unclear if said.unclear else found.errors)[name] = said.text
        else:
            found.digests[name] = digest(said)
    return found


@dataclass(frozen=True)
class _Said:
    """An error, and whether it is not kpstore's, or longer than a line."""

    text: str
    unclear: bool


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except KpstoreError as error:
        return _Said(str(error), "\n" in str(error) or not str(error))
    except Exception as error:  # the very thing that is looked for
        return _Said(f"{type(error).__name__}: {error}", True)


# -- one attempt -----------------------------------------------------------------------------------


def attempt(
    base: str, number: int, seed: int, versions: Sequence[str | None], wanted: Mapping[str, str]
) -> dict[str, Any]:
    """Damage a copy of a store and return what came of it, as JSON values."""
    rng = random.Random(f"{seed}-{number}")
    with tempfile.TemporaryDirectory(prefix="kpstore-faults-") as folder:
        shutil.copytree(base, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        location = str(next(Path(folder).glob("store.*")))
        done = {"attempt": number, "what": damage(Path(folder), rng)}
        done |= _judged(location, versions, wanted)
        if number % _REPAIRED == 0 and done["outcome"] in SURVIVED:
            done |= _mended(location, wanted, done["outcome"])
    gc.collect()  # files of damaged stores stay open in tracebacks
    return done


def _judged(
    location: str, versions: Sequence[str | None], wanted: Mapping[str, str]
) -> dict[str, Any]:
    found = read_store(location, versions)
    if found.unclear:
        return {
            "outcome": "unclear",
            "detail": next(iter(f"{k}: {v}" for k, v in found.unclear.items())),
        }
    wrong = [name for name, value in found.digests.items() if value != wanted[name]]
    if not wrong:
        return (
            {"outcome": "error", "detail": next(iter(found.errors.values()))}
            if found.errors
            else {"outcome": "equal"}
        )
    told = _try(lambda: verify_all(location).problems)
    if isinstance(told, _Said):
        return {
            "outcome": "unclear" if told.unclear else "found",
            "detail": f"{wrong}: {told.text}",
        }
    if told:
        return {
            "outcome": "found",
            "detail": f"{wrong}: {told[0].array} {told[0].what} {told[0].where}",
        }
    return {
        "outcome": "wrong",
        "detail": f"read otherwise than written, and verify --all finds nothing: {wrong}",
    }


def _mended(location: str, wanted: Mapping[str, str], before: str) -> dict[str, Any]:
    """Repair and ingest; what is then called whole has to be it, bit for bit."""
    done = _try(lambda: repair(location))
    if isinstance(done, _Said):
        return (
            {"outcome": "unclear", "detail": f"repair: {done.text}"}
            if done.unclear
            else {"mended": "refused"}
        )
    if done.left:
        return {"mended": "left"}
    again = _try(lambda: make_again(location))
    if isinstance(again, _Said):
        return (
            {"outcome": "unclear", "detail": f"ingest: {again.text}"}
            if again.unclear
            else {"mended": "refused"}
        )
    if _try(lambda: verify(kpstore.open(location, cache="off")).problems) != []:
        return {"mended": "refused"}
    found = {
        f"None: array {name}": _try(lambda name=name: kpstore.open(location, cache="off")[name][:])
        for name in ARRAYS
    }
    wrong = [
        name
        for name, values in found.items()
        if isinstance(values, _Said) or digest(values) != wanted[name]
    ]
    if wrong:
        return {"outcome": "wrong", "detail": f"after repair and ingest: {wrong} ({before} before)"}
    return {"mended": "whole" if done.made else "nothing to mend"}


# -- many attempts ---------------------------------------------------------------------------------


def run(
    backend: str, attempts: int, seed: int, folder: Path, *, workers: int = 1
) -> dict[str, int]:
    """Make attempts, counting those in the folder's journal, and return their outcomes.

    Returns
    -------
    dict
        ``attempts``, ``survived`` (read equal, an error, or found by ``verify --all``),
        ``lost_or_wrong`` and ``unclear_message`` (an error that is not kpstore's or longer than
        a line, a crash, or no end).
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"corruption-{backend}-{seed}.jsonl"
    base, about = prepare(folder, backend)
    known = {entry["attempt"] for entry in entries_of(journal)}
    todo = iter([number for number in range(attempts) if number not in known])
    with journal.open("a", encoding="utf-8") as file:
        for entry in _attempted(todo, workers, str(base), seed, about):
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
    return counts(entries_of(journal))


def prepare(folder: Path, backend: str) -> tuple[Path, dict[str, Any]]:
    """Return a folder with a sound store, made once, and what reading it gives."""
    base, about = folder / f"base-{backend}", folder / f"base-{backend}.json"
    if not about.exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        location = str(base / f"store{SUFFIXES[backend]}")
        make_store(location)
        older = next(c.id for c in kpstore.open(location).history() if c.message == "other splits")
        versions = [None, older, "first"]
        found = read_store(location, versions)
        if found.errors or found.unclear or verify_all(location).problems:
            raise SystemExit(
                f"a sound store does not read well: {found.errors or found.unclear or 'see verify'}"
            )
        about.write_text(json.dumps({"versions": versions, "wanted": found.digests}))
    return base, json.loads(about.read_text())


def _attempted(
    todo: Iterator[int], workers: int, base: str, seed: int, about: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Make attempts in processes of their own, so that a crash is an outcome and not the end."""
    pools = [_Lane(base, seed, about) for _ in range(workers)]
    try:
        while True:
            started = [lane for lane in pools if lane.start(todo)]
            if not started:
                return
            for lane in started:
                yield lane.finish()
    finally:
        for lane in pools:
            lane.stop()


class _Lane:
    """One process that makes one attempt after the other; a new one if it dies."""

    def __init__(self, base: str, seed: int, about: Mapping[str, Any]) -> None:
        self._arguments = base, seed, about
        self._pool: ProcessPoolExecutor | None = None

    def start(self, todo: Iterator[int]) -> bool:
        number = next(todo, None)
        if number is None:
            return False
        base, seed, about = self._arguments
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            # What cannot be read is told of in the log as well, again and again.
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=logging.disable)
        self._number = number
        self._future = self._pool.submit(
            attempt, base, number, seed, about["versions"], about["wanted"]
        )
        return True

    def finish(self) -> dict[str, Any]:
        try:
            return self._future.result(_LIMIT_S)
        except (BrokenProcessPool, TimeoutError) as error:
            self.stop()
            what = "crash" if isinstance(error, BrokenProcessPool) else "no end"
            return {"attempt": self._number, "outcome": "unclear", "detail": what}

    def stop(self) -> None:
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()  # shutdown would wait for one that never ends
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def entries_of(journal: Path) -> list[dict[str, Any]]:
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def counts(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many attempts came to what."""
    outcomes = Counter(entry["outcome"] for entry in entries)
    return {
        "attempts": len(entries),
        "survived": sum(outcomes[name] for name in SURVIVED),
        "lost_or_wrong": outcomes["wrong"],
        "unclear_message": outcomes["unclear"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=sorted(SUFFIXES), required=True)
    parser.add_argument("--attempts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began = time.perf_counter()
    found = run(given.backend, given.attempts, given.seed, given.folder, workers=given.workers)
    entries = entries_of(given.folder / f"corruption-{given.backend}-{given.seed}.jsonl")
    outcomes = Counter(entry["outcome"] for entry in entries)
    mended = Counter(entry["mended"] for entry in entries if "mended" in entry)
    print(
        json.dumps(
            {
                **found,
                "outcomes": outcomes,
                "mended": mended,
                "seconds": round(time.perf_counter() - began),
            }
        )
    )


if __name__ == "__main__":
    main()
