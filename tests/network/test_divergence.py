"""Divergences are KL where outputs are class logits, and their probes sample the exact Hessian."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from small_segmentors import segmentor
from torch import nn

from sirfp.errors import InputError
from sirfp.network.divergence import divergence_for
from sirfp.network.divergence_terms import BERNOULLI, SOFTMAX, SQUARED, Divergence, Huber, Term, comparable

SHAPES = {"classes": (5,), "yes": (1,), "pixels": (4, 2, 3), "values": (3, 1)}
"""Outputs of one image."""


class Given(nn.Module):
    """Returns what a function makes of its input times a weight."""

    def __init__(self, make):
        super().__init__()
        self.make, self.scale = make, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.make(x * self.scale)


@dataclass
class Found:
    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]


@pytest.mark.parametrize("kind", SHAPES)
def test_probes_sample_the_hessian_of_the_divergence(kind):
    """Equal images are equal draws: the mean of g g' over 20000 images against the exact Hessian of `compare`."""
    torch.manual_seed(0)
    divergence, draws = Divergence(), 20000
    one = torch.randn(1, *SHAPES[kind], dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda w: divergence.compare([one], [w]), one)
    hessian = hessian.reshape(one.numel(), one.numel())
    many = one.repeat(draws, *[1] * (one.dim() - 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(divergence.probe([many], torch.Generator().manual_seed(1)), many)
    gradient = gradient.flatten(1)
    assert (gradient.T @ gradient / draws - hessian).norm() < 0.05 * hessian.norm()
    assert gradient.mean(0).norm() < 0.05 * hessian.trace().sqrt()


def test_probes_sample_the_hessian_in_the_weights():
    """The same through a network: images of their own, each with a copy of the weights, against H of all images."""
    torch.manual_seed(0)
    divergence, images, repeats = Divergence(), torch.randn(3, 4, dtype=torch.float64), 8000
    first = torch.randn(6, 4, dtype=torch.float64)
    last = torch.randn(5, 6, dtype=torch.float64)

    def outputs(weights, x):
        """Of weights (N, 6, 4) and images (N, 4)."""
        return [torch.einsum("noi,ni->no", weights, x).tanh() @ last.T]

    dense = outputs(first.expand(3, 6, 4), images)
    hessian = torch.autograd.functional.hessian(
        lambda w: divergence.compare(dense, outputs(w.expand(3, 6, 4), images)), first
    ).reshape(24, 24)
    copies = first.repeat(3 * repeats, 1, 1).requires_grad_()
    probe = divergence.probe(outputs(copies, images.repeat(repeats, 1)), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(probe, copies)
    gradient = gradient.flatten(1)
    assert (gradient.T @ gradient / len(gradient) - hessian).norm() < 0.05 * hessian.norm()


def test_probes_of_weighted_terms_sample_their_hessian():
    torch.manual_seed(0)
    draws = 20000
    one = [torch.randn(1, n, dtype=torch.float64) for n in (3, 2, 2, 2)]

    class Weighted(Divergence):
        def terms(self, dense):
            kinds = (SOFTMAX, BERNOULLI, SQUARED, Huber(0.2))
            weights = [torch.tensor([0.3]), *(torch.tensor([a, 1.0]) for a in (0.2, 3.0, 0.0))]
            return [Term(i, kind, w / len(dense[0])) for i, (kind, w) in enumerate(zip(kinds, weights, strict=True))]

    divergence, whole = Weighted(), torch.cat(one, dim=1)
    hessian = torch.autograd.functional.hessian(
        lambda w: divergence.compare(one, list(w.split([3, 2, 2, 2], dim=1))), whole
    ).reshape(9, 9)
    many = whole.repeat(draws, 1).requires_grad_()
    probe = divergence.probe(list(many.split([3, 2, 2, 2], dim=1)), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(probe, many)
    assert (gradient.T @ gradient / draws - hessian).norm() < 0.05 * hessian.norm()


@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4, 6)])
def test_class_logits_have_the_mean_kl_divergence(shape):
    torch.manual_seed(0)
    dense, other = torch.randn(shape), torch.randn(shape)
    p, q = dense.log_softmax(1), other.log_softmax(1)
    expected = F.kl_div(q, p, log_target=True, reduction="none").sum(1).mean()
    assert torch.isclose(divergence_for(nn.Identity()).compare([dense], [other]), expected)
    assert divergence_for(nn.Identity()).compare([dense], [dense + 3]) < 1e-6  # the same probabilities


def test_one_class_has_the_divergence_of_a_yes_or_no():
    dense, other = torch.randn(8, 1), torch.randn(8, 1)
    two = [torch.cat([x, torch.zeros_like(x)], dim=1) for x in (dense, other)]
    divergence = divergence_for(nn.Identity())
    assert torch.isclose(divergence.compare([dense], [other]), divergence.compare(*([x] for x in two)))


def test_other_outputs_have_the_squared_error_over_their_variance():
    dense, other = torch.randn(4, 6, 2), torch.randn(4, 6, 2)
    found = divergence_for(nn.Identity()).compare(comparable(dense), comparable(other))
    assert torch.isclose(found, ((dense - other) ** 2).mean() / dense.var(unbiased=False) / 2)
    assert divergence_for(nn.Identity()).compare(comparable(torch.ones(3)), comparable(torch.ones(3) * 1.5)).isfinite()


def test_masked_classes_do_not_count():
    masked = torch.tensor([[1.0, 2.0, float("-inf")], [0.5, float("-inf"), 1.0]])
    assert divergence_for(nn.Identity()).compare([masked], [masked]) == 0


def test_half_precision_is_compared_in_float32():
    dense, other = torch.randn(64, 9), torch.randn(64, 9)
    divergence = divergence_for(nn.Identity())
    half = divergence.compare([dense.bfloat16()], [other.bfloat16()])
    assert half.dtype == torch.float32 and torch.isclose(half, divergence.compare([dense], [other]), rtol=0.02)


def shapes(make, x=None):
    model = Given(make)
    with torch.no_grad():
        return [tuple(y.shape) for y in divergence_for(model).outputs(model, torch.randn(2, 5) if x is None else x)]


def test_outputs_of_every_form():
    assert shapes(lambda x: x) == [(2, 5)]
    assert shapes(lambda x: {"logits": x, "hidden_states": (x, x)}) == [(2, 5)]
    assert shapes(lambda x: Found(x, (x, x))) == [(2, 5)]
    assert shapes(lambda x: [x, (x[:, :3], None, "a", x.long())]) == [(2, 5), (2, 3)]
    assert shapes(lambda x: x[:, 0]) == [(2, 1, 1)]
    assert shapes(lambda x: x.sum()) == [(1, 1, 1)]
    assert shapes(lambda x: {"pred_boxes": x[:, None, :4], "logits": x[:, None]}) == [(2, 4, 1), (2, 5, 1, 1)]
    maps = [torch.randn(2, 4, side, side) for side in (8, 4)]
    assert shapes(lambda x: maps) == [(2, 256, 1), (2, 64, 1)]
    assert shapes(lambda x: {"out": maps[0], "aux": maps[1]}) == [(2, 4, 8, 8), (2, 4, 4, 4)]


def test_inputs_of_every_form():
    class Two(nn.Module):
        def forward(self, a, b):
            assert not self.training
            return a + b

    model, a, b = Two().train(), torch.randn(2, 3), torch.randn(2, 3)
    for batch in ((a, b), {"a": a, "b": b}):
        assert torch.equal(divergence_for(model).outputs(model, batch)[0], a + b)
    assert model.training


def test_probabilities_are_compared_as_such():
    dense, other = torch.randn(4, 6), torch.randn(4, 6)
    divergence = divergence_for(nn.Identity())
    wanted = divergence.compare([dense], [other])
    assert torch.isclose(divergence.compare(comparable(dense.softmax(1)), comparable(other.softmax(1))), wanted)


@pytest.mark.parametrize("sizes", [((64, 64), (64, 64)), ((40, 64), (40, 64)), ((64, 40), (33, 64))])
@pytest.mark.parametrize("head", ["DeepLabV3PlusHead", "SemSegFPNHead", "ConcatenationHead"])
def test_segmentors_are_compared_by_their_heads_logits_without_padding(head, sizes):
    model = segmentor(head, "hrnet_w18_small" if head == "ConcatenationHead" else "18", "BN")
    batch = [{"image": torch.rand(3, *size) * 255, "height": 99, "width": 99} for size in sizes]
    divergence, seen = divergence_for(model), []
    handle = model.sem_seg_head.predictor.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        outputs = divergence.outputs(model, batch)
    handle.remove()
    crops = [(-(-h // model.sem_seg_head.common_stride), -(-w // model.sem_seg_head.common_stride)) for h, w in sizes]
    assert len(outputs) == (1 if sizes[0] == sizes[1] else 2)
    single = [one for output in outputs for one in output]
    assert [one.shape[1:] for one in single] == crops
    for one, whole, (h, w) in zip(single, seen[0], crops, strict=True):
        assert torch.equal(one, whole[:, :h, :w])
    other = [x + torch.randn_like(x) for x in outputs]
    each = [F.kl_div(b.log_softmax(1), a.log_softmax(1), log_target=True, reduction="none").sum(1).flatten(1).mean(1)
            for a, b in zip(outputs, other, strict=True)]  # fmt: skip
    assert torch.isclose(divergence.compare(outputs, other), torch.cat(each).mean())
    assert divergence.images(outputs) == 2


def test_a_head_without_a_classifier_module_is_compared_by_its_output():
    class Head(nn.Module):
        common_stride = 1

        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 1)

        def forward(self, features, targets=None):
            return self.layer(features["x"]), {}

    class Backbone(nn.Module):
        size_divisibility, padding_constraints = 0, {}

        def output_shape(self):
            return {"x": ShapeSpec(channels=3, stride=1)}

        def forward(self, x):
            return {"x": x}

    from detectron2.modeling import SemanticSegmentor

    model = SemanticSegmentor(backbone=Backbone(), sem_seg_head=Head(), pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    (found,) = divergence_for(model).outputs(model, [{"image": torch.rand(3, 8, 9)}])
    assert found.shape == (1, 5, 8, 9)


def test_a_divergence_of_the_users_reads_raw_outputs():
    model = Given(lambda x: {"out": x, "text": "a"})
    divergence = divergence_for(model, lambda a, b: (a["out"] - b["out"]).abs().mean())
    dense = divergence.outputs(model, torch.zeros(2, 3))
    other = divergence.outputs(model, torch.ones(2, 3))
    assert divergence.compare(dense, other) == 1


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda a, b: (a - b).sum() / 0.0, "is nan: mend the function"),
        (lambda a, b: (a + b).square().mean() + 1, "not 0"),
        (lambda a, b: a - b, "must return one floating-point number, got a tensor"),
        (lambda a, b: 0.0, "must return one floating-point number, got float"),
        (lambda a, b: (a != b).sum(), "must return one floating-point number"),
    ],
)
def test_a_wrong_divergence_is_one_line(function, words):
    divergence = divergence_for(nn.Identity(), function)
    outputs = divergence.outputs(nn.Identity(), torch.randn(2, 3))
    with pytest.raises(InputError) as error:
        divergence.compare(outputs, divergence.outputs(nn.Identity(), torch.randn(2, 3)))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_outputs_that_cannot_be_compared_are_one_line():
    divergence = divergence_for(nn.Identity())
    with pytest.raises(InputError, match="no floating-point tensor"):
        divergence.outputs(Given(lambda x: {"classes": x.argmax(1)}), torch.randn(2, 3))
    with pytest.raises(InputError, match="different shapes"):
        divergence.compare([torch.randn(2, 3)], [torch.randn(2, 4)])
    with pytest.raises(InputError, match="dense network from itself is nan: .* training that has diverged"):
        divergence_for(nn.Identity()).compare([torch.full((2, 3), torch.nan)], [torch.randn(2, 3)])
    with pytest.raises(InputError, match="not finite"):
        divergence.compare([torch.randn(2, 3)], [torch.full((2, 3), torch.inf)])
