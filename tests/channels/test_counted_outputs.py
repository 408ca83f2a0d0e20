"""Models of which only a part of the outputs counts: channels of the others go, and only this part is compared."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.network.wrappers import unwrapped

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass
class Out:
    logits: torch.Tensor
    hidden: list[torch.Tensor]
    loss: torch.Tensor | None = None


class Net(nn.Module):
    """Returns hidden states beside its logits, and a loss if there are labels, as in Hugging Face's transformers."""

    kind: type = Out

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x, labels=None):
        first = F.relu(self.a(x))
        second = F.relu(self.b(first))
        logits = self.head(second.mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return self.kind(logits, [first, second], loss)


class Mapped(Net):
    kind = staticmethod(lambda logits, hidden, loss: {"logits": logits, "hidden": hidden})


class Tupled(Net):
    kind = staticmethod(lambda logits, hidden, loss: (logits, *hidden))


class Trained(Net):
    """Returns its loss alone in training."""

    def forward(self, x, labels=None):
        out = super().forward(x, labels)
        return out.logits.square().mean() if self.training else out


CASES = {
    Net: lambda out: out.logits,
    Mapped: lambda out: out["logits"],
    Tupled: lambda out: out[0],
    Trained: lambda out: out.logits,
}


def build(kind=Net) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_only_the_counted_part_stays(kind):
    dense = build(kind)
    assert not find_groups(dense, X[:1]).groups
    with pytest.raises(InputError, match="nothing in the model can be cut"):
        sirfp.prune(build(kind), X[:1], "magnitude", keep_flops=0.5)
    assert [g.name for g in find_groups(dense, X[:1], outputs=CASES[kind])] == ["a", "b"]
    pruned = copy.deepcopy(dense)
    plan = sirfp.prune(pruned, X[:1], "magnitude", keep_flops=0.5, bias_correction=False, outputs=CASES[kind])
    assert plan.flops[1] <= 0.5 * plan.flops[0]
    out = pruned(X)
    assert type(out) is type(dense(X)) and CASES[kind](out).shape == (4, 5), "the model itself returns all it did"
    sirfp.verify.mask(dense, plan)
    assert sirfp.verify.compare(dense, pruned, X, plan).problem
    assert sirfp.verify.compare(dense, pruned, X, plan, CASES[kind]).relative < 1e-5
    assert not dense._forward_hooks and not pruned._forward_hooks


@pytest.mark.parametrize("options", [{"criterion": "sirfp_setwise"}, {"criterion": "sirfp", "widths": "curves"}])
def test_curves_and_refits_see_the_counted_part(options):
    model = build()
    batches = [X.roll(k, 2) for k in range(4)]
    plan = sirfp.prune(model, X[:1], calibration=batches, keep_flops=0.6, outputs=CASES[Net], **options)
    assert 0.5 < plan.flops[1] / plan.flops[0] <= 0.6
    found = sirfp.sensitivity(build(), X[:1], calibration=batches, outputs=CASES[Net])
    assert [one.group for one in found] == ["a", "b"]


def test_a_loss_gets_the_whole_output():
    labels = torch.tensor([0, 1, 2, 3])
    seen = []

    def loss(model, batch):
        out = model(*batch)
        seen.append(type(out))
        return out.loss

    sirfp.prune(build(), X[:1], "taylor", keep_flops=0.5, calibration=[(X, labels)], loss=loss, outputs=CASES[Net])
    assert seen and set(seen) == {Out}


def test_wrapped_models_too():
    model = nn.DataParallel(build())
    plan = sirfp.prune(model, X[:1], "magnitude", keep_flops=0.5, outputs=CASES[Net])
    assert plan.flops[1] <= 0.5 * plan.flops[0] and not unwrapped(model)._forward_hooks


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ("logits", "outputs must be a function of the model's output, .* got 'logits'"),
        (lambda out: out.logit, "outputs fails on the model's output, Out: AttributeError"),
        (lambda out: None, "outputs must return tensors of the model's output, got NoneType"),
    ],
)
def test_wrong_functions_are_said_in_one_line(outputs, says):
    model = build()
    with pytest.raises(InputError, match=says) as error:
        sirfp.prune(model, X[:1], "magnitude", keep_flops=0.5, outputs=outputs)
    assert "\n" not in str(error.value) and not model._forward_hooks
