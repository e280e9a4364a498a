"""Decoded chunks in memory that threads share: what an interrupt leaves behind stops nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kpstore.backends.chunks import NearChunks
from kpstore.store import arena as module
from kpstore.store.arena import ChunkArena

N_ROWS, CHUNK = 256, 4


class Numbered(NearChunks):
    """Chunks of their own numbers."""

    mapped = strips = None
    how = "made up"

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self._before = before

    def bring(self, number: int) -> None:
        raise NotImplementedError

    def read_into(self, number: int, out: NDArray[Any]) -> None:
        self._before()
        out[...] = number


def arena(chunks: Numbered) -> ChunkArena:
    return ChunkArena(chunks, (N_ROWS, 2), np.dtype("f4"), chunk_rows=CHUNK, row_bytes=8)


def gathered(of: ChunkArena) -> NDArray[np.float32]:
    out = np.empty((N_ROWS, 2), np.float32)
    of.gather(np.arange(N_ROWS), out)
    return out


WANTED = np.repeat(np.arange(N_ROWS // CHUNK), CHUNK)


def test_an_interrupt_does_not_cancel_the_reads_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go = threading.Event(), threading.Event()

    def pause() -> None:
        reading.set()
        go.wait()

    found: list[NDArray[np.float32]] = []
    other = threading.Thread(target=lambda: found.append(gathered(arena(Numbered(pause)))))
    wait, me = module.wait, threading.get_ident()

    def interrupted(futures: list[Future[None]]) -> object:
        if threading.get_ident() == me and not go.is_set():
            go.set()  # those that run have to end
            raise KeyboardInterrupt
        return wait(futures)

    monkeypatch.setattr(module, "wait", interrupted)
    monkeypatch.setattr(module, "_N_THREADS", 2)
    monkeypatch.setattr(module, "_threads", None)
    other.start()
    reading.wait()
    mine = arena(Numbered())
    with pytest.raises(KeyboardInterrupt):
        gathered(mine)
    other.join()
    np.testing.assert_array_equal(found[0][:, 0], WANTED)
    np.testing.assert_array_equal(gathered(mine)[:, 0], WANTED)


def test_what_an_interrupt_left_is_forgotten_when_its_thread_reads_again() -> None:
    of = arena(Numbered())
    gathered(of)
    left = module._Claim()
    of._claims[left] = np.arange(3)
    of._decoding[1] = left
    of._busy[0] = of._busy[2] = threading.get_ident()
    of._ready[:3] = False
    np.testing.assert_array_equal(gathered(of)[:, 0], WANTED)
    assert (of._claims, of._decoding, of._busy) == ({}, {}, {})


def test_a_chunk_that_cannot_be_decoded_leaves_the_others_readable() -> None:
    broken = [True]

    def fail() -> None:
        if broken.pop():
            raise ValueError("broken")
        broken.append(False)

    of = arena(Numbered(fail))
    with pytest.raises(ValueError, match="broken"):
        gathered(of)
    broken[:] = [False]
    np.testing.assert_array_equal(gathered(of)[:, 0], WANTED)
