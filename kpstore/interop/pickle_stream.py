"""Reading pickles of plain values, arrays and torch's tensors item by item, without running them.

:mod:`kpstore.interop.unpickling` reads a whole pickle with Python's own unpickler. For a list
larger than memory, each item must be handed out, and forgotten, as soon as it is made. Moreover,
pickled tensors ask for ``torch.load``, which would run what they name.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import VALUE_BYTES, MemoryBudget
from kpstore.errors import DAMAGE
from kpstore.interop.unpickling import ARRAY_MAKERS, PlainArray, PlainDtype

UNREADABLE = (OSError, *DAMAGE)
"""Errors that the machine raises for a damaged file, or one that is not such a pickle."""
_LARGEST = 2**30
"""Bytes of the largest value in a file: a quarter of a million frames of a thousand numbers."""
_SMALL = 2**16
_LONGEST_LINE = 2**20
_MOST_ABOUT = 2**20
"""Memory of what is said of a tensor before its numbers."""


class Tensor(np.ndarray):
    """An array that was a tensor."""


def _rebuild_tensor(
    storage: NDArray[np.generic],
    offset: int,
    size: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool = False,
    hooks: object = None,
    marks: object = None,
) -> NDArray[np.generic]:
    if marks:  # of lazy operations, whose numbers are stored as they were before
        raise ValueError(
            f"a tensor that is yet to be changed ({marks}); save tensor.resolve_neg() instead"
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size:
        return np.empty(tuple(size), storage.dtype).view(Tensor)
    if min((offset, *stride)) < 0 or min(size, default=1) < 0 or last >= len(storage):
        raise ValueError(f"a tensor of shape {tuple(size)} in {len(storage)} numbers")
    if math.prod(size) > len(storage):
        raise ValueError(
            f"a tensor of shape {tuple(size)} that repeats {len(storage)} numbers; save a copy of "
            "it"
        )
    steps = [step * storage.itemsize for step in stride]
    strided = np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), steps, writeable=False)
    return strided.copy().view(Tensor)


def _load_storage(data: bytes) -> NDArray[np.generic]:
    """Read one storage in the old format of ``torch.save``, which pickled tensors have.

    It is five pickles (magic number, protocol, facts about the machine, description and key of the
    storage), the count of its numbers (int64), and the numbers.
    """
    file = io.BytesIO(data)
    budget = MemoryBudget("a tensor", 0, _MOST_ABOUT, fixed=True)
    magic, _, machine, described, _ = (DataMachine(file, budget).load() for _ in range(5))
    if magic != 0x1950A86A20F9469CFC6C or not machine["little_endian"]:
        raise ValueError("a tensor that this machine cannot read")
    kind, dtype, *_ = described
    if kind != "storage" or not isinstance(dtype, PlainDtype):
        raise ValueError("a tensor without numbers")
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(data, dtype.real, count, file.tell())


_STORAGES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_KNOWN: dict[tuple[str, str], object] = {
    **ARRAY_MAKERS,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    **{("torch", f"{name}Storage"): PlainDtype(np.dtype(code)) for name, code in _STORAGES.items()},
}
_CALLED: tuple[object, ...] = tuple(maker for maker in _KNOWN.values() if callable(maker))
_PLAIN = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    )
)
"""Names of opcodes whose argument is a value by itself."""
_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_OPEN = (list, dict, tuple, np.ndarray)
"""Types of values that keep others in memory, or much memory themselves."""
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


def fetched(file: IO[bytes], budget: MemoryBudget) -> set[int]:
    """Return the numbers by which a pickle fetches values that it has made before."""
    found: set[int] = set()
    for number, (code, arg, _) in enumerate(pickletools.genops(file), start=1):
        # Before anything is made, as a few packed bytes can be a billion steps.
        budget.check(number * VALUE_BYTES, "its values")
        if code.name in _GETS and arg is not None:
            found.add(int(arg))
    return found


class DataMachine:
    """Carries out the steps of a pickle that make data, and knows no others.

    Parameters
    ----------
    file : the pickle.
    budget : of the file.
    keep : the result of :func:`fetched`; other values are forgotten once they are handed out.
    """

    def __init__(
        self, file: IO[bytes], budget: MemoryBudget, keep: Collection[int] | None = None
    ) -> None:
        self._file, self._budget, self._keep = file, budget, keep
        self._taken, self._keeps_all = 0, False
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._memoized = 0

    def load(self) -> Any:
        """Return what the pickle holds."""
        for code, arg, _ in pickletools.genops(self._file):
            self._step(code.name, arg)
        return self._stack.pop()

    def items(self) -> Iterator[object]:
        """Yield the items of the list that the pickle holds, each as soon as it is complete."""
        for code, arg, _ in pickletools.genops(self._file):
            stack = self._stack
            if code.name == "APPEND" and not self._marks and len(stack) == 2:
                yield from self._handed_out(self._pop(1))
            elif code.name == "APPENDS" and self._marks == [1]:
                yield from self._handed_out(self._pop_mark())
            else:
                if code.name == "EMPTY_DICT" and self._marks == [1] and len(stack) > 1:
                    # A pickle makes a thousand items before it appends them.
                    yield from self._handed_out(self._pop(len(stack) - 1))
                self._step(code.name, arg)
        (found,) = self._stack
        if not isinstance(found, list):
            raise ValueError(f"it holds a {type(found).__name__}, not a list")
        yield from found

    def _handed_out(self, items: list[Any]) -> list[Any]:
        if not self._keeps_all:
            self._taken = len(self._memo) * VALUE_BYTES
        return items

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise ValueError("it takes more than it has made")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _pop_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - self._marks.pop())

    def _put(self, number: int) -> None:
        if self._keep is None or number in self._keep:
            self._memo[number] = self._stack[-1]
            self._keeps_all |= isinstance(self._stack[-1], _OPEN)

    def _step(self, name: str, arg: Any) -> None:
        self._taken += VALUE_BYTES + (len(arg) if isinstance(arg, str | bytes | bytearray) else 0)
        self._budget.check(self._taken, "its values")
        if name in _PLAIN:
            self._stack.append(arg)
        elif name in _MADE:
            self._stack.append(_MADE[name]())
        elif name in _PUTS:
            self._put(int(arg))
        elif name in _GETS:
            self._stack.append(self._memo[int(arg)])
        elif name in _STEPS:
            _STEPS[name](self, arg)
        else:
            raise ValueError(f"it has {name}, which makes more than data")

    def _memoize(self) -> None:
        self._put(self._memoized)
        self._memoized += 1

    def _set(self, items: list[Any]) -> None:
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _make_dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set(items)

    def _extend(self, items: list[Any]) -> None:
        self._stack[-1].extend(items)

    def _find(self, module: str, name: str) -> None:
        if (module, name) not in _KNOWN:
            raise ValueError(
                f"it asks for {module}.{name}, which is neither text, a number, an array nor a "
                "tensor"
            )
        self._stack.append(_KNOWN[module, name])

    def _reduce(self) -> None:
        call, given = self._pop(2)
        if call not in _CALLED or not isinstance(given, tuple):
            raise ValueError("it calls something that makes no data")
        self._stack.append(call(*given))

    def _build(self) -> None:
        (state,) = self._pop(1)
        made = self._stack[-1]
        if not isinstance(made, PlainDtype | PlainArray) or any(
            made is shared for shared in _KNOWN.values()
        ):
            raise ValueError(f"it sets the state of a {type(made).__name__}")
        made.__setstate__(state)


_STEPS: dict[str, Callable[[DataMachine, Any], None]] = {
    # Of BINPERSID the description of a tensor's storage stays, in the place of the storage.
    **dict.fromkeys(("PROTO", "FRAME", "STOP", "BINPERSID"), lambda machine, arg: None),
    "MARK": lambda machine, arg: machine._marks.append(len(machine._stack)),
    "MEMOIZE": lambda machine, arg: machine._memoize(),
    "TUPLE": lambda machine, arg: machine._stack.append(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, arg: machine._stack.append(tuple(machine._pop(1))),
    "TUPLE2": lambda machine, arg: machine._stack.append(tuple(machine._pop(2))),
    "TUPLE3": lambda machine, arg: machine._stack.append(tuple(machine._pop(3))),
    "LIST": lambda machine, arg: machine._stack.append(machine._pop_mark()),
    "DICT": lambda machine, arg: machine._make_dict(),
    "APPEND": lambda machine, arg: machine._extend(machine._pop(1)),
    "APPENDS": lambda machine, arg: machine._extend(machine._pop_mark()),
    "SETITEM": lambda machine, arg: machine._set(machine._pop(2)),
    "SETITEMS": lambda machine, arg: machine._set(machine._pop_mark()),
    "GLOBAL": lambda machine, arg: machine._find(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, arg: machine._find(*machine._pop(2)),
    "REDUCE": lambda machine, arg: machine._reduce(),
    "BUILD": lambda machine, arg: machine._build(),
}


class BoundedFile:
    """A file that refuses to read large values, as a few packed bytes can claim gigabytes."""

    def __init__(self, file: IO[bytes], budget: MemoryBudget) -> None:
        self._file, self._budget = file, budget

    def read(self, n_bytes: int) -> bytes:
        """Return this many bytes, or fewer at the end of the file."""
        if n_bytes > _SMALL:  # nearly all reads are of one byte, and must cost little
            if n_bytes > _LARGEST:
                raise ValueError(f"one value of {n_bytes} bytes; at most {_LARGEST} can be")
            self._budget.check_frames(1, n_bytes, "one value")
        return self._file.read(n_bytes)

    def readline(self) -> bytes:
        """Return a line, cut where it is longer than that of any pickle."""
        return self._file.readline(_LONGEST_LINE)
