"""GSRL: weights computed by hand, what it ignores, where its gradients go, and the segmentor that it trains."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sirfp.errors import InputError

PROJECT = str(Path(__file__).resolve().parents[2] / "projects" / "segmentation")
sys.path.insert(0, PROJECT)
from segmentation import gsrl as module  # noqa: E402

sys.path.remove(PROJECT)

IGNORE = 255
CROP = torch.tensor([[[0, 0, 0], [0, 0, 1], [2, IGNORE, IGNORE]]])  # five of class 0, one of 1, one of 2


def effective(count: int, beta: float = 0.5) -> float:
    return 1 - beta**count


def test_a_class_weighs_as_much_as_it_is_rare():
    loss = module.GSRL(IGNORE, beta=0.5)
    common = effective(1) / effective(5)  # 0.5 / 0.96875
    rarest = torch.tensor([[common, common, common], [common, common, 1], [1, 0, 0]])
    torch.testing.assert_close(loss.class_weights(CROP, 4)[0], rarest)
    for sampled in (module.NO_CLASS, 1, 3):  # 3 is not in the crop: the rarest stands in
        torch.testing.assert_close(loss.class_weights(CROP, 4, torch.tensor([sampled]))[0], rarest)
    ones = (CROP != IGNORE).float()
    torch.testing.assert_close(loss.class_weights(CROP, 4, torch.tensor([0])), ones)  # clipped at 1


def test_each_image_counts_for_itself():
    loss = module.GSRL(IGNORE, beta=0.9)
    labels = torch.randint(0, 4, (3, 6, 7), generator=torch.Generator().manual_seed(0))
    sampled = torch.tensor([2, module.NO_CLASS, 0])
    logits = torch.randn(3, 4, 6, 7, generator=torch.Generator().manual_seed(1))
    together = loss.weights(logits, labels, sampled)
    alone = [loss.weights(logits[i : i + 1], labels[i : i + 1], sampled[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    each = [loss(logits[i : i + 1], labels[i : i + 1], alone[i]) for i in range(3)]
    torch.testing.assert_close(loss(logits, labels, together), torch.stack(each).mean())


def test_a_rare_class_lifts_its_window():
    labels = torch.zeros(1, 1, 9, dtype=torch.long)
    labels[0, 0, 4] = 1
    sure = F.one_hot(labels, 2).permute(0, 3, 1, 2) * 100.0
    weights = module.GSRL(IGNORE, beta=0.5, window=3).weights(sure, labels)[0, 0]
    common = effective(1) / effective(8)
    torch.testing.assert_close(weights, torch.tensor([common] * 3 + [1.0] * 3 + [common] * 3))


def test_unsure_pixels_weigh_more():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1)
    weights = module.GSRL(IGNORE, gamma=9).weights(logits, torch.zeros(1, 1, 1, dtype=torch.long))
    assert weights.item() == pytest.approx(1 + 9 * (1 - (0.7 - 0.2)))


def test_the_loss_is_the_weighted_mean_without_ignored_pixels():
    loss = module.GSRL(IGNORE, beta=0.5, window=1, gamma=0)
    logits = torch.zeros(1, 3, 3, 3)
    logits[0, 1] = torch.arange(9.0).view(3, 3)  # the loss differs from pixel to pixel
    values = F.cross_entropy(logits, CROP, ignore_index=IGNORE, reduction="none")[0].flatten()[:7]
    weights = torch.tensor([effective(1) / effective(5)] * 5 + [1, 1])
    value = loss(logits, CROP, loss.weights(logits, CROP))
    torch.testing.assert_close(value, (weights * values).sum() / weights.sum())
    logits[0, 2, 2, 1:] = 50.0  # under the ignored pixels
    torch.testing.assert_close(loss(logits, CROP, loss.weights(logits, CROP)), value)


@pytest.mark.parametrize("kind", ["one class", "nothing labelled", "one class in all"])
def test_poor_crops_have_finite_losses_and_gradients(kind):
    labels = torch.full((2, 5, 5), 1 if kind == "one class" else 0)
    if kind == "nothing labelled":
        labels[0] = IGNORE
    logits = torch.randn(2, 1 if kind == "one class in all" else 3, 5, 5).requires_grad_()
    loss = module.GSRL(IGNORE)
    value = loss(logits, labels, loss.weights(logits, labels))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    if kind == "nothing labelled":
        assert not logits.grad[0].any() and logits.grad[1].any()


def test_gradients_pass_through_the_cross_entropy_alone():
    loss = module.GSRL(IGNORE, beta=0.9, window=3)
    labels = torch.randint(0, 3, (1, 4, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(1, 3, 4, 4).requires_grad_()
    weights = loss.weights(logits, labels)
    assert not weights.requires_grad
    loss(logits, labels, weights).backward()
    by_hand = (logits.softmax(1) - F.one_hot(labels, 3).permute(0, 3, 1, 2)) * weights / weights.sum()
    torch.testing.assert_close(logits.grad, by_hand.detach())


def test_it_is_float32_under_autocast():
    loss, labels = module.GSRL(IGNORE), torch.randint(0, 3, (1, 4, 4))
    logits = torch.randn(1, 3, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, labels, loss.weights(logits, labels))
    assert value.dtype == torch.float32 and math.isfinite(value)
    torch.testing.assert_close(value, loss(logits.float(), labels, loss.weights(logits.float(), labels)))


@pytest.mark.parametrize(
    ("values", "says"), [({"beta": 1.0}, "BETA"), ({"window": 4}, "WINDOW must be odd"), ({"gamma": -1.0}, "GAMMA")]
)
def test_values_out_of_range_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        module.GSRL(IGNORE, **values)
