"""A model of TensorFlow Lite as a module of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from kpstore.errors import DAMAGE, InvalidError, KpstoreError, UnsupportedError
from kpstore.extractors.checkpoint_files import brief
from kpstore.extractors.tflite_attention import LandmarksToMatrix
from kpstore.extractors.tflite_file import Operation, TfliteGraph, read_tflite
from kpstore.extractors.tflite_operations import Convolution, build
from kpstore.extractors.tflite_shapes import check_shapes


def load_tflite(path: Path, outputs: tuple[int, ...] | None = None) -> TfliteNetwork:
    """Return the network in a file of TensorFlow Lite, on the CPU.

    Parameters
    ----------
    outputs : which of its outputs it computes, by number; None for all.

    Raises
    ------
    InvalidError
        If the file is damaged, or the shapes in it do not fit together.
    MissingExtraError
        If the package ``tflite`` is not installed.
    NotFoundError
        If the file does not exist.
    UnsupportedError
        If it holds something that does not occur in the models of MediaPipe that kpstore runs.
    """
    graph = read_tflite(path, outputs)
    try:
        check_shapes(graph)
        network = TfliteNetwork(graph)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}; use the models of MediaPipe 0.10.14") from None
    except KpstoreError:
        raise
    except DAMAGE as error:
        raise InvalidError(
            f"{path}: its operations do not fit together ({brief(error)}); it may be damaged, copy "
            "it again"
        ) from None
    return network.eval()


class TfliteNetwork(nn.Module):
    """Operations one after another; results are freed as soon as none needs them.

    Parameters
    ----------
    graph : what the file holds.

    Attributes
    ----------
    side : pixels of the pictures that it takes, which are square.
    output_shapes : of each output, for one picture, with channels last.
    """

    def __init__(self, graph: TfliteGraph) -> None:
        super().__init__()
        shape = graph.shapes[graph.input]
        if len(shape) != 4 or shape[0] != 1 or shape[1] != shape[2] or shape[3] != 3:
            raise ValueError(f"an input of shape {shape}, which is no square picture")
        self.side = shape[1]
        self.output_shapes = [graph.shapes[number] for number in graph.outputs]
        self._input, self._outputs = graph.input, graph.outputs
        self._operations = nn.ModuleList(_module(one, graph) for one in graph.operations)
        self._inputs = [
            [number for number in one.inputs if number >= 0 and number not in graph.weights]
            for one in graph.operations
        ]
        self._input_shapes = [graph.shapes[one.inputs[0]] for one in graph.operations]
        self._results = [one.output for one in graph.operations]
        self._freed = _last_uses(self._inputs, self._results, graph.outputs)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for pictures (rows, 3, side, side); maps have channels second."""
        made = self._computed(pictures)
        return tuple(made[number] for number in self._outputs)

    def _computed(self, pictures: Tensor) -> dict[int, Tensor]:
        made = {self._input: pictures}
        steps = zip(self._operations, self._inputs, self._results, self._freed, strict=True)
        for operation, inputs, result, freed in steps:
            made[result] = operation(*(made[number] for number in inputs))
            for number in freed:
                del made[number]
        return made

    @property
    def parts(self) -> list[LandmarksToMatrix]:
        """Parts of a face that the network looks at again, in its order."""
        return [one for one in self._operations if isinstance(one, LandmarksToMatrix)]

    def pack(self, rows: int) -> None:
        """Make calls of a number of rows quicker on a CPU; others stay possible.

        The last bits of results change: pack before the first call, or never.
        """
        for module, shape in zip(self._operations, self._input_shapes, strict=True):
            if isinstance(module, Convolution):
                _, height, width, channels = shape
                module.pack((rows, channels, height, width))


def _module(operation: Operation, graph: TfliteGraph) -> nn.Module:
    weights = [graph.weights[number] for number in operation.inputs if number in graph.weights]
    return build(operation.name, operation.options, weights, graph.shapes[operation.output])


def _last_uses(
    inputs: Sequence[Sequence[int]], results: Sequence[int], kept: Sequence[int]
) -> list[list[int]]:
    """Return, for each operation, the tensors that no later one needs."""
    last = {number: step for step, number in enumerate(results)}
    last |= {number: step for step, numbers in enumerate(inputs) for number in numbers}
    freed: list[list[int]] = [[] for _ in inputs]
    for number, step in last.items():
        if number not in kept:
            freed[step].append(number)
    return freed
