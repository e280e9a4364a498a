"""Training on several machines: two that ``torchrun`` starts as such, on one."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import kpstore
from tests.processes import finish, start
from tests.store.data import LENGTHS, fill

N_FRAMES = sum(LENGTHS.values())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def train(store: str, folder: Path, *, nodes: int, per_node: int, batches: int) -> None:
    """Run the driver on machines, each with a cache of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes]
    torchrun += ["--nproc-per-node", per_node, "--rdzv-backend", "static"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", free_port()]
    commands = [
        [*torchrun, "--node-rank", node, "-m", "tests.views.nodes_driver", store, folder, batches]
        for node in range(nodes)
    ]
    envs = [{**os.environ, "KPSTORE_CACHE": str(folder / f"cache-{n}")} for n in range(nodes)]
    with start(commands[-1], env=envs[-1]) as other:
        done = finish(commands[0], env=envs[0]) if nodes > 1 else other
        _, err = other.communicate()
    assert (done.returncode, other.returncode) == (0, 0), err + str(done.stderr)


def rows_of(folder: Path, world_size: int) -> list[int]:
    found = [json.loads(path.read_text()) for path in folder.glob(f"rows-{world_size}-*.json")]
    assert [one["copies"] for one in found] == [1] * world_size
    return [row for one in found for batch in one["rows"] for row in batch]


def test_two_machines_read_each_frame_once_and_one_reads_the_rest(tmp_path: Path) -> None:
    store = kpstore.create(tmp_path / "s.kps")
    fill(store, done=("a", "b", "d"), compression="lz4")
    train(store.location, tmp_path, nodes=2, per_node=2, batches=1)
    begun = rows_of(tmp_path, 4)
    assert len(begun) == len(set(begun)) == 16
    train(store.location, tmp_path, nodes=1, per_node=2, batches=0)
    assert sorted(begun + rows_of(tmp_path, 2)) == list(range(N_FRAMES))
