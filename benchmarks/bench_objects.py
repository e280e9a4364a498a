"""Stores in object storage that answers late: ``python -m benchmarks.bench_objects [--runs 3]``.

A server in another process answers each request after 20 ms; it serves, for reading alone, a store
of keypoints from a local disk. Beside kpstore, a plain loop fetches all chunk objects, and nothing
else, with as many threads as kpstore has requests at once.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.store import S3Store

import kpstore
from benchmarks import record
from kpstore.backends.object_reading import N_REQUESTS

DELAY_MS = 20
VIDEO_FRAMES, BATCH = 120, 256
ROW_BYTES = 143 * 3 * 4
CHUNK_BYTES = 1024 * ROW_BYTES + 4


def _make_store(place: Path, n_frames: int) -> None:
    """Write a store of keypoints that do not repeat."""
    store = kpstore.create(place)
    ids = [f"video-{number:05d}" for number in range(n_frames // VIDEO_FRAMES)]
    with store.transaction("keypoints") as tx:
        tx.add_videos(
            kpstore.VideoRecord(i, "train", [f"{i}/{n}.png" for n in range(VIDEO_FRAMES)])
            for i in ids
        )
        tx.add_feature("keypoints", {"extractor": "made up"})
        rng = np.random.default_rng(0)
        for video_id in ids:
            tx.write("keypoints", video_id, rng.random((VIDEO_FRAMES, 143, 3), dtype=np.float32))


class _Storage:
    """The server, seen from a client."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.address = f"s3://bucket/store.kps?anonymous=true&endpoint={self.endpoint}"

    def stats(self) -> dict[str, int]:
        """Return what was asked for since the last call."""
        with urllib.request.urlopen(f"{self.endpoint}/stats") as answer:
            return dict(json.load(answer))


@contextmanager
def _served(folder: Path) -> Iterator[_Storage]:
    command = [sys.executable, "-m", "benchmarks.slow_storage", folder, "--delay-ms", DELAY_MS]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, cwd=record.ROOT
    ) as server:
        assert server.stdout is not None
        try:
            yield _Storage(int(server.stdout.readline()))
        finally:
            server.kill()


def _plain_loop(storage: _Storage, names: list[str], into: bytearray | None = None) -> None:
    """Fetch objects, and put them into memory one after the other if it is given."""
    client = S3Store(
        "bucket",
        prefix="store.kps",
        endpoint=storage.endpoint,
        region="us-east-1",
        skip_signature=True,
        client_options={"allow_http": True},
    )

    def fetch(number: int) -> None:
        found = memoryview(obstore.get(client, names[number]).bytes())
        if into is not None:
            at = number * CHUNK_BYTES
            into[at : at + len(found)] = found

    with ThreadPoolExecutor(N_REQUESTS) as pool:
        list(pool.map(fetch, range(len(names))))


def _loop_and_batches(storage: _Storage, names: list[str]) -> None:
    """Fetch objects, and draw batches from them in memory, as a streamed epoch has to, too."""
    memory = bytearray(len(names) * CHUNK_BYTES)
    _plain_loop(storage, names, memory)
    rows = np.frombuffer(memory, dtype=np.float32)[: len(memory) // ROW_BYTES * (ROW_BYTES // 4)]
    rows = rows.reshape(-1, ROW_BYTES // 4)
    order = np.random.default_rng(0).permutation(len(rows))
    for first in range(0, len(rows), BATCH):
        rows.take(order[first : first + BATCH], axis=0)


def _epoch(store: kpstore.Store) -> None:
    for batch in kpstore.loader(store.frames("keypoints"), BATCH, tensors=False):
        batch["keypoints"]


def _timed(storage: _Storage, do: Callable[[], object]) -> dict[str, float]:
    storage.stats()
    began = time.perf_counter()
    do()
    return {"seconds": time.perf_counter() - began, **storage.stats()}


def _videos(store: kpstore.Store, storage: _Storage, count: int) -> list[dict[str, float]]:
    """Read videos at random by id, each from a store that is open."""
    chosen = np.random.default_rng(1).choice(store.index.ids, count, replace=False)
    return [
        _timed(storage, lambda video_id=video_id: store.video(video_id)["keypoints"])
        for video_id in chosen.tolist()
    ]


def run(folder: Path, *, n_frames: int, runs: int) -> dict[str, Any]:
    """Measure everything."""
    place = folder / "served" / "store.kps"
    place.parent.mkdir()
    _make_store(place, n_frames)
    files = (place / "chunks").iterdir()
    big = [f"chunks/{path.name}" for path in files if path.stat().st_size == CHUNK_BYTES]
    n_bytes = len(big) * CHUNK_BYTES
    found: dict[str, Any] = {"frames": n_frames, "chunk_bytes": n_bytes, "delay_ms": DELAY_MS}
    rows: dict[str, list[dict[str, float]]] = {}
    with _served(place.parent) as storage:
        for number in range(runs):
            os.environ["KPSTORE_CACHE"] = str(folder / f"cache-{number}")
            add = lambda name, one: rows.setdefault(name, []).append(one)  # noqa: E731
            add("plain loop", _timed(storage, lambda: _plain_loop(storage, big)))
            add(
                "plain loop, then batches", _timed(storage, lambda: _loop_and_batches(storage, big))
            )
            add("open", _timed(storage, lambda: kpstore.open(storage.address).index))
            store = kpstore.open(storage.address, cache="off")
            store.frames("keypoints")
            add("epoch, no copies", _timed(storage, lambda store=store: _epoch(store)))
            store = kpstore.open(storage.address)
            store.frames("keypoints")
            rows.setdefault("video by id", []).extend(_videos(store, storage, 10))
            os.environ["KPSTORE_CACHE"] = str(folder / f"copies-{number}")
            store = kpstore.open(storage.address)
            store.frames("keypoints")
            add("epoch, first with copies", _timed(storage, lambda store=store: _epoch(store)))
            again = kpstore.open(storage.address)
            again.frames("keypoints")
            add("epoch, later with copies", _timed(storage, lambda again=again: _epoch(again)))
    return found | {"rows": rows, "chunks": len(big)}


def tables(found: dict[str, Any]) -> dict[str, record.Table]:
    """Return a table of all steps."""
    base = statistics.median(one["seconds"] for one in found["rows"]["plain loop"])
    heads = ("", "ms", "of the plain loop's speed", "requests", "of chunks", "most at once")
    rows: list[tuple[object, ...]] = []
    for name, several in found["rows"].items():
        middle = {key: statistics.median(one[key] for one in several) for key in several[0]}
        whole = name.startswith(("epoch", "plain"))
        share = f"{base / middle['seconds']:.2f}" if whole else ""
        most = max(one["requests"] for one in several)
        rows.append(
            (
                name,
                f"{1e3 * middle['seconds']:.0f}",
                share,
                f"{most:.0f}" if name == "video by id" else f"{middle['requests']:.0f}",
                f"{middle['chunk_requests']:.0f}",
                f"{middle['most']:.0f}",
            )
        )
    return {"objects": [heads, *rows]}


def main() -> None:
    """Parse, run, print."""
    parser = record.parser(__doc__)
    parser.add_argument("--frames", type=int, default=240_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kpstore-bench-") as folder:
        found = run(Path(folder), n_frames=args.frames, runs=args.runs)
    record.finish(args, found, tables(found))


if __name__ == "__main__":
    main()
