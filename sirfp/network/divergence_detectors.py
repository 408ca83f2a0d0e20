"""The divergence of Detectron2's detectors: of the outputs of their heads, each weighted as in the detector's loss.

The dense network's own probabilities take the place of labels. A box or anchor counts as much as it is foreground under
the dense network; scores below the detector's threshold count as background.

L1 losses of boxes have no Hessian at 0. They are quadratic below `LEAST_BETA`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .divergence_terms import BERNOULLI, SOFTMAX, Divergence, Huber, Term, exact, until
from .forward import evaluation

LEAST_BETA = 0.1
"""The smallest difference up to which a box loss is quadratic, in the units of the box deltas; that of RetinaNet's
config. For FCOS it is the share of a box's width or height."""


def huber(beta: float) -> Huber:
    """Returns the measure of box deltas for a loss that is quadratic up to `beta`."""
    return Huber(max(beta, LEAST_BETA))


def foreground(probability: torch.Tensor, threshold: float) -> torch.Tensor:
    """Returns how much each element is foreground: its probability from the threshold on, else 0.

    If none reaches the threshold, the probability of each.
    """
    found = torch.where(probability >= threshold, probability, 0)
    return found if bool(found.any()) else probability


class DenseDivergence(Divergence):
    """The divergence of a `DenseDetector`, RetinaNet or FCOS.

    Outputs are those of the head for each level: class logits (N, A K, h, w), then box deltas (N, 4 A, h, w), then the
    logits of FCOS's centre-ness (N, A, h, w). All terms are divided by the number of foreground anchors under the dense
    network, at least 1, as the losses are by the number of matched anchors.

    Args:
        model: the dense network.
    """

    curve_images = 32

    def __init__(self, model: Any):
        super().__init__()
        self.levels, self.classes = len(model.head_in_features), int(model.num_classes)
        self.threshold = float(getattr(model, "test_score_thresh", 0.0))
        self.beta = float(getattr(model, "smooth_l1_beta", 0.0))

    def outputs(self, model: Any, batch: Any) -> list[torch.Tensor]:
        """Returns the outputs of the head, level after level, kind after kind."""
        found: list[Any] = []
        with evaluation(model):
            until(model, batch, model.head, found.append)
        return [level for kind in found[0] for level in kind]

    def terms(self, dense: Sequence[torch.Tensor]) -> list[Term]:
        """Returns one term for each tensor."""
        levels = [self._level([exact(z) for z in dense[level :: self.levels]]) for level in range(self.levels)]
        scores = foreground(torch.cat([level.scores.flatten() for level in levels]), self.threshold)
        count = scores.sum().clamp_min(1)
        found = []
        sizes = [level.scores.numel() for level in levels]
        for number, (level, flat) in enumerate(zip(levels, scores.split(sizes), strict=True)):
            weight = flat.view_as(level.scores) / count  # (N, A, h, w)
            found.append(Term(number, BERNOULLI, 1 / count))
            found.append(Term(self.levels + number, *self._boxes(dense[self.levels + number], weight, len(dense))))
            if len(dense) > 2 * self.levels:
                found.append(Term(2 * self.levels + number, BERNOULLI, weight))
        return found

    def _level(self, kinds: list[torch.Tensor]) -> _Level:
        logits = kinds[0]
        best = logits.unflatten(1, (-1, self.classes)).amax(2).sigmoid()
        return _Level((best * kinds[2].sigmoid()).sqrt() if len(kinds) > 2 else best)

    def _boxes(self, deltas: torch.Tensor, weight: torch.Tensor, outputs: int) -> tuple[Huber, torch.Tensor]:
        """Returns measure and weights of the box deltas of a level.

        FCOS predicts distances from a point to the left, top, right and bottom side of the box, and its loss depends on
        them in relation to the box's size: smooth L1 of d / s is that of d with beta s, over s.
        """
        each = weight.unsqueeze(2)
        if outputs == 2 * self.levels:
            return huber(self.beta), each.expand(-1, -1, 4, -1, -1).flatten(1, 2)
        sides = exact(deltas).unflatten(1, (-1, 4)).clamp_min(0)
        size = (sides + sides.roll(2, dims=2)).clamp_min(LEAST_BETA)  # width and height, each twice
        return Huber((LEAST_BETA * size).flatten(1, 2)), (each / size).flatten(1, 2)


class _Level(NamedTuple):
    scores: torch.Tensor
    """How likely each anchor of a level is foreground, (N, A, h, w)."""


def region_terms(scores: torch.Tensor, deltas: torch.Tensor, position: int, predictor: Any) -> list[Term]:
    """Returns the terms of a box head: class scores (R, K + 1) and box deltas (R, 4 K) or (R, 4).

    As in Fast R-CNN's losses, both are divided by the number of regions, and deltas count for the foreground alone.

    Args:
        scores: logits of the dense network.
        deltas: box deltas of the dense network.
        position: the position of the scores in the list of outputs; the deltas follow.
        predictor: Detectron2's layer that made them.
    """
    scores = exact(scores)
    share = scores.new_tensor(1 / max(len(scores), 1))
    if getattr(predictor, "use_sigmoid_ce", False):
        kind: Any = BERNOULLI
        probability = scores.sigmoid()[:, :-1]
    else:
        kind, probability = SOFTMAX, scores.softmax(1)[:, :-1]
    box = len(predictor.box2box_transform.weights)
    if deltas.shape[1] > box:  # deltas for each class
        weight = probability.repeat_interleave(box, dim=1)
    else:
        weight = probability.amax(1, keepdim=True) if kind is BERNOULLI else probability.sum(1, keepdim=True)
    beta = float(getattr(predictor, "smooth_l1_beta", 0.0))
    return [Term(position, kind, share), Term(position + 1, huber(beta), weight.expand(deltas.shape) * share)]


def proposal_terms(dense: Sequence[torch.Tensor], first: int, levels: int, rpn: Any) -> list[Term]:
    """Returns the terms of a region proposal network.

    Its losses sample `batch_size_per_image` anchors of each image, a share of them foreground. The weights are the
    expected numbers of times that an anchor is drawn, over the number of samples.

    Args:
        dense: the outputs.
        first: the position of the first objectness logits (N, A, h, w); those of the other levels follow, then the box
            deltas (N, 4 A, h, w) of each level.
        levels: the number of levels.
        rpn: Detectron2's `RPN`.
    """
    logits = [exact(z) for z in dense[first : first + levels]]
    images, size = len(logits[0]), int(rpn.batch_size_per_image)
    probability = torch.cat([z.flatten() for z in logits]).sigmoid()
    yes = foreground(probability, 0.5)
    draws = yes.sum().clamp_max(images * size * float(rpn.positive_fraction))
    yes = yes * draws / yes.sum().clamp_min(torch.finfo(yes.dtype).tiny)
    no = (1 - probability) * (images * size - draws) / (1 - probability).sum().clamp_min(1)
    found = []
    split = [z.numel() for z in logits]
    for level, (z, a, b) in enumerate(zip(logits, yes.split(split), no.split(split), strict=True)):
        weights = [x.view_as(z) / (images * size) for x in (a + b, a)]
        deltas = dense[first + levels + level]
        box = weights[1].unsqueeze(2).expand(-1, -1, deltas.shape[1] // z.shape[1], -1, -1).flatten(1, 2)
        found.append(Term(first + level, BERNOULLI, weights[0]))
        found.append(Term(first + levels + level, huber(float(getattr(rpn, "smooth_l1_beta", 0.0))), box))
    return found
