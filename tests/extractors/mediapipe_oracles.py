"""What MediaPipe computes inside: crops, outputs of models, and regions between the models."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from kpstore.extractors.mediapipe import quiet_calls, quiet_start

HIDDEN = {
    "PoseLandmarkCpu": ["ROI_FROM_DETECTION"],
    "HandLandmarksLeftAndRightCpu": [
        f"{side}_HAND_{name}"
        for side in ("LEFT", "RIGHT")
        for name in ("ROI_FROM_POSE", "ROI_FROM_RECROP", "TRACKING_ROI")
    ],
    "FaceLandmarksFromPoseCpu": [
        "FACE_ROI_FROM_POSE",
        "FACE_ROI_FROM_DETECTION",
        "FACE_TRACKING_ROI",
    ],
}
"""By node of Holistic's graph, outputs that it leaves unconnected."""
REGIONS = [tag.lower() for tags in HIDDEN.values() for tag in tags]
SIZE = (480, 600)
"""Width and height of the frames of :func:`moving_clip`."""
POINTS = {"pose": 33, "face": 468, "left_hand": 21, "right_hand": 21}


def moving_clip(frames=6):
    """A camera that moves over a photograph of people, of whom one shows both hands.

    MediaPipe finds a face and a pose in all frames, and each hand in some.
    """
    package = Path(find_spec("insightface").origin).parent
    with Image.open(package / "data" / "images" / "t1.jpg") as opened:
        photograph = np.asarray(opened.convert("RGB"))
    width, height = SIZE
    corners = [(600 + 5 * t, 210 + 2 * t) for t in range(frames)]
    return [np.ascontiguousarray(photograph[y : y + height, x : x + width]) for x, y in corners]


class Opened:
    """Holistic(static_image_mode=True, model_complexity=1), whose graph shows its regions.

    The graph is the one that ``mediapipe.solutions`` builds, with names for outputs that it leaves
    out; what it computes stays the same.
    """

    def __init__(self):
        import mediapipe
        from mediapipe.framework import calculator_pb2
        from mediapipe.python.solution_base import SolutionBase

        path = Path(mediapipe.__file__).parent / "modules/holistic_landmark"
        graph = calculator_pb2.CalculatorGraphConfig()
        graph.ParseFromString((path / "holistic_landmark_cpu.binarypb").read_bytes())
        for node in graph.node:
            for tag in HIDDEN.get(node.calculator, ()):
                node.output_stream.append(f"{tag}:{tag.lower()}")
                graph.output_stream.append(f"{tag}:{tag.lower()}")
        options = {"model_complexity": 1, "refine_face_landmarks": False}
        off = ("smooth_landmarks", "enable_segmentation", "smooth_segmentation")
        options |= dict.fromkeys((*off, "use_prev_landmarks"), False)
        detector = "poselandmarkcpu__posedetectioncpu__TensorsToDetectionsCalculator"
        pose = "poselandmarkcpu__poselandmarkbyroicpu__tensorstoposelandmarksandsegmentation__"
        limits = {
            f"{detector}.min_score_thresh": 0.5,
            f"{pose}ThresholdingCalculator.threshold": 0.5,
        }
        with quiet_start(), quiet_calls():
            self._solution = SolutionBase(
                graph_config=graph,
                outputs=[*(f"{part}_landmarks" for part in POINTS), *REGIONS],
                side_inputs=options,
                calculator_params=limits,
            )
            self._solution._graph.wait_until_idle()

    def frame(self, image):
        """Points (n, 4) by part and regions (5,) by name; None where there is none."""
        with quiet_calls():
            found = self._solution.process(image)
        made = {}
        for part in POINTS:
            points = getattr(found, f"{part}_landmarks")
            made[part] = points and np.array(
                [(p.x, p.y, p.z, p.visibility) for p in points.landmark], dtype=np.float32
            )
        for name in REGIONS:
            rect = getattr(found, name)
            made[name] = rect and np.array(
                [rect.x_center, rect.y_center, rect.width, rect.height, rect.rotation],
                dtype=np.float32,
            )
        return made

    def restart(self):
        with quiet_start(), quiet_calls():
            self._solution.reset()
            self._solution._graph.wait_until_idle()

    def close(self):
        with contextlib.suppress(RuntimeError, ValueError):
            self._solution.close()


class Stage:
    """MediaPipe's ImageToTensorCalculator, and its InferenceCalculator behind it."""

    def __init__(self, kind, model=None, outputs=0):
        import mediapipe

        # The options of calculators are known only once their modules are imported.
        from mediapipe.calculators.core import split_vector_calculator_pb2  # noqa: F401
        from mediapipe.calculators.tensor import (  # noqa: F401
            image_to_tensor_calculator_pb2,
            inference_calculator_pb2,
        )
        from mediapipe.python import packet_getter
        from mediapipe.python._framework_bindings import calculator_graph, resource_util

        resource_util.set_resource_dir(str(Path(mediapipe.__file__).parents[1]))
        self._side, self._found, self._time = kind.side, {}, 0
        with quiet_start():
            self._graph = calculator_graph.CalculatorGraph(
                graph_config=_stage_graph(kind, model, outputs)
            )
            for name in ["crop", *(f"out{number}" for number in range(outputs))]:
                self._graph.observe_output_stream(
                    name,
                    lambda name, packet: self._keep(name, packet_getter.get_float_list(packet)),
                )
            self._graph.start_run()
            self._graph.wait_until_idle()

    def _keep(self, name, numbers):
        self._found[name] = np.array(numbers, dtype=np.float32)

    def __call__(self, image, rect):
        """The crop (3, side, side) and the outputs of the model, each flat with channels last."""
        import mediapipe
        from mediapipe.framework.formats import rect_pb2
        from mediapipe.python import packet_creator

        self._time += 1
        self._found.clear()
        names = ("x_center", "y_center", "width", "height", "rotation")
        packed = rect_pb2.NormalizedRect(**dict(zip(names, map(float, rect), strict=True)))
        with quiet_calls():
            frame = packet_creator.create_image_frame(
                image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image)
            )
            for name, packet in (("image", frame), ("rect", packet_creator.create_proto(packed))):
                self._graph.add_packet_to_input_stream(name, packet.at(self._time))
            self._graph.wait_until_idle()
        crop = self._found.pop("crop").reshape(self._side, self._side, 3).transpose(2, 0, 1)
        return crop, [self._found[name] for name in sorted(self._found)]


def _stage_graph(kind, model, outputs):
    from google.protobuf import text_format
    from mediapipe.framework import calculator_pb2

    border = "border_mode: BORDER_ZERO" if kind.zero_border else ""
    text = f"""
        input_stream: "image" input_stream: "rect" output_stream: "crop"
        node {{ calculator: "ImageToTensorCalculator"
          input_stream: "IMAGE:image" input_stream: "NORM_RECT:rect" output_stream: "TENSORS:tensor"
          options {{ [mediapipe.ImageToTensorCalculatorOptions.ext] {{
            output_tensor_width: {kind.side} output_tensor_height: {kind.side}
            keep_aspect_ratio: {str(kind.keep_aspect).lower()}
            output_tensor_float_range {{ min: {kind.low} max: 1.0 }} {border} }} }} }}
        node {{ calculator: "TensorsToFloatsCalculator"
          input_stream: "TENSORS:tensor" output_stream: "FLOATS:crop" }}"""
    if model is not None:
        ranges = " ".join(f"ranges {{ begin: {n} end: {n + 1} }}" for n in range(outputs))
        streams = " ".join(f'output_stream: "one{n}"' for n in range(outputs))
        text += f"""
        node {{ calculator: "TfLiteCustomOpResolverCalculator"
          output_side_packet: "OP_RESOLVER:resolver" }}
        node {{ calculator: "InferenceCalculator" input_side_packet: "OP_RESOLVER:resolver"
          input_stream: "TENSORS:tensor" output_stream: "TENSORS:all"
          options {{ [mediapipe.InferenceCalculatorOptions.ext] {{
            model_path: "mediapipe/modules/{model}" delegate {{ xnnpack {{}} }} }} }} }}
        node {{ calculator: "SplitTensorVectorCalculator" input_stream: "all" {streams}
          options {{ [mediapipe.SplitVectorCalculatorOptions.ext] {{ {ranges} }} }} }}"""
        for n in range(outputs):
            text += f"""
        output_stream: "out{n}"
        node {{ calculator: "TensorsToFloatsCalculator"
          input_stream: "TENSORS:one{n}" output_stream: "FLOATS:out{n}" }}"""
    graph = calculator_pb2.CalculatorGraphConfig()
    text_format.Parse(text, graph)
    return graph
