"""Files of TensorFlow Lite, read into numbers: operations, shapes and weights, without TensorFlow.

Nothing in a file is believed: offsets are checked by the FlatBuffers reader, counts and shapes
before memory is taken for them, and an operation uses only what earlier ones made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kpstore.budget import MemoryBudget
from kpstore.errors import (
    DAMAGE,
    InvalidError,
    KpstoreError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
)
from kpstore.extractors.checkpoint_files import brief
from kpstore.extractors.tflite_options import CUSTOM, OPTIONS

MOST_FILE_BYTES = 256 * 2**20
"""Of a model; those of MediaPipe have at most 26 MiB."""
MOST_ITEMS = 10_000
"""Tensors, and operations, of a model; those of MediaPipe have at most some hundreds."""
MOST_RESULT_BYTES = 512 * 2**20
"""Of all results of operations for one picture; MediaPipe's pose model makes 63 MiB."""
_IDENTIFIER = b"TFL3"

_CUSTOM_VERSION, _MOST_CUSTOM_BYTES = 2, 2**16
"""Of MediaPipe's own operations, and bytes of all their options; its face model has 3 KiB."""
_WEIGHTS_ALONE = ("DENSIFY", "DEQUANTIZE")
"""Operations that unpack weights; they are done once, when a file is read."""


@dataclass(frozen=True)
class Operation:
    """One operation of a model.

    Parameters
    ----------
    name : as TensorFlow Lite calls it, such as ``"CONV_2D"``.
    inputs, output : numbers of tensors; an input of -1 is left out.
    options : by TensorFlow Lite's name; numbers, and lists of them.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TfliteGraph:
    """A model with one input, pruned to what its outputs need.

    Parameters
    ----------
    name : of the file, for messages.
    shapes : by number of a tensor; pictures are (1, height, width, channels).
    weights : by number of a tensor that no operation computes, float32 or int32.
    operations : in an order in which each finds its inputs.
    input, outputs : numbers of tensors.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    weights: Mapping[int, NDArray[Any]]
    operations: tuple[Operation, ...]
    input: int
    outputs: tuple[int, ...]


def read_tflite(path: Path, outputs: tuple[int, ...] | None = None) -> TfliteGraph:
    """Return the model in a file of TensorFlow Lite.

    Parameters
    ----------
    outputs : which of its outputs are wanted, by number; what only others need is left out. None
        for all.

    Raises
    ------
    InvalidError
        If it is not such a file, is damaged or asks for more memory than a model may take.
    MissingExtraError
        If the package ``tflite`` is not installed.
    NotFoundError
        If the file does not exist.
    UnsupportedError
        If it holds an operation, an option or a type of numbers that is not known here.
    """
    _require_reader(path)
    if not path.is_file():
        raise NotFoundError(f"model file {path} does not exist; give the folder that holds it")
    if (size := path.stat().st_size) > MOST_FILE_BYTES:
        raise InvalidError(
            f"{path} has {size / 2**20:,.0f} MiB, a model has at most {MOST_FILE_BYTES // 2**20}; "
            "is it the file that was meant?"
        )
    try:
        return _Reader(path).graph(outputs)
    except KpstoreError:
        raise
    except DAMAGE as error:
        raise InvalidError(
            f"{path} is not a model of TensorFlow Lite, or is damaged ({brief(error)}); copy it "
            "again"
        ) from None


def _require_reader(path: Path) -> None:
    try:
        import tflite  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"reading {path.name} (tflite is not installed)", extra="holistic-torch"
        ) from error


class _Reader:
    """One file, while it is read."""

    def __init__(self, path: Path) -> None:
        import tflite

        self._schema: Any = tflite
        self._path, self._n_custom_bytes = path, 0
        self._budget = MemoryBudget.of(path, fixed=True)
        content = path.read_bytes()
        if content[4:8] != _IDENTIFIER:
            raise InvalidError(
                f"{path} is not a model of TensorFlow Lite: it begins with {content[:8]!r}"
            )
        self._model = tflite.Model.GetRootAsModel(content, 0)
        if (count := self._model.SubgraphsLength()) != 1:
            raise self._unsupported(f"has {count} graphs")
        self._graph = self._model.Subgraphs(0)
        self._tensors = [
            self._graph.Tensors(number) for number in range(self._few(self._graph.TensorsLength()))
        ]
        self._shapes = tuple(self._shape(tensor) for tensor in self._tensors)

    def graph(self, wanted: tuple[int, ...] | None) -> TfliteGraph:
        """Return the model, pruned to some outputs."""
        inputs, outputs = (
            tuple(self._known(_numbers(one())))
            for one in (self._graph.InputsAsNumpy, self._graph.OutputsAsNumpy)
        )
        if len(inputs) != 1:
            raise self._unsupported(f"takes {len(inputs)} inputs")
        if wanted is not None:
            if not set(wanted) <= set(range(len(outputs))):
                raise InvalidError(
                    f"{self._path}: outputs {wanted} were asked for, found {len(outputs)}; is it "
                    "the model that was meant?"
                )
            outputs = tuple(outputs[number] for number in wanted)
        operations = self._pruned(outputs)
        weights, left = self._weights(operations)
        self._check_order(inputs[0], weights, left, outputs)
        return TfliteGraph(self._path.name, self._shapes, weights, tuple(left), inputs[0], outputs)

    # -- operations --------------------------------------------------------------------------------

    def _pruned(self, outputs: tuple[int, ...]) -> list[Operation]:
        needed, kept = set(outputs), []
        for number in reversed(range(self._few(self._graph.OperatorsLength()))):
            stored = self._graph.Operators(number)
            results = self._known(_numbers(stored.OutputsAsNumpy()))
            if needed.isdisjoint(results):
                continue
            operation = self._operation(stored, results)
            kept.append(operation)
            needed.update(operation.inputs)
        return kept[::-1]

    def _operation(self, stored: Any, results: list[int]) -> Operation:
        code = self._model.OperatorCodes(self._place(stored.OpcodeIndex()))
        name = self._name(code)
        if len(results) != 1 or stored.IntermediatesLength():
            raise self._unsupported(f"has a {name} with {len(results)} results")
        inputs = self._known(_numbers(stored.InputsAsNumpy()), optional=True)
        return Operation(name, tuple(inputs), results[0], self._options(name, stored))

    def _place(self, number: int) -> int:
        count = self._model.OperatorCodesLength()
        if not 0 <= number < count:
            raise ValueError(f"operation code {number} of {count}")
        return number

    def _name(self, code: Any) -> str:
        number, words = code.BuiltinCode(), vars(self._schema.BuiltinOperator)
        if number == words["CUSTOM"]:
            name, version = (code.CustomCode() or b"").decode(errors="replace"), code.Version()
            if name in CUSTOM and version == _CUSTOM_VERSION:
                return name
            raise self._unsupported(f"holds version {version} of the operation {name[:40]!r}")
        name = next((word for word, known in words.items() if known == number), f"{number}")
        if name not in OPTIONS:
            raise self._unsupported(f"holds the operation {name}")
        return name

    def _options(self, name: str, stored: Any) -> dict[str, Any]:
        if name in CUSTOM:
            return self._custom_options(CUSTOM[name], stored)
        table, words = OPTIONS[name]
        if not table:
            return {}
        kind = getattr(self._schema.BuiltinOptions, table)
        packed = stored.BuiltinOptions()
        if packed is None or stored.BuiltinOptionsType() != kind:
            raise ValueError(f"{name} has no options")
        options = getattr(self._schema, table)()
        options.Init(packed.Bytes, packed.Pos)
        return {word: int(getattr(options, word)()) for word in words}

    def _custom_options(self, words: Mapping[str, str], stored: Any) -> dict[str, Any]:
        if not words:
            return {}
        from flatbuffers import flexbuffers  # which the package tflite needs

        content = stored.CustomOptionsAsNumpy().tobytes()
        self._n_custom_bytes += len(content)
        if self._n_custom_bytes > _MOST_CUSTOM_BYTES:
            raise ValueError(f"{self._n_custom_bytes} bytes of options")
        found = flexbuffers.GetRoot(content).AsMap
        return {word: _custom_option(found[word], kind) for word, kind in words.items()}

    def _check_order(
        self,
        first: int,
        weights: Mapping[int, NDArray[Any]],
        operations: list[Operation],
        outputs: tuple[int, ...],
    ) -> None:
        """Check that each operation finds its inputs, which rules out circles."""
        made, n_bytes = {first, *weights}, 0
        for operation in operations:
            used = {number for number in operation.inputs if number >= 0}
            if not used <= made or operation.output in made:
                raise ValueError(f"{operation.name} is out of order")
            made.add(operation.output)
            n_bytes += 4 * math.prod(self._shapes[operation.output])
        if not set(outputs) <= made:
            raise ValueError("an output that no operation makes")
        n_bytes += 4 * math.prod(self._shapes[first])
        if n_bytes > MOST_RESULT_BYTES:
            raise InvalidError(
                f"{self._path} would make {n_bytes / 2**20:,.0f} MiB of results for one picture, "
                f"at most {MOST_RESULT_BYTES // 2**20} are allowed; it may be damaged"
            )

    # -- weights -----------------------------------------------------------------------------------

    def _weights(
        self, operations: list[Operation]
    ) -> tuple[dict[int, NDArray[Any]], list[Operation]]:
        """Return all weights, and the operations that are left when they are unpacked."""
        used = {number for one in operations for number in one.inputs if number >= 0}
        weights = {}
        for number in sorted(used):
            if (values := self._stored(number)) is not None:
                weights[number] = values
        left = []
        for operation in operations:
            if operation.name not in _WEIGHTS_ALONE:
                left.append(operation)
                continue
            source = operation.inputs[0] if operation.inputs else -1
            if source not in weights or operation.output in weights:
                raise self._unsupported(f"has a {operation.name} of something computed")
            if weights[source].shape != self._shapes[operation.output]:
                raise ValueError(f"{operation.name} changes a shape")
            weights[operation.output] = weights[source]
        kept = {number for one in left for number in one.inputs}
        return {number: weights[number] for number in weights if number in kept}, left

    def _stored(self, number: int) -> NDArray[Any] | None:
        """Return the numbers of a tensor, float32 or int32; None if an operation computes them."""
        tensor, shape = self._tensors[number], self._shapes[number]
        if not 0 <= tensor.Buffer() < self._model.BuffersLength():
            raise ValueError(f"buffer {tensor.Buffer()} of {self._model.BuffersLength()}")
        content = self._model.Buffers(tensor.Buffer()).DataAsNumpy()
        if not isinstance(content, np.ndarray) or content.size == 0:
            return None
        dtype = self._dtype(tensor.Type())
        self._budget.hold(4 * math.prod(shape), f"tensor {number}, {shape},")
        values = np.frombuffer(content.tobytes(), dtype=dtype)
        sparsity = tensor.Sparsity()
        whole = values.reshape(shape) if sparsity is None else self._dense(sparsity, values, shape)
        return whole.astype(np.int32 if dtype == "<i4" else np.float32)

    def _dtype(self, number: int) -> str:
        known = {self._schema.TensorType.FLOAT32: "<f4", self._schema.TensorType.FLOAT16: "<f2"}
        known[self._schema.TensorType.INT32] = "<i4"
        if number not in known:
            raise self._unsupported(f"holds numbers of type {number}")
        return known[number]

    def _dense(
        self, sparsity: Any, values: NDArray[Any], shape: tuple[int, ...]
    ) -> NDArray[np.generic]:
        """Return a sparse tensor with its zeros; its axes are stored in order, without blocks."""
        order = _numbers(sparsity.TraversalOrderAsNumpy())
        if order != list(range(len(shape))) or sparsity.BlockMapLength():
            raise self._unsupported(f"holds a sparse tensor of axes {order}")
        if sparsity.DimMetadataLength() != len(shape):
            raise ValueError("a sparse tensor without all its axes")
        # The place of each stored number, first in the axes so far, then in the whole tensor.
        stored_at, place = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        for axis, length in enumerate(shape):
            about = sparsity.DimMetadata(axis)
            if about.Format() == self._schema.DimensionType.DENSE:
                if about.DenseSize() != length:
                    raise ValueError(f"a sparse axis of {about.DenseSize()}, not {length}")
                self._budget.check(64 * len(place) * length, "unpacking a sparse tensor")
                steps = np.arange(length)
                stored_at = (stored_at[:, np.newaxis] * length + steps).ravel()
                place = (place[:, np.newaxis] * length + steps).ravel()
                continue
            starts, indices = (self._sparse_vector(about, one) for one in ("Segments", "Indices"))
            counts = starts[stored_at + 1] - starts[stored_at]
            if (counts < 0).any() or (counts > length).any() or not _within(indices, length):
                raise ValueError("a sparse axis that leads out of its tensor")
            self._budget.check(64 * int(counts.sum()), "unpacking a sparse tensor")
            ends = np.cumsum(counts)
            within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
            stored_at = np.repeat(starts[stored_at], counts) + within
            place = np.repeat(place, counts) * length + indices[stored_at]
        dense = np.zeros(math.prod(shape), dtype=values.dtype)
        dense[place] = values[stored_at]
        return dense.reshape(shape)

    def _sparse_vector(self, about: Any, which: str) -> NDArray[np.int64]:
        kinds = ("", "Int32Vector", "Uint16Vector", "Uint8Vector")
        kind = getattr(about, f"Array{which}Type")()
        if not 0 < kind < len(kinds):
            raise ValueError(f"sparse {which} of type {kind}")
        packed = getattr(about, f"Array{which}")()
        vector = getattr(self._schema, kinds[kind])()
        vector.Init(packed.Bytes, packed.Pos)
        found = np.atleast_1d(np.asarray(vector.ValuesAsNumpy(), dtype=np.int64))
        if (found < 0).any():
            raise ValueError(f"sparse {which} below 0")
        return found

    # -- checks ------------------------------------------------------------------------------------

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        shape = tuple(_numbers(tensor.ShapeAsNumpy()))
        if len(shape) > 4 or any(length < 1 for length in shape):
            raise ValueError(f"a tensor of shape {shape}")
        return shape

    def _known(self, numbers: list[int], *, optional: bool = False) -> list[int]:
        least = -1 if optional else 0
        if any(not least <= number < len(self._tensors) for number in numbers):
            raise ValueError(f"tensors {numbers[:4]} of {len(self._tensors)}")
        return numbers

    def _few(self, count: int) -> int:
        if count > MOST_ITEMS:
            raise ValueError(f"{count} tensors or operations")
        return count

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._path} {what}, which is not known here; use the models of MediaPipe 0.10.14, "
            "or the engine mediapipe"
        )


def _custom_option(stored: Any, kind: str) -> int | float | list[int]:
    if kind == "several":
        numbers = stored.AsTypedVector
        if len(numbers) > MOST_ITEMS:
            raise ValueError(f"a list of {len(numbers)} numbers")
        return [_whole(numbers[place]) for place in range(len(numbers))]
    if kind == "whole" or stored.IsInt:
        return _whole(stored)
    if not stored.IsFloat or not math.isfinite(stored.AsFloat):
        raise ValueError("an option that is no finite number")
    return float(stored.AsFloat)


def _whole(stored: Any) -> int:
    if not stored.IsInt:
        raise ValueError("an option that is no whole number")
    return int(stored.AsInt)


def _within(indices: NDArray[np.int64], length: int) -> bool:
    return bool((indices < length).all())


def _numbers(vector: Any) -> list[int]:
    """Return a vector of FlatBuffers, which is the number 0 if it is absent."""
    return [] if isinstance(vector, int) else [int(number) for number in vector[:MOST_ITEMS]]
