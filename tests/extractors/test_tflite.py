"""Models of TensorFlow Lite in torch: the numbers of MediaPipe, and errors for anything else."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from kpstore.errors import InvalidError, MissingExtraError, NotFoundError, UnsupportedError
from kpstore.extractors.elementwise import position_free
from kpstore.extractors.mediapipe import models_folder
from kpstore.extractors.mediapipe_models import ALL_MODELS, HandRecropModel
from kpstore.extractors.tflite_file import read_tflite
from kpstore.extractors.tflite_network import load_tflite
from kpstore.extractors.tflite_operations import same_padding
from tests.extractors.mediapipe_oracles import Stage, moving_clip
from tests.extractors.tiny_tflite import flexbuffer, sparse, tiny_model

pytest.importorskip("mediapipe")

CONV = {
    "Padding": 0,
    "StrideH": 2,
    "StrideW": 2,
    "DilationHFactor": 1,
    "DilationWFactor": 1,
    "FusedActivationFunction": 1,
}
N_OUTPUTS = {
    "face_landmark_with_attention": 7,
    "hand_landmark_full": 4,
    "hand_recrop": 1,
    "pose_landmark_full": 5,
}


@pytest.fixture
def written(tmp_path):
    """A function that writes a model and returns its path."""

    def write(*tensors_and_operations, **options):
        path = tmp_path / "model.tflite"
        path.write_bytes(tiny_model(*tensors_and_operations, **options))
        return path

    return write


def convolution(weight=None, bias=None, made=(1, 4, 4, 2), options=CONV, size=8):
    """Tensors and operations of a model of one convolution."""
    weight = np.ones((2, 3, 3, 3), np.float32) if weight is None else weight
    bias = np.zeros(2, np.float32) if bias is None else bias
    return [(1, size, size, 3), weight, bias, made], [("CONV_2D", (0, 1, 2), 3, options)]


@pytest.mark.parametrize("model", ALL_MODELS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("packed", [False, True])
def test_outputs_are_those_of_mediapipe(model, packed):
    name = model.file.rpartition("/")[2].removesuffix(".tflite")
    stage = Stage(model.kind, model.file, N_OUTPUTS.get(name, 2))
    crop, wanted = stage(moving_clip(1)[0], (0.55, 0.4, 0.5, 0.5, 0.3))
    network = load_tflite(models_folder() / model.file, model.outputs)
    if packed:
        network.pack(1)
    with torch.inference_mode():
        found = network(torch.from_numpy(crop[None].copy()))
    for number, values in zip(model.outputs, found, strict=True):
        flat = values.permute(0, 2, 3, 1) if values.dim() == 4 else values
        limit = 1e-4 * np.abs(wanted[number]).max()
        assert np.abs(flat.numpy().ravel() - wanted[number]).max() <= limit


def test_padding_of_an_even_picture_is_at_its_end(written):
    assert same_padding((8, 8), (3, 3), (2, 2)) == (0, 1, 0, 1)
    network = load_tflite(written(*convolution()))
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 0, 0] = 1
    assert network(picture)[0][0, 0].tolist()[0] == [3, 0, 0, 0]
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 7, 7] = 1
    assert network(picture)[0][0, 0, 3].tolist() == [0, 0, 0, 3]


def test_packed_and_plain_convolutions_agree(written):
    weight = np.random.default_rng(0).random((2, 3, 3, 3), np.float32) - 0.5
    network = load_tflite(written(*convolution(weight)))
    picture = torch.rand(4, 3, 8, 8)
    plain = network(picture)[0]
    network.pack(4)
    with torch.inference_mode():
        torch.testing.assert_close(network(picture)[0], plain)


def test_sparse_weights_are_unpacked(written):
    values = np.array([1, 2, 3], np.float16)
    about = sparse((2, 1, 1, 3), [0, 1, 3], [2, 0, 1])
    dense = np.zeros((2, 1, 1, 3), np.float32)
    tensors, _ = convolution()
    tensors = [(1, 8, 8, 3), (values, about), np.zeros(2, np.float32), dense.shape, dense.shape]
    path = written(
        [*tensors, (1, 4, 4, 2)],
        [
            ("DENSIFY", (1,), 3, {}),
            ("DEQUANTIZE", (3,), 4, {}),
            ("CONV_2D", (0, 4, 2), 5, CONV),
        ],
    )
    (found,) = [w for w in read_tflite(path).weights.values() if w.ndim == 4]
    assert found.reshape(2, 3).tolist() == [[0, 0, 1], [2, 3, 0]]
    assert found.dtype == np.float32


def test_only_what_asked_outputs_need_is_kept():
    path = models_folder() / "pose_landmark/pose_landmark_full.tflite"
    whole, pruned = read_tflite(path), read_tflite(path, (0, 1))
    assert len(pruned.operations) < len(whole.operations)
    assert len(pruned.outputs) == 2
    with pytest.raises(InvalidError, match=r"outputs \(7,\) were asked for, found 5"):
        read_tflite(path, (7,))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"DilationHFactor": 2}, "CONV_2D with DilationHFactor=2 is not known"),
        ({"FusedActivationFunction": 4}, "CONV_2D with FusedActivationFunction=4 is not known"),
        ({"Padding": 2}, "CONV_2D with Padding=2 is not known"),
    ],
)
def test_an_unknown_option_is_named(written, changed, said):
    # Whatever is not SAME makes three rows of eight.
    made = (1, 3, 3, 2) if "Padding" in changed else (1, 4, 4, 2)
    path = written(*convolution(made=made, options={**CONV, **changed}))
    with pytest.raises(UnsupportedError, match=said):
        load_tflite(path)


def test_an_unknown_operation_or_type_is_named(written):
    with pytest.raises(UnsupportedError, match="holds the operation TANH, which is not known"):
        load_tflite(written([(1, 8, 8, 3), (1, 8, 8, 3)], [("TANH", (0,), 1, {})]))
    with pytest.raises(UnsupportedError, match="holds numbers of type 9"):
        load_tflite(written(*convolution(np.ones((2, 3, 3, 3), np.int8))))


@pytest.mark.parametrize(
    "parts",
    [
        convolution(made=(1, 5, 5, 2)),
        convolution(np.ones((2, 3, 3, 4), np.float32)),
        convolution(bias=np.ones(3, np.float32)),
        convolution(options={**CONV, "StrideH": 0}),
        ([(1, 8, 8, 3), (1, 8, 8, 3)], [("RELU", (1,), 1, {})]),
        (
            [(1, 8, 8, 3), (1, 8, 8, 3), (1, 8, 8, 3)],
            [("RELU", (2,), 1, {}), ("RELU", (1,), 2, {})],
        ),
        ([(1, 8, 8, 3), (1, 8, 8, 3)], [("RELU", (7,), 1, {})]),
        ([(1, 8, 8, 3), (2, 8, 8, 3)], [("RELU", (0,), 1, {})]),
        ([(1, 8, 8, 4), (1, 8, 8, 4)], [("RELU", (0,), 1, {})]),
        (
            [
                (1, 8, 8, 3),
                (np.ones(2, np.float16), sparse((2, 1, 1, 3), [0, 9, 9], [2, 0])),
                np.zeros(2, np.float32),
                (1, 4, 4, 2),
            ],
            [("CONV_2D", (0, 1, 2), 3, CONV)],
        ),
    ],
    ids=[
        "shape",
        "channels",
        "bias",
        "stride",
        "itself",
        "circle",
        "tensor",
        "rows",
        "colours",
        "sparse",
    ],
)
def test_what_does_not_fit_together_is_one_error(written, parts):
    with pytest.raises((InvalidError, UnsupportedError), match=r"model\.tflite"):
        load_tflite(written(*parts))


def test_huge_shapes_take_no_memory(written):
    shape = (1, 2**15, 2**15, 3)
    with pytest.raises(InvalidError, match="MiB of results for one picture, at most 512"):
        load_tflite(written([shape, shape], [("RELU", (0,), 1, {})]))
    weight = (np.ones(2, np.float16), sparse((2**10, 2**10, 2**10, 3), [0, 1], [2]))
    with pytest.raises(InvalidError, match="would take"):
        load_tflite(
            written(
                [(1, 8, 8, 3), weight, np.zeros(2, np.float32), (1, 4, 4, 2)],
                [("CONV_2D", (0, 1, 2), 3, CONV)],
            )
        )


def test_a_file_that_is_something_else_says_so(tmp_path):
    path = tmp_path / "a.tflite"
    with pytest.raises(NotFoundError, match=r"a\.tflite does not exist"):
        load_tflite(path)
    for content in (b"", b"TFL3", b"PK\x03\x04" + bytes(100), b"\x10\x00\x00\x00TFL3" + bytes(9)):
        path.write_bytes(content)
        with pytest.raises(InvalidError, match=r"a\.tflite"):
            load_tflite(path)


def test_damage_anywhere_is_an_error_or_harmless(tmp_path):
    content = (models_folder() / HandRecropModel.file).read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged.tflite"
    refused = 0
    for _ in range(150):
        # The tables are at the end of the file, behind the weights.
        damaged = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(len(content) * 3 // 4, len(content), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        cut = int(rng.integers(0, len(content))) if rng.random() < 0.2 else len(content)
        path.write_bytes(damaged.tobytes()[:cut])
        try:
            load_tflite(path)
        except (InvalidError, UnsupportedError):
            refused += 1
    assert refused > 20


def test_without_the_reader_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(MissingExtraError, match=r'pip install "kpstore\[holistic-torch\]"'):
        load_tflite(models_folder() / HandRecropModel.file)


@pytest.mark.parametrize("function", [torch.sigmoid, torch.sin, torch.cos])
def test_bits_do_not_depend_on_the_place_of_a_number(function):
    numbers = torch.linspace(-9, 9, 1000)
    whole = position_free(function, numbers)
    for start, end in ((0, 1), (3, 8), (5, 38), (17, 990)):
        assert torch.equal(position_free(function, numbers[start:end]), whole[start:end])
    strided = numbers.view(10, 100).T
    assert torch.equal(position_free(function, strided), whole.view(10, 100).T)


# -- MediaPipe's own operations --------------------------------------------------------------------

MATRIX = {
    "left_rotation_idx": 0,
    "output_height": 4,
    "output_width": 4,
    "right_rotation_idx": 1,
    "scale_x": 1.5,
    "scale_y": 1.5,
    "subset_idxs": [0, 1, 2, 3],
    "target_rotation_radians": 0.0,
}
CUT = {"output_height": 4, "output_width": 4}


def looking_again(matrix=None, cut=None, factor=None):
    """Pixels are points, which say what part of the picture is cut out."""
    factor = np.float32([8]) if factor is None else factor
    where = flexbuffer(MATRIX if matrix is None else matrix)
    return (
        [(1, 8, 8, 3), (1, 64, 3), (1, 64, 3), factor, (1, 4, 4), (1, 4, 4, 3)],
        [
            ("RESHAPE", (0,), 1, {}),
            ("MUL", (1, 3), 2, {"FusedActivationFunction": 0}),
            ("Landmarks2TransformMatrix", (2,), 4, where),
            ("TransformTensorBilinear", (0, 4), 5, flexbuffer(CUT if cut is None else cut)),
        ],
    )


def test_a_part_is_cut_out_where_points_are(written):
    network = load_tflite(written(*looking_again()))
    pictures = torch.rand(3, 3, 8, 8)
    # Points at the corners of the left upper quarter, in eighths of the picture.
    for number, (x, y) in enumerate([(0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)]):
        pictures[:, 0, 0, number], pictures[:, 1, 0, number] = x, y
    (found,) = network(pictures)
    # 1.5 times that quarter in four steps, of which the first begins a pixel off the picture.
    at = torch.arange(4) * 1.5 - 0.75
    assert (found[..., 0] == 0).all()
    x, y = at[2], at[1]
    left, top = int(x), int(y)
    corner = pictures[:, :, top : top + 2, left : left + 2]
    over, under = x - left, y - top
    upper = (1 - over) * corner[..., 0, 0] + over * corner[..., 0, 1]
    lower = (1 - over) * corner[..., 1, 0] + over * corner[..., 1, 1]
    torch.testing.assert_close(found[:, :, 1, 2], (1 - under) * upper + under * lower)


@pytest.mark.parametrize(
    "changed",
    [
        {"matrix": {**MATRIX, "left_rotation_idx": 64}},
        {"matrix": {**MATRIX, "left_rotation_idx": -1}},
        {"matrix": {**MATRIX, "left_rotation_idx": 1.5}},
        {"matrix": {**MATRIX, "left_rotation_idx": "x"}},
        {"matrix": {**MATRIX, "scale_x": float("nan")}},
        {"matrix": {**MATRIX, "scale_y": 0.0}},
        {"matrix": {**MATRIX, "target_rotation_radians": [1, 2]}},
        {"matrix": {**MATRIX, "subset_idxs": []}},
        {"matrix": {**MATRIX, "subset_idxs": [0, 1] * 50_000}},
        {"matrix": {**MATRIX, "subset_idxs": 3}},
        {"matrix": {"scale_x": 1.0}},
        {"cut": {"output_height": 2**20, "output_width": 4}},
        {"cut": {"output_height": True, "output_width": 4}},
        {"factor": np.float32([[[8]]])},
        {"factor": np.float32([8, 8])},
    ],
)
def test_options_of_mediapipes_own_operations_are_not_believed(written, changed):
    with pytest.raises(InvalidError, match="damaged"):
        load_tflite(written(*looking_again(**changed)))
