"""The shapes that operations of TensorFlow Lite make, found without computing anything.

A file says the shape of each result. That is checked here before a network runs, so that a damaged
or made-up file can neither fail half-way nor take more memory than its shapes say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from kpstore.extractors.tflite_file import Operation, TfliteGraph

Shape = tuple[int, ...]
Options = Mapping[str, Any]
Weights = list[NDArray[Any]]

SAME = 0
"""Number of TensorFlow Lite's padding ``SAME``; the other is ``VALID``."""
_WHOLE = ("MEAN", "PAD", "RESHAPE", "RESIZE_BILINEAR", "STRIDED_SLICE")
"""Operations that are given axes, sizes and places; the others are given float32."""


def check_shapes(graph: TfliteGraph) -> None:
    """Raise :class:`ValueError` if an operation cannot take its inputs, or makes another shape.

    All results are of one row, pictures (1, height, width, channels).
    """
    for operation in graph.operations:
        made, said = _computed(operation, graph), graph.shapes[operation.output]
        if made != said or said[:1] != (1,):
            raise ValueError(f"{operation.name} makes {made} where the file says {said}")


def _computed(operation: Operation, graph: TfliteGraph) -> Shape:
    numbers = [number for number in operation.inputs if number >= 0]
    shapes = [graph.shapes[number] for number in numbers if number not in graph.weights]
    weights = [graph.weights[number] for number in numbers if number in graph.weights]
    kind = "i" if operation.name in _WHOLE else "f"
    if any(weight.dtype.kind != kind for weight in weights):
        raise ValueError(f"{operation.name} is given {[str(one.dtype) for one in weights]}")
    if operation.name == "RESHAPE":
        # The new shape is that of the result; an input with it is not used.
        same_size(math.prod(shapes[0]), math.prod(graph.shapes[operation.output]))
        return graph.shapes[operation.output]
    return _SHAPES[operation.name](operation.options, shapes, weights)


def same_size(found: object, wanted: object) -> None:
    """Raise :class:`ValueError` unless two numbers or shapes are equal."""
    if found != wanted:
        raise ValueError(f"{found} where {wanted} is needed")


def _unchanged(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (shape,) = shapes
    return shape


def _sum(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    one, other = shapes
    same_size(one, other)
    return one


def _joined(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    first, axis = shapes[0], options["Axis"]
    for shape in shapes:
        same_size((*shape[:axis], *shape[axis + 1 :]), (*first[:axis], *first[axis + 1 :]))
    return (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :])


def _moved(size: Shape, kernel: Shape, options: Options) -> Shape:
    """Return the height and width that a moving window makes."""
    steps = (options["StrideH"], options["StrideW"])
    if options["Padding"] == SAME:
        return tuple(-(-length // step) for length, step in zip(size, steps, strict=True))
    triples = zip(size, kernel, steps, strict=True)
    return tuple((length - width) // step + 1 for length, width, step in triples)


def _convolved(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, height, width, channels),) = shapes
    kernel, bias = weights
    made, kernel_height, kernel_width, taken = kernel.shape
    same_size((taken, bias.shape), (channels, (made,)))
    size = _moved((height, width), (kernel_height, kernel_width), options)
    return (rows, *size, made)


def _convolved_by_channel(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, height, width, channels),) = shapes
    kernel, bias = weights
    one, kernel_height, kernel_width, made = kernel.shape
    same_size((one, made, bias.shape), (1, channels, (channels,)))
    return (rows, *_moved((height, width), (kernel_height, kernel_width), options), made)


def _pooled(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, height, width, channels),) = shapes
    kernel = (options["FilterHeight"], options["FilterWidth"])
    return (rows, *_moved((height, width), kernel, options), channels)


def _spread(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, height, width, channels),) = shapes
    block = options["BlockSize"]
    same_size(channels % block**2, 0)
    return (rows, height * block, width * block, channels // block**2)


def _connected(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (shape,) = shapes
    weight, bias = weights
    made, taken = weight.shape
    same_size((taken, bias.shape), (math.prod(shape), (made,)))
    return (1, made)


def _mean(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, _, _, channels),) = shapes
    return (rows, channels)


def _prelu(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, height, width, channels),) = shapes
    (slopes,) = weights
    same_size((slopes.size, slopes.shape[-1:]), (channels, (channels,)))
    return (rows, height, width, channels)


def _padded(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (shape,), (padding,) = shapes, weights
    same_size((padding.shape, len(shape)), ((4, 2), 4))
    pairs = zip(shape, padding.tolist(), strict=True)
    return tuple(before + length + after for length, (before, after) in pairs)


def _resized(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((rows, _, _, channels),) = shapes
    (size,) = weights
    height, width = size.tolist()
    return (rows, height, width, channels)


def _sliced(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (shape,) = shapes
    return tuple(
        len(range(*one.indices(length)))
        for one, length in zip(slices_of(options, weights), shape, strict=True)
    )


def slices_of(options: Options, weights: Weights) -> list[slice]:
    """Return the slices along each axis that STRIDED_SLICE takes."""
    begins, ends, steps = (one.tolist() for one in weights)
    return [
        slice(
            None if options["BeginMask"] >> axis & 1 else begin,
            None if options["EndMask"] >> axis & 1 else end,
            step,
        )
        for axis, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True))
    ]


def _multiplied(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (shape,), (factor,) = shapes, weights
    if factor.shape != (1,):
        same_size(factor.shape, shape)
    return shape


def _matrix(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    ((_, count, numbers),) = shapes
    used = [options["left_rotation_idx"], options["right_rotation_idx"], *options["subset_idxs"]]
    if numbers != 3 or len(used) == 2 or not all(0 <= point < count for point in used):
        raise ValueError(f"points {min(used)} to {max(used)} of {count}")
    if min(options[word] for word in ("output_height", "output_width", "scale_x", "scale_y")) <= 0:
        raise ValueError("a part of no size")
    return (1, 4, 4)


def _cut_out(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    (rows, _, _, channels), matrix = shapes
    same_size(matrix, (1, 4, 4))
    return (rows, options["output_height"], options["output_width"], channels)


def _points_back(options: Options, shapes: list[Shape], weights: Weights) -> Shape:
    points, matrix = shapes
    same_size((matrix, len(points), points[-1] in (2, 3)), ((1, 4, 4), 3, True))
    return points


_SHAPES: Mapping[str, Callable[[Options, list[Shape], Weights], Shape]] = {
    "ADD": _sum,
    "CONCATENATION": _joined,
    "CONV_2D": _convolved,
    "DEPTHWISE_CONV_2D": _convolved_by_channel,
    "DEPTH_TO_SPACE": _spread,
    "FULLY_CONNECTED": _connected,
    "LOGISTIC": _unchanged,
    "MAX_POOL_2D": _pooled,
    "Landmarks2TransformMatrix": _matrix,
    "MEAN": _mean,
    "MUL": _multiplied,
    "PAD": _padded,
    "PRELU": _prelu,
    "RELU": _unchanged,
    "RESIZE_BILINEAR": _resized,
    "STRIDED_SLICE": _sliced,
    "TransformLandmarks": _points_back,
    "TransformTensorBilinear": _cut_out,
}
