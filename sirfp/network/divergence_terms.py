"""How far the outputs of a network are from those of the dense network: the measure of the loss curves, without labels.

A divergence is a sum of terms. Each term compares one output tensor element by element; each element has a weight.

| Term | Value for dense output z and other output w | Hessian in w at w = z |
| --- | --- | --- |
| `SOFTMAX` | KL(softmax(z), softmax(w)) over dimension 1 | diag(p) - p p', p = softmax(z) |
| `BERNOULLI` | KL of the two distributions of a yes or no | p (1 - p), p = sigmoid(z) |
| `SQUARED` | (w - z)^2 / 2 | 1 |
| `Huber(beta)` | (w - z)^2 / (2 beta), linear beyond beta | 1 / beta |

A divergence has the value 0 and the gradient 0 where both outputs are equal. So its Hessian in the weights is J' H J,
with J the Jacobian of the outputs and H the Hessians of the table: there are no terms with second derivatives of the
network. `Divergence.probe` samples this matrix. Let s be the log-likelihood of a label drawn from the network's own
distribution. Its gradient in the logits is g = onehot(y) - p, with mean 0 and E[g g'] = diag(p) - p p' (the Fisher
information; Martens, New Insights and Perspectives on the Natural Gradient Method, JMLR 2020, section 9). For a yes or
no, g = y - p has the variance p (1 - p). For a squared error, s = e w with e from a normal distribution of mean 0 and
variance 1, or 1 / beta. Each element has its own draw and the factor sqrt(weight), so that E[g g'] of all elements is
the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError
from .forward import call, evaluation, tensors

LOGITS = ("logits", "out", "aux")
"""Names under which networks return class logits: those of Hugging Face, and of torchvision's segmentors."""


class Kind(Protocol):
    """The measure of a term."""

    def value(self, dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns the divergence of each element, in float32 or float64."""

    def score(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns, for each element, a random scalar whose gradient's second moment is the Hessian of `value`."""


class _Softmax:
    def value(self, dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        p, q = exact(dense).log_softmax(1), exact(other).log_softmax(1)
        return torch.where(p.exp() == 0, 0, p.exp() * (p - q)).sum(1)

    def score(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        logs = exact(output).log_softmax(1)
        bounds = logs.detach().exp().cumsum(1)
        drawn = _uniform(logs.select(1, 0), generator).unsqueeze(1)
        label = (bounds < drawn).sum(1, keepdim=True).clamp_max(logs.shape[1] - 1)
        return logs.gather(1, label).squeeze(1)


class _Bernoulli:
    def value(self, dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        z, w = exact(dense), exact(other)
        p = z.sigmoid()
        return p * (F.logsigmoid(z) - F.logsigmoid(w)) + (1 - p) * (F.logsigmoid(-z) - F.logsigmoid(-w))

    def score(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        z = exact(output)
        yes = _uniform(z, generator) < z.detach().sigmoid()
        return torch.where(yes, F.logsigmoid(z), F.logsigmoid(-z))


class _Squared:
    def value(self, dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (exact(other) - exact(dense)).square() / 2

    def score(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = exact(output)
        return x * torch.randn(x.shape, generator=generator, device=generator.device).to(x)


class Huber(NamedTuple):
    """A squared error, linear for differences above `beta` (smooth L1 loss; Girshick, Fast R-CNN, ICCV 2015).

    Attributes:
        beta: one value, or one for each element.
    """

    beta: float | torch.Tensor

    def value(self, dense: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns the error of each element."""
        away = exact(other) - exact(dense)
        return torch.where(away.abs() < self.beta, away.square() / (2 * self.beta), away.abs() - self.beta / 2)

    def score(self, output: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Returns each element times a draw from a normal distribution of variance 1 / beta."""
        return SQUARED.score(output, generator) * self.beta**-0.5


SOFTMAX, BERNOULLI, SQUARED = _Softmax(), _Bernoulli(), _Squared()


class Term(NamedTuple):
    """One term of a divergence.

    Attributes:
        position: the position of the compared tensor in the list of outputs.
        kind: the measure.
        weight: the weight of each element of `kind.value`, or a tensor that broadcasts to it; the divergence is the
            weighted sum.
    """

    position: int
    kind: Kind
    weight: torch.Tensor


class Divergence:
    """The mean divergence of any network's outputs from those of the dense network, in nats.

    Outputs (N, K) and (N, K, H, W) are class logits: the term is the KL divergence over the classes, its mean over
    images and pixels; with K = 1, that of a yes or no. A tensor of other dimensions has the mean of half the squared
    error over the variance of the dense output, the KL divergence of normal distributions with this variance. So have
    maps of several sizes, which are features, not logits. Outputs of several tensors have the sum of the terms; where
    some are named as logits, only those and predictions (`pred...`) are compared, not hidden states. Probabilities
    (of sum 1 over the classes) are replaced by their logarithms.

    Args:
        run: `run(model, batch)` calls a network.

    Attributes:
        sampled: True if `probe` samples the Hessian.
        curve_images: the number of images on which loss curves are measured by default. Where each image has an output
            for many pixels or anchors, few images say as much and each costs more.
    """

    sampled = True
    curve_images = 64

    def __init__(self, run: Callable[[nn.Module, Any], Any] = call) -> None:
        self.run, self._checked = run, False

    def outputs(self, model: nn.Module, batch: Any) -> list[Any]:
        """Runs a network in evaluation mode and returns what is compared.

        Gradients are recorded if the caller enables them.

        Args:
            model: the dense network, or one with fewer channels inside.
            batch: inputs of one batch, as for `sirfp.network.forward.call`.

        Raises:
            InputError: the network returns no floating-point tensor.
        """
        with evaluation(model):
            return comparable(self.run(model, batch))

    def images(self, outputs: Sequence[Any]) -> int:
        """Returns the number of images of a batch."""
        return int(outputs[0].shape[0])

    def terms(self, dense: Sequence[torch.Tensor]) -> list[Term]:
        """Returns the terms for outputs of the dense network, which are the terms' only source of weights."""
        found = []
        for index, z in enumerate(dense):
            if z.dim() in (2, 4):
                kind = SOFTMAX if z.shape[1] > 1 else BERNOULLI
                found.append(Term(index, kind, _share(z, max(prod(z.shape) // z.shape[1], 1))))
            else:
                found.append(Term(index, SQUARED, 1 / (_spread(z) * max(z.numel(), 1))))
        return found

    def compare(self, dense: Sequence[Any], other: Sequence[Any]) -> torch.Tensor:
        """Returns the mean divergence over the images of a batch, (), float32 or float64.

        The first call also compares the dense outputs with themselves.

        Args:
            dense: the result of `outputs` for the dense network.
            other: the result of `outputs` for another network, on the same batch.

        Raises:
            InputError: the divergence is not finite, not zero for the dense network itself, or the two networks return
                different tensors.
        """
        if not self._checked:
            own = self._value(dense, dense).detach()
            if not own.isfinite():
                raise InputError(f"the divergence of the dense network from itself is {float(own)}: {self._advice()}")
            if abs(float(own)) > 1e-6:
                raise InputError(f"the divergence of the dense network from itself is {float(own):.3g}, not 0")
            self._checked = True
        value = self._value(dense, other)
        if not value.detach().isfinite():
            raise InputError(f"the divergence from the dense network is {float(value)}: {self._advice()}")
        return value

    def _advice(self) -> str:
        return "look for values in the outputs that are not finite: from training that has diverged, or half precision"

    def _value(self, dense: Sequence[Any], other: Sequence[Any]) -> torch.Tensor:
        if [z.shape for z in dense] != [w.shape for w in other]:
            shapes = (", ".join(str(tuple(z.shape)) for z in each) for each in (dense, other))
            raise InputError("outputs of different shapes cannot be compared: {} and {}".format(*shapes))
        parts = [(t.kind.value(dense[t.position], other[t.position]) * t.weight).sum() for t in self.terms(dense)]
        return torch.stack(parts).sum()

    def probe(self, outputs: Sequence[Any], generator: torch.Generator) -> torch.Tensor:
        """Returns a random scalar, (), whose gradients sample the Hessian of `compare` at the dense network.

        The scalar is a sum over images of independent parts with mean gradient 0. The second moment of the gradient of
        one image's part, averaged over images and draws, is the Hessian of `compare` (see the top of this module).

        Args:
            outputs: the result of `outputs` for the dense network, with gradients enabled.
            generator: draws the labels and the noise; its device need not be that of the outputs.
        """
        dense = [z.detach() for z in outputs]
        images = self.images(outputs)
        parts = [
            (term.kind.score(outputs[term.position], generator) * (images * term.weight).sqrt()).sum()
            for term in self.terms(dense)
        ]
        return torch.stack(parts).sum()


def comparable(output: Any) -> list[torch.Tensor]:
    """Returns the tensors of a raw output that can be compared, in the forms that `Divergence` describes.

    Class logits are (N, K) or (N, K, H, W), others (N, L, 1). Logits (N, Q, K) of Q queries become (N, K, Q, 1).

    Raises:
        InputError: there is no floating-point tensor.
    """
    found = [(path.split(".")[1:], x) for path, x in tensors(output) if x.is_floating_point() and x.numel()]
    if not found:
        raise InputError("the network returns no floating-point tensor to compare; give divergence=")
    named = [(names, x) for names, x in found if any(name in LOGITS for name in names)]
    if named:
        found = [(names, x) for names, x in found if any(name in LOGITS or "pred" in name for name in names)]
    features = len({x.shape[2:] for _, x in found if x.dim() == 4}) > 1
    result = []
    for names, x in found:
        logits = any(name in LOGITS for name in names)
        if logits and x.dim() == 3:
            x = x.transpose(1, 2).unsqueeze(3)
        if x.dim() in (2, 4) and (logits or not (named or (features and x.dim() == 4))):
            result.append(_logits(x))
        else:
            result.append(x.reshape(len(x) if x.dim() else 1, -1, 1))
    return result


def _logits(x: torch.Tensor) -> torch.Tensor:
    """Returns the logarithms of probabilities; other tensors unchanged."""
    with torch.no_grad():
        probabilities = x.shape[1] > 1 and bool((x >= 0).all()) and bool(((exact(x).sum(1) - 1).abs() < 1e-2).all())
    return exact(x).clamp_min(torch.finfo(torch.float32).tiny).log() if probabilities else x


def exact(x: torch.Tensor) -> torch.Tensor:
    """Returns a tensor in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def _share(x: torch.Tensor, count: int) -> torch.Tensor:
    return exact(x).new_tensor(1 / count)


def _spread(x: torch.Tensor) -> torch.Tensor:
    """Returns the variance of all elements, or their mean square, or 1, whichever is the first above 0."""
    values = exact(x)
    variance, square = values.var(unbiased=False), values.square().mean()
    square = torch.where(square > 0, square, torch.ones_like(square))
    return torch.where(variance > 1e-12 * square, variance, square)


def _uniform(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)


class Enough(BaseException):
    """Ends a forward pass whose outputs are known; not an Exception, so that no network catches it."""


@contextmanager
def noted(module: nn.Module, see: Callable[[Any, Any], None]) -> Iterator[None]:
    """Passes, while active, the positional inputs and the output of each call of a module to `see`."""
    handle = module.register_forward_hook(lambda _, inputs, output: see(inputs, output))
    try:
        yield
    finally:
        handle.remove()


def until(model: nn.Module, batch: Any, last: nn.Module, see: Callable[[Any], None]) -> Any:
    """Runs a network until one of its modules has returned.

    Args:
        model: the network.
        batch: its inputs.
        last: the module after whose first call the pass ends.
        see: called with the output of `last`.

    Returns:
        None, or the network's output if it does not call `last`.
    """

    def end(_: Any, output: Any) -> None:
        see(output)
        raise Enough

    with suppress(Enough), noted(last, end):
        return call(model, batch)
    return None
