"""The losses of distillation against their formulas, computed place by place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sirfp.training.teacher_losses import channel_loss, dense_box_loss, dense_class_loss, offset_loss, region_box_loss


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_channel_loss_is_a_kl_divergence_over_the_positions_of_each_channel():
    """Shu et al. 2021, equation 4: T^2 / C * sum over channels and positions of phi(t) log(phi(t) / phi(s))."""
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            t, s = ((x[image, channel].flatten() / 4).softmax(0) for x in (teacher, student))
            expected += float((t * (t / s).log()).sum()) * 16 / 3 / 2
    assert float(channel_loss(student, teacher, 4.0)) == pytest.approx(expected, rel=1e-5)
    shifted = student + torch.randn(2, 3, 1, 1)
    assert float(channel_loss(shifted, teacher, 4.0)) == pytest.approx(expected, rel=1e-4), "only where, not how much"


def test_dense_classes_count_where_the_teacher_is_sure():
    student, teacher = torch.randn(6, 3), torch.randn(6, 3) * 3
    expected = weights = 0.0
    for s, t in zip(student, teacher, strict=True):
        sure = float(t.sigmoid().max())
        apart = F.binary_cross_entropy_with_logits(s / 2, (t / 2).sigmoid()) - F.binary_cross_entropy_with_logits(
            t / 2, (t / 2).sigmoid()
        )
        expected, weights = expected + sure * 3 * float(apart), weights + sure
    assert float(dense_class_loss(student, teacher, 2.0)) == pytest.approx(4 * expected / weights, rel=1e-4)


def test_boxes_are_pulled_to_those_of_the_teacher():
    teacher = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9]])
    student = torch.tensor([[0.0, 0, 5, 10], [5, 5, 9, 9]])
    assert float(dense_box_loss(student, teacher, torch.tensor([1.0, 1.0]))) == pytest.approx(0.25)  # (1 - 0.5) / 2
    assert float(dense_box_loss(student, teacher, torch.tensor([0.0, 1.0]))) == pytest.approx(0, abs=1e-6)
    point = torch.tensor([[3.0, 3, 3, 3], [5, 5, 9, 9]])
    assert float(dense_box_loss(point, point, torch.ones(2))) == pytest.approx(0, abs=1e-6), "no box, no loss"
    assert dense_box_loss(student * torch.nan, teacher, torch.ones(2)).isnan(), "an iteration to skip, not an error"
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = dense_box_loss(empty, torch.zeros(0, 4), torch.zeros(0))
    loss.backward()
    assert loss.detach() == 0, "an image in which the teacher sees nothing"


def test_offsets_are_weighted_by_the_teacher():
    student, teacher = torch.zeros(2, 4), torch.tensor([[2.0, 0, 0, 0], [0, 0.5, 0, 0]])
    assert float(offset_loss(student, teacher, torch.tensor([3.0, 1.0]))) == pytest.approx((3 * 1.5 + 0.125) / 4)


@pytest.mark.parametrize("agnostic", [True, False])
def test_regions_pull_the_box_of_the_class_that_the_teacher_sees(agnostic):
    classes = torch.tensor([[20.0, 0, 0], [0, 0, 20]])  # class 0, and background
    teacher, student = torch.zeros(2, 4 if agnostic else 8), torch.zeros(2, 4 if agnostic else 8)
    teacher[:, 0] = 2
    assert float(region_box_loss(student, teacher, classes)) == pytest.approx(1.5 / 2, rel=1e-3)
    if not agnostic:
        teacher[:, 0], teacher[:, 4] = 0, 2  # a class that the teacher does not see
        assert float(region_box_loss(student, teacher, classes)) == pytest.approx(0, abs=1e-3)
