"""Pickles read without running anything: plain values come back, all else is one line."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpstore.errors import InvalidError
from kpstore.interop.plain_values import from_json, to_json
from kpstore.interop.unpickling import load_pickle, loads_pickle
from tests.interop.formats import same

PLAIN = {
    "numbers": [1, -2.5, 2**70, True, None, float("inf")],
    "text": ("ü", b"\x00\xff", bytearray(b"xy"), {1, 2}, frozenset("a")),
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "turned": np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(1, 0, 2),
    "big-endian": np.arange(3, dtype=">i4"),
    "texts": np.array(["a", "bcd"]),
    "bools": np.array([True, False]),
    "none of it": np.empty((0, 143, 3), dtype=np.float32),
    "objects": np.array([{"face": None}, [1, 2]], dtype=object),
    "scalar": np.float64(0.5),
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, {"a": [1]}),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    found = load_pickle(path)
    for name, value in pickle.loads(
        path.read_bytes()
    ).items():  # numpy itself gives big-endian arrays as native ones
        assert same(found[name], value), name
    if protocol < 5:
        old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        if protocol < 4:  # later ones say how long a name is
            assert same(loads_pickle(old, "x")["f4"], PLAIN["f4"])


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "posix.system|nt.system"),
        (eval, "eval"),
        (getattr, "getattr"),
        (Path, "pathlib.*Path"),
    ],
)
def test_a_pickle_that_would_run_code_does_nothing(
    tmp_path: Path, protocol: int, function: Any, named: str
) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')" if function is eval else f"touch {mark}"
    hidden = {"train": {"keypoints": [None, Runs(function, code)]}}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(hidden, protocol))
    with pytest.raises(
        InvalidError, match=rf"x\.pkl: it asks for '.*({named})'.*runs no code"
    ) as caught:
        load_pickle(tmp_path / "x.pkl")
    assert "\n" not in str(caught.value)
    assert not mark.exists()


OBJECTS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR"
BAD = {
    "a memory layout of the file's own": OBJECTS
    + b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb0"
    + b"cnumpy.core.multiarray\n_reconstruct\n(NK\x00C\x01btR(K\x01K\x01\x85"
    + OBJECTS
    + b"\x89C\x08AAAAAAAAtb",
    "fields of the file's own": b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8\x89\x88tR",
    "a shape beyond the bytes": b"cnumpy.core.multiarray\n_reconstruct\n(NK\x00C\x01btR"
    + b"(K\x01\x8a\x08"
    + (2**62).to_bytes(8, "little")
    + b"\x85cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR\x89C\x08AAAAAAAAtb",
    "a maker that is changed": b"cnumpy\ndtype\n(N}X\x04\x00\x00\x00realX\x01\x00\x00\x00xstb",
    "nothing to take": b"u",
    "a persistent name": b"Pme\n",
    "an unknown memo": b"h\x07",
    "an extension": b"\x82\x01",
    "a negative shape": b"cnumpy._core.numeric\n_frombuffer\n(C\x04AAAA"
    + b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tRJ\xff\xff\xff\xff\x85X\x01\x00\x00\x00CtR",
}


@pytest.mark.parametrize("what", BAD)
def test_hostile_pickles_are_one_line(what: str) -> None:
    with pytest.raises(InvalidError) as caught:
        loads_pickle(b"\x80\x04" + BAD[what] + b".", "x.pkl")
    assert str(caught.value).startswith("x.pkl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "claim",
    [
        b"\x8e" + (2**60).to_bytes(8, "little"),
        b"\x96" + (2**40).to_bytes(8, "little"),
        b"B" + (2**32 - 1).to_bytes(4, "little"),
        b"\x95" + (2**50).to_bytes(8, "little"),
        b"Nr" + (2**31 - 1).to_bytes(4, "little"),
        b"Np2147483647\n",
    ],
)
def test_huge_claims_take_no_memory(claim: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidError, match=r"torn: byte [23]"):
        loads_pickle(b"\x80\x04" + claim + b"N.", "x.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@given(st.data())
def test_torn_pickles_are_one_line(data: st.DataObject) -> None:
    whole = pickle.dumps(PLAIN, data.draw(st.integers(0, 5)))
    torn = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(InvalidError, match=r"x\.pkl is torn"):
        loads_pickle(torn, "x.pkl")


@given(st.data())
def test_damaged_pickles_give_values_or_one_line(data: st.DataObject) -> None:
    whole = bytearray(pickle.dumps(PLAIN, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidError):
        loads_pickle(bytes(whole), "x.pkl")


def test_files_that_are_no_pickle(tmp_path: Path) -> None:
    for content, said in (
        (b"", "is empty"),
        (b"hello there", "no pickle|torn"),
        (pickle.dumps(1) * 2, "goes on"),
    ):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(InvalidError, match=said):
            load_pickle(tmp_path / "x.pkl")


def test_depth_does_not_matter() -> None:
    deep = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(loads_pickle(deep, "x"), list)
    with pytest.raises(InvalidError, match="too deep"):
        to_json(loads_pickle(deep, "x"), "x['stats']")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.builds(np.float32, st.floats(width=32))
    | st.builds(lambda n: np.arange(n).reshape(n, 1), st.integers(0, 3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3
        )
        | st.dictionaries(st.just("$tuple"), inner)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_plain_values_survive_json(value: Any) -> None:
    import json

    assert same(from_json(json.loads(json.dumps(to_json(value, "x"), allow_nan=False))), value)


def test_what_is_not_plain_is_named() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value, said in (
        (loop, "too deep"),
        ([[0] * 1000] * 1000, "too large"),
        (object(), "holds a object"),
    ):
        with pytest.raises(InvalidError, match=rf"x\['stats'\].*{said}"):
            to_json(value, "x['stats']")


def test_an_array_whose_contents_are_set_twice_is_refused() -> None:
    """Rows taken in between would lie in memory that the second state frees."""
    array = np.arange(4096, dtype=np.uint8)
    state = pickle.dumps(array, 2)
    build = state[state.index(b"(K\x01") : state.rindex(b"b") + 1]
    twice = state[: state.rindex(b"b") + 1] + build.replace(b"q\x03", b"q\x63") + b"."
    with pytest.raises(InvalidError, match="contents of an array twice"):
        loads_pickle(twice, "twice.pkl")


@pytest.mark.parametrize("maker", ["str", "tuple", "float", "repr"])
def test_what_makes_much_of_little_is_not_there(maker: str) -> None:
    called = b"\x80\x02c__builtin__\n" + maker.encode() + b"\n](K\x01K\x02e\x85R."
    with pytest.raises(InvalidError, match=f"builtin__.{maker}"):
        loads_pickle(called, "called.pkl")


def test_bytes_of_arrays_do_not_count_as_containers(tmp_path: Path) -> None:
    picture = np.full((3, 1500, 1500), ord("("), np.uint8)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"picture": picture}))
    found = load_pickle(tmp_path / "x.pkl")
    assert isinstance(found, dict)
    assert np.array_equal(found["picture"], picture)
