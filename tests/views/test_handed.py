"""Batches handed over by worker processes: what arrives, through which memory, and who ends."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kpstore
from kpstore.errors import UnsupportedError
from kpstore.views import handed as module
from kpstore.views.handed import Handed, handed
from tests.processes import finish, start
from tests.views.test_loader import long_store
from tests.views.test_samples import same


def sent(batch: Any) -> Any:
    """Return what arrives where a batch is sent to."""
    return pickle.loads(pickle.dumps(Handed(batch)))


@pytest.fixture(autouse=True)
def no_blocks() -> None:
    module._blocks.clear()


BATCHES: dict[str, Any] = {
    "tensors": {"a": torch.rand(3, 2), "b": torch.arange(5), "c": torch.tensor([True, False])},
    "a number": torch.tensor(3.5),
    "nothing": {"a": torch.empty(0, 4), "b": np.empty((2, 0), dtype=np.int16)},
    "half": [torch.rand(4).half(), torch.rand(4).bfloat16(), torch.tensor([np.nan])],
    "turned": (torch.rand(3, 2, 4).contiguous(), np.arange(6).reshape(2, 3).T),
    "arrays": {"a": np.arange(4.0), "b": np.float32(3), "c": np.array(["a", "ü"])},
    "text": {"id": ["a", "b"], "t": np.array(["a", "b"], dtype=object), "n": None},
    "nested": [{"a": [torch.rand(2), (torch.rand(1), 3)]}, "x"],
    "the same twice": [torch.ones(3)] * 2,
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", BATCHES)
def test_what_arrives_is_what_was_handed_over(
    kind: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_can_share", lambda: shared)
    assert same(sent(BATCHES[kind]), BATCHES[kind])
    assert len(module._blocks) == shared


def test_tensors_that_numpy_lacks_arrive_with_their_content() -> None:
    sparse, needed = torch.eye(3).to_sparse(), torch.ones(2, requires_grad=True)
    found = sent([sparse, needed])
    assert torch.equal(found[0].to_dense(), torch.eye(3))
    assert found[1].requires_grad
    assert torch.equal(found[1], needed)


@pytest.mark.parametrize("shared", [True, False])
def test_what_arrives_can_be_written_and_stays_as_it_is(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_can_share", lambda: shared)
    kept = [sent({"a": torch.full((2, 3), i), "b": np.full(4, i)}) for i in range(5)]
    kept[0]["a"] += 10
    kept[0]["b"] += 10
    for i, batch in enumerate(kept[1:], 1):
        assert set(batch["a"].flatten().tolist()) == set(batch["b"].tolist()) == {i}


def test_memory_is_used_again_once_a_batch_was_taken_out() -> None:
    for size in (10, 1_000, 1):
        assert len(sent(torch.ones(size))) == size
    assert len(module._blocks) == 1
    waiting = [pickle.dumps(Handed(torch.full((100,), i))) for i in range(4)]
    assert len(module._blocks) == 4
    assert [int(pickle.loads(each)[99]) for each in waiting] == [0, 1, 2, 3]
    for _ in range(9):
        sent(torch.ones(3))
    assert len(module._blocks) == 4


def test_a_batch_that_is_never_taken_keeps_one_block_only() -> None:
    pickle.dumps(Handed(torch.ones(10)))  # e.g. Ctrl-C came while it was taken
    for _ in range(5):
        assert sent(torch.ones(10)).sum() == 10
    assert len(module._blocks) == 2


def test_a_batch_arrives_where_no_further_file_can_be_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert torch.equal(sent(torch.arange(4)), torch.arange(4))


def test_a_batch_of_a_process_that_has_ended_is_an_error_that_says_so() -> None:
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(here, pickle.dumps(Handed(torch.ones(100))))
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(UnsupportedError, match="the system ended a worker of the loader"):
        pickle.loads(os.read(there, 100_000))
    os.close(here)
    os.close(there)


def test_nothing_is_written_to_files_of_a_process_that_got_the_same_number(tmp_path: Path) -> None:
    mine = tmp_path / "file"
    mine.write_bytes(b"content")
    with mine.open() as file, pytest.raises(UnsupportedError):
        module._Place(os.getpid(), file.fileno(), [4]).take()
    assert mine.read_bytes() == b"content"


def test_a_fork_does_not_write_where_its_parent_writes() -> None:
    waiting = pickle.dumps(Handed(torch.ones(100)))
    pickle.loads(waiting)
    again = pickle.dumps(Handed(torch.full((100,), 2.0)))
    child = os.fork()
    if child == 0:
        sent(torch.zeros(100))
        os._exit(len(module._blocks))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert set(pickle.loads(again).tolist()) == {2.0}


def test_outside_of_a_worker_a_batch_stays_as_it_is() -> None:
    batch = {"a": torch.ones(2)}
    assert handed(batch) is batch


def test_what_cannot_be_pickled_is_an_error_where_it_was_made() -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        Handed({"a": lambda: None})


LOADERS = """
import sys
import torch
from multiprocessing.reduction import ForkingPickler
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils import fetch
import kpstore

sent = torch.multiprocessing.get_context("fork").Value("i", 0)

def counted(tensor, reduce=torch.multiprocessing.reductions.reduce_tensor):
    with sent.get_lock():
        sent.value += 1
    return reduce(tensor)

def collated(samples):
    batch = default_collate(samples)
    assert type(batch) is dict, type(batch)
    return torch.utils._pytree.tree_map(lambda item: item + 1, batch)

class Inside(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return next(iter(DataLoader(view, 4)))["row"]

def check(name, dataset, *args, expected, **how):
    sent.value = 0
    made = DataLoader(dataset, *args, num_workers=2, multiprocessing_context="fork", **how)
    found = [batch["row"] if isinstance(batch, dict) else batch for batch in made]
    assert torch.equal(torch.cat(found).flatten(), torch.tensor(expected)), found
    print(name, sent.value, flush=True)

view = kpstore.open(sys.argv[1]).frames("points")
rows = list(range(34))
ForkingPickler.register(torch.Tensor, counted)
check("view", view, 4, expected=rows)
check("pinned", view, 4, expected=rows, pin_memory=True)
check("collate", view, 4, expected=[row + 1 for row in rows], collate_fn=collated)
check("inside", Inside(), 2, expected=[0, 1, 2, 3] * 2)
own = kpstore.loader(view, 4, shuffle=None)
check("loader", own.dataset, expected=rows, sampler=own.sampler, batch_size=None)
own = kpstore.loader(view, 4, shuffle=None)
add = lambda batch: batch["row"] + 1
check("loader, collate", own.dataset, expected=[row + 1 for row in rows], sampler=own.sampler,
      batch_size=None, collate_fn=add)
own = kpstore.loader(view, 4, shuffle=None, drop_last=True)
check("loader, stacked", own.dataset, expected=rows[:32], sampler=own.sampler, batch_size=1)
# From Python 3.12 on, a list comprehension has no frame of its own.
exec(
    "def stack(self, indices): return self.collate_fn([*map(self.dataset.__getitem__, indices)])",
    vars(fetch),
)
fetch._MapDatasetFetcher.fetch = fetch.stack
own = kpstore.loader(view, 4, shuffle=None, drop_last=True)
check("loader, stacked", own.dataset, expected=rows[:32], sampler=own.sampler, batch_size=1)
"""


@pytest.mark.slow
def test_pytorch_sends_no_tensors_but_those_that_a_function_of_the_user_saw(tmp_path: Path) -> None:
    made = long_store(kpstore.create(tmp_path / "s.kps"), (5, 9, 20))
    done = finish([sys.executable, "-W", "ignore", "-c", LOADERS, made.location])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "view 0",
        "pinned 0",
        "collate 18",
        "inside 1",
        "loader 0",
        "loader, collate 9",
        "loader, stacked 16",
        "loader, stacked 16",
    ]


WAITING = """
import sys, time
import kpstore

def same(sample):
    return sample

def main():
    from torch.utils.data import DataLoader
    view = kpstore.open(sys.argv[1]).frames("points")
    if sys.argv[2] == "loader":
        view.transform = same
        batches = kpstore.loader(view, 8, workers=2)
    else:
        batches = DataLoader(view, 8, num_workers=1, multiprocessing_context=sys.argv[2])
    for batch in batches:
        print("has a batch", flush=True)
        while True:
            time.sleep(60)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loader", "forkserver", "spawn"])
def test_workers_and_their_fork_server_end_with_a_process_that_is_killed(
    tmp_path: Path, how: str
) -> None:
    made = long_store(kpstore.create(tmp_path / "s.kps"))
    (tmp_path / "script.py").write_text(WAITING)
    with start([sys.executable, tmp_path / "script.py", made.location, how]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "has a batch\n"
            process.kill()
            process.communicate()  # which waits until none of them holds the pipes any more
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == -signal.SIGKILL


def test_a_process_without_a_parent_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiprocessing.parent_process() is None
    module.end_with_parent()
