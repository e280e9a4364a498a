"""Operations of TensorFlow Lite that are known, and the options that each has in a file."""

from __future__ import annotations

from collections.abc import Mapping

_CONVOLUTION = (
    "DilationHFactor",
    "DilationWFactor",
    "FusedActivationFunction",
    "Padding",
    "StrideH",
    "StrideW",
)

OPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "CONV_2D": ("Conv2DOptions", _CONVOLUTION),
    "DENSIFY": ("", ()),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", ("DepthMultiplier", *_CONVOLUTION)),
    "DEPTH_TO_SPACE": ("DepthToSpaceOptions", ("BlockSize",)),
    "DEQUANTIZE": ("", ()),
    "FULLY_CONNECTED": (
        "FullyConnectedOptions",
        ("FusedActivationFunction", "KeepNumDims", "WeightsFormat"),
    ),
    "LOGISTIC": ("", ()),
    "MAX_POOL_2D": (
        "Pool2DOptions",
        (
            "FilterHeight",
            "FilterWidth",
            "FusedActivationFunction",
            "Padding",
            "StrideH",
            "StrideW",
        ),
    ),
    "MEAN": ("ReducerOptions", ("KeepDims",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "PAD": ("", ()),
    "PRELU": ("", ()),
    "RELU": ("", ()),
    "RESHAPE": ("", ()),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", ("AlignCorners", "HalfPixelCenters")),
    "STRIDED_SLICE": (
        "StridedSliceOptions",
        ("BeginMask", "EllipsisMask", "EndMask", "NewAxisMask", "ShrinkAxisMask"),
    ),
}
"""The operations that are known, with the table of their options and the options in it."""
CUSTOM: Mapping[str, Mapping[str, str]] = {
    "Landmarks2TransformMatrix": {
        "left_rotation_idx": "whole",
        "output_height": "whole",
        "output_width": "whole",
        "right_rotation_idx": "whole",
        "scale_x": "real",
        "scale_y": "real",
        "subset_idxs": "several",
        "target_rotation_radians": "real",
    },
    "TransformLandmarks": {},
    "TransformTensorBilinear": {"output_height": "whole", "output_width": "whole"},
}
"""MediaPipe's own operations that are known, and their options, which are FlexBuffers.

``"whole"`` are whole numbers, ``"real"`` finite ones, ``"several"`` lists of whole numbers.
"""
