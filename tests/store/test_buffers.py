"""Memory of results is used again, and never while somebody has it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

import kpstore
from kpstore.store.buffers import Buffers
from tests.views.test_loader import long_store

FLOATS = np.dtype(np.float32)
SHAPE = (256, 143, 3)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_that_nobody_has_is_given_out_again() -> None:
    buffers = Buffers()
    first = address(buffers.empty(SHAPE, FLOATS))
    assert address(buffers.empty(SHAPE, FLOATS)) == first


def test_batches_of_nearly_the_same_size_share_memory() -> None:
    buffers = Buffers()
    first = address(buffers.empty((256, 143, 3), FLOATS))
    smaller = buffers.empty((250, 143, 3), FLOATS)
    assert address(smaller) == first
    assert smaller.shape == (250, 143, 3)
    assert smaller.flags.c_contiguous
    assert smaller.flags.writeable


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[3:5],
        lambda array: array.view(np.int32).reshape(-1)[::7],
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[5].flatten(),
        memoryview,
        torch.from_dlpack,
    ],
    ids=["array", "rows", "view", "tensor", "part of a tensor", "memoryview", "dlpack"],
)
def test_memory_is_not_given_out_while_anything_refers_to_it(
    hold: Callable[[np.ndarray], object],
) -> None:
    buffers = Buffers()
    array = buffers.empty(SHAPE, FLOATS)
    first, held = address(array), hold(array)
    del array
    others = [buffers.empty(SHAPE, FLOATS) for _ in range(3)]
    assert first not in map(address, others)
    del held
    gc.collect()
    assert first in [
        address(other) for other in (buffers.empty(SHAPE, FLOATS), buffers.empty(SHAPE, FLOATS))
    ]


def test_small_large_and_text_results_are_arrays_of_their_own() -> None:
    buffers = Buffers()
    for shape, dtype in (
        ((4, 3), FLOATS),
        ((2**25,), np.dtype(np.uint8)),
        ((2**17,), np.dtype(object)),
        ((0, 3), FLOATS),
    ):
        array = buffers.empty(shape, dtype)
        assert array.base is None
        assert array.shape == shape


def test_no_more_is_kept_than_the_limit() -> None:
    size = 2**20
    buffers = Buffers(limit_bytes=4 * size)
    held = [buffers.empty((size,), np.dtype(np.uint8)) for _ in range(9)]
    assert len({address(array) for array in held}) == 9
    assert sum(map(len, buffers._kept)) <= 4 * size
    newest = address(held[-1])
    held.clear()
    assert newest in [
        address(array) for array in [buffers.empty((size,), np.dtype(np.uint8)) for _ in range(4)]
    ]


def test_threads_never_get_the_same_memory() -> None:
    buffers, wrong = Buffers(), []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for _ in range(300):
            array = buffers.empty((2**16,), np.dtype(np.uint8))
            array[:] = number
            again = buffers.empty((2**16,), np.dtype(np.uint8))
            again[:] = number
            if not ((array == number).all() and (again == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_kept_batches_of_a_loader_stay_as_they_were(memory_store: kpstore.Store) -> None:
    view = long_store(memory_store, (4000, 6000)).frames("points")
    kept = list(kpstore.loader(view, 2000))
    for _ in range(3):
        for batch in kpstore.loader(view, 2000, seed=1):
            batch["points"].fill_(-1)
    for batch in kept:
        assert (batch["points"][:, 0, 0] == batch["row"] * 100).all()
