"""Operations of TensorFlow Lite as modules of torch; pictures are (rows, channels, height, width).

Each builder checks what a file asks for: an option that does not occur in MediaPipe's models is
an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kpstore.errors import UnsupportedError
from kpstore.extractors.elementwise import sigmoid
from kpstore.extractors.tflite_attention import CutOut, LandmarksToMatrix, PointsBack
from kpstore.extractors.tflite_shapes import SAME, Options, Weights, slices_of

PLAIN, RELU, RELU6 = 0, 1, 3
"""Numbers of TensorFlow Lite's fused activations."""
VALID = 1
"""Number of TensorFlow Lite's padding ``VALID``."""
_HAS_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
"""Whether torch has what its compiler calls for convolutions on a CPU; not on all processors."""
_ONEDNN_ACTIVATIONS: Mapping[int, tuple[str, list[float]]] = {
    PLAIN: ("none", []),
    RELU: ("relu", []),
    RELU6: ("hardtanh", [0.0, 6.0]),
}

Sizes = tuple[int, int]


def picture_order(values: Tensor) -> Tensor:
    """Return pictures as TensorFlow Lite orders them, channels last; others as they are."""
    return values.permute(0, 2, 3, 1) if values.dim() == 4 else values


def same_padding(size: Sizes, kernel: Sizes, stride: Sizes) -> tuple[int, int, int, int]:
    """Return TensorFlow's padding ``SAME`` (left, right, top, bottom).

    An odd pixel goes to the right or the bottom, unlike torch's own.
    """
    rows, columns = (
        max((-(-length // step) - 1) * step + width - length, 0)
        for length, width, step in zip(size, kernel, stride, strict=True)
    )
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def _activated(values: Tensor, activation: int) -> Tensor:
    """Apply a fused activation in place to a result that nothing else holds."""
    if activation == RELU:
        return torch.relu_(values)
    return functional.hardtanh_(values, 0.0, 6.0) if activation == RELU6 else values


class Convolution(nn.Module):
    """CONV_2D and DEPTHWISE_CONV_2D; weights (out, in, height, width)."""

    def __init__(self, weight: Tensor, bias: Tensor, *, groups: int, options: Options) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.groups, self.same = groups, options["Padding"] == SAME
        self.kernel = (weight.shape[2], weight.shape[3])
        self.stride = (options["StrideH"], options["StrideW"])
        self.activation = options["FusedActivationFunction"]
        self._packed: Tensor | None = None

    def pack(self, shape: tuple[int, ...]) -> None:
        """Order the weights as oneDNN wants them for maps (rows, channels, height, width) on a CPU.

        Torch's own ``conv2d`` orders them anew at each call, and with one thread takes a slower
        routine for kernels of one pixel: all models of a frame take 68 ms with it, 38 ms like this.
        """
        if not _HAS_ONEDNN:
            return
        symmetric, padding = self._padding((shape[2], shape[3]))
        rows, channels, height, width = shape
        left, right, top, bottom = padding
        padded = [rows, channels, height + top + bottom, width + left + right]
        weight = cast("Tensor", self.weight)
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(
            weight, symmetric, self.stride, (1, 1), self.groups, padded
        )

    def _padding(self, size: Sizes) -> tuple[Sizes, tuple[int, int, int, int]]:
        """Return padding alike on opposite sides, and the rest (left, right, top, bottom)."""
        if not self.same:
            return (0, 0), (0, 0, 0, 0)
        left, right, top, bottom = same_padding(size, self.kernel, self.stride)
        if left == right and top == bottom:
            return (top, left), (0, 0, 0, 0)
        return (0, 0), (left, right, top, bottom)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps of the next layer."""
        symmetric, padding = self._padding((maps.shape[2], maps.shape[3]))
        if any(padding):
            maps = functional.pad(maps, padding)
        weight, bias = cast("Tensor", self.weight), cast("Tensor", self.bias)
        if self._packed is not None and maps.device.type == "cpu":
            name, bounds = _ONEDNN_ACTIVATIONS[self.activation]
            made: Tensor = torch.ops.mkldnn._convolution_pointwise(
                maps,
                self._packed,
                bias,
                symmetric,
                self.stride,
                (1, 1),
                self.groups,
                name,
                bounds,
                "",
            )
            return made
        made = functional.conv2d(maps, weight, bias, self.stride, symmetric, groups=self.groups)
        return _activated(made, self.activation)


class Linear(nn.Module):
    """FULLY_CONNECTED; weights (out, in)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        """Return (rows, out)."""
        weight, bias = cast("Tensor", self.weight), cast("Tensor", self.bias)
        return functional.linear(values.reshape(values.shape[0], -1), weight, bias)


class ParametricRelu(nn.Module):
    """PRELU, with one slope for each channel."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.register_buffer("slopes", slopes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps, negative numbers times a slope."""
        return torch.prelu(maps, cast("Tensor", self.slopes))


class MaximumPool(nn.Module):
    """MAX_POOL_2D."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.kernel = (options["FilterHeight"], options["FilterWidth"])
        self.stride = (options["StrideH"], options["StrideW"])
        self.same = options["Padding"] == SAME

    def forward(self, maps: Tensor) -> Tensor:
        """Return smaller maps; padding never wins."""
        if self.same:
            padding = same_padding((maps.shape[2], maps.shape[3]), self.kernel, self.stride)
            if any(padding):
                maps = functional.pad(maps, padding, value=float("-inf"))
        return functional.max_pool2d(maps, self.kernel, self.stride)


class Pad(nn.Module):
    """PAD with zeros; (channels, columns, rows), each before and after."""

    def __init__(self, padding: tuple[int, ...]) -> None:
        super().__init__()
        # Maps with more channels only are the shortcuts of residual blocks.
        self.padding = padding if any(padding) else ()

    def forward(self, maps: Tensor) -> Tensor:
        """Return larger maps."""
        front, back, left, right, top, bottom = self.padding or (0,) * 6
        if front or back:
            return functional.pad(maps, (left, right, top, bottom, front, back))
        return functional.pad(maps, (left, right, top, bottom))


class Resize(nn.Module):
    """RESIZE_BILINEAR."""

    def __init__(self, size: Sizes, *, align_corners: bool) -> None:
        super().__init__()
        self.size, self.align_corners = size, align_corners

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the other size."""
        return functional.interpolate(
            maps, self.size, mode="bilinear", align_corners=self.align_corners
        )


class DepthToSpace(nn.Module):
    """DEPTH_TO_SPACE: blocks of channels become blocks of pixels."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps ``block`` times as high and wide."""
        rows, channels, height, width = maps.shape
        block, left = self.block, channels // self.block**2
        # Unlike torch's pixel_shuffle, the channel that remains is the fastest in a block.
        blocks = maps.reshape(rows, block, block, left, height, width)
        spread = blocks.permute(0, 3, 4, 1, 5, 2)
        return spread.reshape(rows, left, height * block, width * block)


class Reshape(nn.Module):
    """RESHAPE, of each row by itself."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        """Return the same numbers, in the order of TensorFlow Lite."""
        return picture_order(values).reshape(values.shape[0], *self.shape)


class Concatenate(nn.Module):
    """CONCATENATION of values that are no pictures."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Return all in one."""
        return torch.cat(values, self.axis)


class Multiply(nn.Module):
    """MUL by numbers of the file, of values that are no pictures."""

    def __init__(self, factor: Tensor, activation: int) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.activation = activation

    def forward(self, values: Tensor) -> Tensor:
        """Return values times a factor, one for all or one for each."""
        return _activated(values * cast("Tensor", self.factor), self.activation)


class Slice(nn.Module):
    """STRIDED_SLICE of pictures, (height, width, channels)."""

    def __init__(self, slices: tuple[slice, ...]) -> None:
        super().__init__()
        rows, columns, channels = slices
        self.slices = (slice(None), channels, rows, columns)

    def forward(self, maps: Tensor) -> Tensor:
        """Return a part of the maps."""
        return maps[self.slices]


class Apply(nn.Module):
    """An operation without weights or options."""

    def __init__(self, function: Callable[..., Tensor], activation: int = PLAIN) -> None:
        super().__init__()
        self.function, self.activation = function, activation

    def forward(self, *values: Tensor) -> Tensor:
        """Return the result."""
        return _activated(self.function(*values), self.activation)


def build(name: str, options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    """Return the module for an operation.

    Parameters
    ----------
    weights : those inputs that are not computed, in order.
    shape : of its result, as in the file.

    Raises
    ------
    UnsupportedError
        If an option is not known here.
    """
    _refuse_options(name, options)
    return _BUILDERS[name](options, weights, shape)


def _refuse_options(name: str, options: Options) -> None:
    fixed = {
        "DepthMultiplier": (1,),
        "DilationHFactor": (1,),
        "DilationWFactor": (1,),
        "EllipsisMask": (0,),
        "KeepDims": (0,),
        "KeepNumDims": (0,),
        "NewAxisMask": (0,),
        "Padding": (SAME, VALID),
        "ShrinkAxisMask": (0,),
        "WeightsFormat": (0,),
        "FusedActivationFunction": (PLAIN, RELU, RELU6),
    }
    if name in ("CONCATENATION", "FULLY_CONNECTED", "MAX_POOL_2D"):
        fixed["FusedActivationFunction"] = (PLAIN,)
    for word, value in options.items():
        if value not in fixed.get(word, (value,)):
            raise _unknown(name, f"{word}={value}")
        if (word.startswith(("Stride", "Filter")) or word == "BlockSize") and value < 1:
            raise _unknown(name, f"{word}={value}")


def _unknown(name: str, what: str) -> UnsupportedError:
    return UnsupportedError(f"the operation {name} with {what} is not known here")


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _convolution(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    kernel, bias = weights
    # (out, height, width, in) seen as (out, in, height, width): torch's channels_last.
    weight = _tensor(kernel).permute(0, 3, 1, 2)
    return Convolution(weight, _tensor(bias), groups=1, options=options)


def _depthwise(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    kernel, bias = weights
    weight = _tensor(kernel).permute(3, 0, 1, 2).contiguous()
    return Convolution(weight, _tensor(bias), groups=weight.shape[0], options=options)


def _linear(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    weight, bias = weights
    return Linear(_tensor(weight), _tensor(bias))


def _prelu(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    (slopes,) = weights
    return ParametricRelu(_tensor(slopes.reshape(-1)))


def _mean(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    (axes,) = weights
    if axes.ravel().tolist() != [1, 2]:
        raise _unknown("MEAN", f"axes {axes.ravel().tolist()}")
    return Apply(lambda maps: maps.mean((2, 3)))


def _multiply(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    (factor,) = weights
    if len(shape) == 4:
        raise _unknown("MUL", f"a result {shape}")
    return Multiply(_tensor(factor), options["FusedActivationFunction"])


def _pad(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    (padding,) = weights
    row, height, width, channels = padding.tolist()
    if row != [0, 0] or padding.min() < 0:
        raise _unknown("PAD", f"{padding.tolist()}")
    return Pad((*channels, *width, *height))


def _resize(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    (size,) = weights
    height, width = size.tolist()
    if not options["AlignCorners"] and not options["HalfPixelCenters"]:
        raise _unknown("RESIZE_BILINEAR", "neither AlignCorners nor HalfPixelCenters")
    return Resize((height, width), align_corners=bool(options["AlignCorners"]))


def _concatenation(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    if weights or len(shape) == 4 or options["Axis"] not in range(1, len(shape)):
        raise _unknown("CONCATENATION", f"axis {options['Axis']} of a result {shape}")
    return Concatenate(options["Axis"])


def _slice(options: Options, weights: Weights, shape: tuple[int, ...]) -> nn.Module:
    slices = slices_of(options, weights)
    if len(slices) != 4 or any(one.step < 1 for one in slices):
        raise _unknown("STRIDED_SLICE", f"{slices}")
    return Slice(tuple(slices[1:]))


_Builder = Callable[[Options, Weights, tuple[int, ...]], nn.Module]
_BUILDERS: Mapping[str, _Builder] = {
    "ADD": lambda options, weights, shape: Apply(torch.add, options["FusedActivationFunction"]),
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEPTH_TO_SPACE": lambda options, weights, shape: DepthToSpace(options["BlockSize"]),
    "FULLY_CONNECTED": _linear,
    "Landmarks2TransformMatrix": lambda options, weights, shape: LandmarksToMatrix(options),
    "LOGISTIC": lambda options, weights, shape: Apply(sigmoid),
    "MAX_POOL_2D": lambda options, weights, shape: MaximumPool(options),
    "MEAN": _mean,
    "MUL": _multiply,
    "PAD": _pad,
    "PRELU": _prelu,
    "RELU": lambda options, weights, shape: Apply(torch.relu),
    "RESHAPE": lambda options, weights, shape: Reshape(shape[1:]),
    "RESIZE_BILINEAR": _resize,
    "STRIDED_SLICE": _slice,
    "TransformLandmarks": lambda options, weights, shape: PointsBack(),
    "TransformTensorBilinear": lambda options, weights, shape: CutOut(*shape[1:3]),
}
