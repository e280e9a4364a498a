"""Tiny ONNX files that InsightFace accepts: a detector of coloured squares, and others.

The detector has SCRFD's outputs. Every cell of 32 x 32 pixels of the detector's picture is a face
at the cell's upper left corner: its mean green is the score, its mean red the size. So a picture
can hold a large face of a low score beside a small one of a high score, black holds none, and who
takes blue for red gets other boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
CELL = 32
REACH = 8.0
"""Pixels from a face's middle to each edge of its box where there is no red.

Four times as many in full red.
"""
LANDMARKS = [(-4.0, -4.0), (4.0, -4.0), (0.0, 0.5), (-3.0, 4.0), (3.0, 4.0)]
"""From a face's middle in pixels, where there is no red."""
WIDTHS = {"score": 1, "bbox": 4, "kps": 10}


def write_pack(
    folder: Path, *, size: int | None = None, landmarks: bool = True, reach: float = REACH
) -> Path:
    """Write a pack: a detector, and before it by name a file that is none.

    ``size`` is the only one that the detector takes, None for any; ``reach`` may be 0 or NaN.
    """
    folder.mkdir(parents=True)
    onnx.save(_recognition(), str(folder / "a_recognition.onnx"))
    onnx.save(_detector(size, landmarks=landmarks, reach=reach), str(folder / "det_tiny.onnx"))
    return folder


def _detector(size: int | None, *, landmarks: bool, reach: float) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    values: dict[str, Any] = {
        "red": np.array([0]),
        "green": np.array([1]),
        "half": np.float32(0.5),
        "full": np.float32(128 / 255),  # SCRFD's input is (colour - 127.5) / 128
        "four": np.float32(3),
        "one": np.float32(1),
        "column": np.array([-1, 1]),
        "bbox": np.full((1, 4), reach / CELL, np.float32),
        "kps": np.array(LANDMARKS, np.float32).reshape(1, 10) / CELL,
    }
    kinds = ["score", "bbox", "kps"][: 3 if landmarks else 2]
    for stride in STRIDES:
        values[f"found{stride}"] = np.float32(stride == CELL)  # the finer grids find nothing
        nodes += _grid(stride, kinds)
    outputs = [
        helper.make_tensor_value_info(
            f"{kind}{stride}", TensorProto.FLOAT, [f"n{stride}", WIDTHS[kind]]
        )
        for kind in kinds
        for stride in STRIDES
    ]
    shape = [1, 3, size or "height", size or "width"]
    return _model(
        nodes, helper.make_tensor_value_info("input", TensorProto.FLOAT, shape), outputs, values
    )


def _grid(stride: int, kinds: list[str]) -> list[onnx.NodeProto]:
    """Score, box and landmarks of each cell of one grid.

    Of its two anchors the second finds nothing.
    """

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        named = [name.replace("@", str(stride)) for name in inputs.split()]
        return helper.make_node(kind, named, [output.replace("@", str(stride))], **attributes)

    steps = [
        node(
            "AveragePool", "input", "mean@", kernel_shape=[stride, stride], strides=[stride, stride]
        )
    ]
    for colour in ("red", "green"):
        steps += [
            node("Gather", f"mean@ {colour}", f"{colour}_signed@", axis=1),
            node("Mul", f"{colour}_signed@ full", f"{colour}_centred@"),
            node("Add", f"{colour}_centred@ half", f"{colour}_grid@"),
            node("Reshape", f"{colour}_grid@ column", f"{colour}@"),
        ]
    steps += [
        node("Mul", "green@ found@", "first@"),
        node("Sub", "first@ first@", "second@"),
        node("Concat", "first@ second@", "pair@", axis=1),
        node("Reshape", "pair@ column", "score@"),
        node("Mul", "red@ four", "grown@"),
        node("Add", "grown@ one", "factor@"),
        node("Concat", "factor@ factor@", "factors@", axis=1),
        node("Reshape", "factors@ column", "factor_column@"),
    ]
    return steps + [node("Mul", f"factor_column@ {kind}", f"{kind}@") for kind in kinds[1:]]


def _recognition() -> onnx.ModelProto:
    """By InsightFace's rule a file for recognition: square, 112 pixels, one output."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["out"]),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 112, 112])
    return _model(
        nodes, given, [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3])], {}
    )


def _model(
    nodes: list[onnx.NodeProto], given: Any, outputs: list[Any], values: dict[str, Any]
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "tiny", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model
