"""A store that is served for reading alone: few requests, repeated where the server is busy."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kpstore
from tests.store.data import fill


@pytest.fixture
def near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kpstore.Store:
    """The store on the disk, from which it is served."""
    monkeypatch.setenv("KPSTORE_CACHE", str(tmp_path / "cache"))
    store = kpstore.create(tmp_path / "served" / "store.kps")
    return fill(store, done=("a", "b", "d"), chunk_rows=16)


@pytest.fixture(params=[0, 3])
def endpoint(request: pytest.FixtureRequest, near: kpstore.Store) -> Iterator[str]:
    """A server that is always ready, and one that is too busy for each third request."""
    folder = Path(near.location).parent
    command = [sys.executable, "-m", "benchmarks.slow_storage", str(folder)]
    more = ["--delay-ms", "1", "--busy-every", str(request.param)]
    with subprocess.Popen([*command, *more], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.kill()


def stats(endpoint: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{endpoint}/stats") as answer:
        return dict(json.load(answer))


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_all_is_read_and_each_chunk_once(near: kpstore.Store, endpoint: str, cache: str) -> None:
    far = kpstore.open(f"s3://bucket/store.kps?anonymous=true&endpoint={endpoint}", cache=cache)
    assert far.index.ids.tolist() == near.index.ids.tolist()
    view = far.frames("points")
    stats(endpoint)
    rows = {}
    for batch in kpstore.loader(view, 5, tensors=False):
        rows |= dict(zip(batch["row"].tolist(), batch["points"], strict=True))
    np.testing.assert_array_equal(np.stack([rows[i] for i in sorted(rows)]), near["points"][:])
    asked = stats(endpoint)
    assert asked["chunks"] == -(-34 // 16)
    video = far.video("d")["points"]
    np.testing.assert_array_equal(video, near.video("d")["points"])
    assert stats(endpoint)["chunks"] <= 3
