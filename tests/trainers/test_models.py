"""Shapes, masks and losses of the two models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kpstore.errors import InvalidError
from kpstore.render.raster import draw_skeletons
from kpstore.schema.layout import PART_SLICES, PARTS
from kpstore.trainers.keypoints import (
    HierarchicalKeypointTransformer,
    KeypointConfig,
    KeypointTraining,
    face_frame,
)
from kpstore.trainers.skeleton import (
    HierarchicalSkeletonTransformer,
    SkeletonConfig,
    SkeletonTraining,
    draw_regions,
    lay_down,
)
from tests.trainers.data import SMALL_KEYPOINTS, SMALL_SKELETON, people

NAN = float("nan")


@pytest.fixture
def skeleton() -> HierarchicalSkeletonTransformer:
    torch.manual_seed(0)
    return HierarchicalSkeletonTransformer(SMALL_SKELETON)


@pytest.fixture
def keypoint_model() -> HierarchicalKeypointTransformer:
    torch.manual_seed(0)
    return HierarchicalKeypointTransformer(SMALL_KEYPOINTS)


def batch_of(keypoints: Tensor, size: int = 32) -> dict[str, Tensor]:
    return {
        "keypoints": keypoints,
        "image": torch.from_numpy(draw_skeletons(keypoints.numpy(), size)[:, None]),
    }


def all_finite(model: torch.nn.Module, output: Tensor) -> bool:
    output.sum().backward()
    return bool(torch.isfinite(output).all()) and all(
        bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None
    )


def test_the_models_have_the_documented_sizes() -> None:
    assert HierarchicalKeypointTransformer().config == KeypointConfig(d_global=256, d_region=128)
    model = HierarchicalSkeletonTransformer()
    with torch.inference_mode():
        pictures = model(torch.from_numpy(people(1, 0)))
    assert pictures.shape == (1, 1, 256, 256)
    assert pictures.abs().max() <= 1


def test_a_models_sizes_are_checked_together() -> None:
    with pytest.raises(InvalidError, match=r"width=10 is not .*image_size=40 is not"):
        SkeletonConfig(width=10, image_size=40)


def test_keypoints_of_another_shape_are_one_line(skeleton: HierarchicalSkeletonTransformer) -> None:
    with pytest.raises(InvalidError, match=r"\(batch, 143, 3\) are needed, found \(2, 68, 3\)"):
        skeleton(torch.zeros(2, 68, 3))


def test_missing_parts_never_reach_the_output_or_the_gradients(
    skeleton: HierarchicalSkeletonTransformer,
) -> None:
    keypoints = torch.from_numpy(people(5, 0))
    for number, rows in enumerate(PART_SLICES.values()):
        keypoints[number, rows] = NAN
    keypoints[4] = NAN  # nobody there at all
    keypoints[0, 120, 1] = NAN  # one coordinate of one point
    assert all_finite(skeleton, skeleton(keypoints))


@pytest.mark.parametrize("part", PARTS)
def test_what_stands_behind_the_mask_changes_nothing(
    skeleton: HierarchicalSkeletonTransformer, part: str
) -> None:
    keypoints, detected = torch.from_numpy(people(2, 0)), torch.ones(2, 4, dtype=torch.bool)
    detected[:, PARTS.index(part)] = False
    outputs = []
    for behind in (NAN, 0.0, 0.3, float("inf")):
        keypoints[:, PART_SLICES[part]] = behind
        outputs.append(skeleton(keypoints, detected))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    keypoints[:, PART_SLICES[part]] = 0.3
    assert not torch.equal(outputs[0], skeleton(keypoints))  # whereas a part that is there counts


def test_a_missing_part_is_no_part_at_the_corner(skeleton: HierarchicalSkeletonTransformer) -> None:
    keypoints = torch.from_numpy(people(1, 0))
    there = keypoints.clone()
    keypoints[:, 68:89], there[:, 68:89] = NAN, 0.0
    assert not torch.allclose(skeleton(keypoints), skeleton(there))


def test_a_sample_does_not_depend_on_its_batch(skeleton: HierarchicalSkeletonTransformer) -> None:
    keypoints = torch.from_numpy(people(3, 0))
    keypoints[0, 68:89] = NAN
    torch.testing.assert_close(
        skeleton(keypoints)[1:2], skeleton(keypoints[1:2]), atol=1e-5, rtol=1e-4
    )


def test_features_are_laid_down_where_points_lie() -> None:
    keypoints = torch.tensor(
        [[[0.3125, 0.5625, 0.0], [0.5, 0.5, 0.0], [NAN, NAN, NAN], [2.0, 0.5, 0.0]]]
    )
    features = torch.tensor([[[1.0], [4.0], [9.0], [9.0]]])
    laid = lay_down(features, keypoints, torch.isfinite(keypoints).all(-1), 8)[0, 0]
    expected = torch.zeros(8, 8)
    expected[4, 2] = 1.0  # x in the middle of column 2, y in the middle of row 4
    expected[3:5, 3:5] += 1.0  # a corner of four pixels: 4 shared among them
    torch.testing.assert_close(laid, expected)


def test_faces_with_missing_points_come_out_whole(
    keypoint_model: HierarchicalKeypointTransformer,
) -> None:
    faces = torch.from_numpy(people(4, 0)[:, :68])
    faces[0] = NAN
    faces[1, 36:42] = NAN
    faces[2, 5] = NAN
    output = keypoint_model(faces)
    assert output.shape == (4, 68, 3)
    assert all_finite(keypoint_model, output)
    detected = torch.isfinite(faces).all(dim=-1)
    assert torch.equal(output, keypoint_model(torch.nan_to_num(faces, nan=7.0), detected))


def test_missing_points_leave_the_gradients_of_what_came_before_the_model_finite(
    keypoint_model: HierarchicalKeypointTransformer,
) -> None:
    faces = torch.from_numpy(people(4, 0)[:, :68])
    faces[0], faces[1, 36:42] = NAN, NAN
    faces.requires_grad_()
    keypoint_model(faces).square().mean().backward()
    assert faces.grad is not None
    assert torch.isfinite(faces.grad).all()
    assert faces.grad[2:].any()
    assert not faces.grad[1, 36:42].any()


def test_a_faces_frame_is_that_of_the_points_that_are_there() -> None:
    faces = torch.from_numpy(people(4, 0)[:, :68])
    there = torch.ones(4, 68, dtype=torch.bool)
    there[1, 10:] = False
    there[2] = False
    faces[1, 10:] = NAN
    faces[3] = torch.tensor([0.2, 0.3, 0.4])  # all points at one place
    centre, size = face_frame(faces, there)
    torch.testing.assert_close(centre[0, 0], faces[0].mean(dim=0))
    torch.testing.assert_close(size[1, 0], faces[1, :10].std(dim=0, correction=0))
    assert centre[2, 0].tolist() == [0.5, 0.5, 0.5]
    torch.testing.assert_close(centre[3, 0], torch.tensor([0.2, 0.3, 0.4]))
    torch.testing.assert_close(size[3, 0], torch.full((3,), 1e-3))


def test_a_face_far_away_is_as_easy_as_one_in_the_middle(
    keypoint_model: HierarchicalKeypointTransformer,
) -> None:
    """Before any training, what comes out lies where the face is, and is about as large."""
    faces = torch.from_numpy(people(4, 0)[:, :68]) * 0.1 + torch.tensor([5.0, -3.0, 0.0])
    with torch.inference_mode():
        apart = (keypoint_model(faces).mean(dim=1) - faces.mean(dim=1)).abs()
    assert apart.max() < 0.1


def test_the_loss_counts_only_points_that_are_there() -> None:
    target = torch.from_numpy(people(3, 0)[:, :68])
    target[0] = NAN
    target[1, 60:] = NAN

    def shifted(faces: Tensor) -> Tensor:
        return torch.nan_to_num(faces, nan=100.0) + torch.tensor([0.1, 0.2, 0.0])

    measured = KeypointTraining().measure(shifted, {"keypoints": target})  # type: ignore[arg-type]
    assert measured.count == 68 + 60
    assert measured.loss.item() == pytest.approx((0.1**2 + 0.2**2) / 3, rel=1e-4)
    boxes = [
        np.linalg.norm(np.ptp(face[np.isfinite(face[:, 0]), :2], axis=0))
        for face in target[1:].numpy()
    ]
    expected = 0.1 * 5**0.5 * (60 / boxes[0] + 68 / boxes[1]) / 128
    assert measured.figures["point_error"].item() == pytest.approx(expected, rel=1e-4)


def test_regions_are_where_hands_and_face_are_drawn() -> None:
    keypoints = people(2, 0)
    keypoints[0, 68:110] = np.nan
    regions = draw_regions(keypoints, 64)
    assert set(np.unique(regions[0])) == {0, 1}
    assert set(np.unique(regions[1])) == {0, 1, 2}
    ink = draw_skeletons(keypoints, 64) == 0
    assert ink[regions > 0].all()
    x, y = (keypoints[1, 75, :2] * 64).astype(int)
    assert regions[1, y, x] == 2


def test_weights_follow_the_regions_and_reach_around_them() -> None:
    keypoints = torch.full((2, 143, 3), NAN)
    keypoints[0, 68:89] = 0.5  # all points of a hand at one place
    keypoints[1, 0:68] = 0.5
    training = SkeletonTraining(hands=3.0, face=1.5, rest=1.0, reach=2)
    weights = training.weights(batch_of(keypoints))
    drawn = torch.from_numpy(draw_regions(keypoints.numpy(), 32))
    assert weights.unique().tolist() == [1.0, 1.5, 3.0]
    (rows,) = torch.nonzero((weights[0, 0] == 3.0).any(dim=1), as_tuple=True)
    (drawn_rows,) = torch.nonzero((drawn[0] == 2).any(dim=1), as_tuple=True)
    assert (rows[0], rows[-1]) == (drawn_rows[0] - 2, drawn_rows[-1] + 2)
    batch = {**batch_of(keypoints), "region": drawn[:, None]}
    assert torch.equal(training.weights(batch), weights)


def test_the_weighted_loss_is_the_mean_by_weights_and_the_plain_one_without(
    skeleton: HierarchicalSkeletonTransformer,
) -> None:
    batch = batch_of(torch.from_numpy(people(3, 0)))
    training = SkeletonTraining()
    with torch.no_grad():
        errors = (skeleton(batch["keypoints"]) - (batch["image"].float() / 127.5 - 1)) ** 2
    weights = training.weights(batch)
    weighted, plain = (
        t.measure(skeleton, batch) for t in (training, SkeletonTraining(1.0, 1.0, 1.0))
    )
    assert weighted.loss.item() == pytest.approx(
        ((errors * weights).sum() / weights.sum()).item(), rel=1e-5
    )
    assert plain.loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)
    assert weighted.figures["mse"].item() == pytest.approx(errors.mean().item(), rel=1e-5)


def test_weights_that_make_no_sense_are_refused() -> None:
    for weights in (
        {"hands": -1.0},
        {"face": float("nan")},
        {"hands": float("inf")},
        {"rest": 0.0},
    ):
        with pytest.raises(InvalidError, match=r"use finite numbers from 0, rest more than 0"):
            SkeletonTraining(**weights)


def test_pictures_of_another_size_are_one_line(skeleton: HierarchicalSkeletonTransformer) -> None:
    batch = {"keypoints": torch.from_numpy(people(2, 0)), "image": torch.zeros(2, 1, 64, 64)}
    with pytest.raises(
        InvalidError,
        match=r"batch has pictures of \(1, 64, 64\) and the model draws \(1, 32, 32\)",
    ):
        SkeletonTraining().measure(skeleton, batch)


@pytest.mark.parametrize("kind", ["skeleton", "keypoints"])
def test_the_models_train_in_a_loop_of_ones_own(kind: str) -> None:
    torch.manual_seed(0)
    keypoints = torch.from_numpy(people(8, 0))
    if kind == "skeleton":
        model, inputs = HierarchicalSkeletonTransformer(SMALL_SKELETON), keypoints
        target = batch_of(keypoints)["image"].float() / 127.5 - 1
    else:
        model, inputs = HierarchicalKeypointTransformer(SMALL_KEYPOINTS), keypoints[:, :68]
        target = inputs
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
