"""The divergence of Detectron2's detectors with region proposals, all of whose heads read the dense network's boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import InputError
from .divergence_detectors import proposal_terms, region_terms
from .divergence_semantic import classifier, semantic_terms, without_padding
from .divergence_terms import BERNOULLI, SOFTMAX, Divergence, Enough, Term, exact, noted
from .forward import call, evaluation
from .same_boxes import same_boxes


class _Boxes(NamedTuple):
    """The dense network's boxes for one batch, and the batch itself, so that its identity is not given anew."""

    batch: Any
    read: list[Any]
    detected: list[Any]


class RegionDivergence(Divergence):
    """The divergence of a `GeneralizedRCNN`, `ProposalNetwork` or `PanopticFPN`: the sum of those of its heads.

    Every network reads the dense network's boxes: proposals, those between the stages of a cascade, and detections.
    Outputs are, in this order: an empty tensor (N, 0); the proposal network's objectness and box deltas of each level;
    class scores and box deltas of each stage; for each detection the mask logits (R, M, M) of its class; the keypoint
    logits (R keypoints, positions), whose loss is a softmax over positions; the logits of a `sem_seg_head`.

    Args:
        model: the dense network. It must not change before it has run on every batch.
    """

    curve_images = 32

    def __init__(self, model: Any):
        super().__init__()
        self.dense = model
        self._boxes: dict[int, _Boxes] = {}

    def outputs(self, model: Any, batch: Any) -> list[torch.Tensor]:
        """Returns the heads' outputs for the dense network's boxes.

        On a batch that is new, the dense network runs first.

        Raises:
            InputError: a head returns something else than Detectron2's heads do.
        """
        if id(batch) not in self._boxes:
            boxes = _Boxes(batch, [], [])
            with torch.no_grad():
                outputs = self._run(self.dense, boxes, record=True)
            self._boxes[id(batch)] = boxes
            if model is self.dense and not torch.is_grad_enabled():
                return outputs
        return self._run(model, self._boxes[id(batch)], record=False)

    def _run(self, model: Any, boxes: _Boxes, *, record: bool) -> list[torch.Tensor]:
        found: dict[str, list[Any]] = {name: [] for name in ("proposals", "boxes", "masks", "keypoints", "semantic")}
        padded: list[torch.Size] = []
        heads, rpn = getattr(model, "roi_heads", None), getattr(model, "proposal_generator", None)
        with evaluation(model), ExitStack() as stack:
            stack.enter_context(same_boxes(model, boxes.read, record=record))
            stack.enter_context(noted(model.backbone, lambda inputs, _: padded.append(inputs[0].shape[-2:])))
            for name, module in _heads(model):
                stack.enter_context(noted(module, partial(_keep, found[name])))
            for _, module in _detection_heads(heads)[-1:]:
                stack.enter_context(noted(module, _end))
            if heads is not None:
                stack.enter_context(_detections(heads, boxes.detected, record=record))
            with suppress(Enough):
                call(model, boxes.batch)
        result = [next(model.parameters()).new_zeros(len(boxes.batch), 0)]
        if rpn is not None:
            result += _of(found["proposals"], "the region proposal network", 2 * len(rpn.in_features))
        for predictions in found["boxes"]:
            result += _of([predictions], "the box head", 2)
        if found["masks"]:
            classes = torch.cat([one.pred_classes for one in boxes.detected])
            result.append(_own_masks(found["masks"][0], classes))
        if found["keypoints"]:
            result.append(found["keypoints"][0].flatten(0, 1).flatten(1))
        if found["semantic"]:
            logits = found["semantic"][0]
            result += without_padding(logits[0] if isinstance(logits, tuple) else logits, padded[0], boxes.batch)
        return result

    def terms(self, dense: Sequence[torch.Tensor]) -> list[Term]:
        """Returns the terms of all heads."""
        terms: list[Term] = []
        at = 1
        rpn, heads = getattr(self.dense, "proposal_generator", None), getattr(self.dense, "roi_heads", None)
        if rpn is not None:
            levels = len(rpn.in_features)
            terms += proposal_terms(dense, at, levels, rpn)
            at += 2 * levels
        for predictor in _predictors(heads):
            terms += region_terms(dense[at], dense[at + 1], at, predictor)
            at += 2
        for name, kind in (("mask", BERNOULLI), ("keypoint", SOFTMAX)):
            if name in {kind for kind, _ in _detection_heads(heads)}:
                z = exact(dense[at])
                count = z.numel() if kind is BERNOULLI else len(z)
                terms.append(Term(at, kind, z.new_tensor(1 / max(count, 1))))
                at += 1
        return terms + semantic_terms(dense, at)


def _keep(found: list[Any], inputs: Any, output: Any) -> None:
    found.append(output)


def _end(inputs: Any, output: Any) -> None:
    """Ends the pass: what follows only decodes the output."""
    raise Enough


def _predictors(heads: Any) -> list[nn.Module]:
    found = getattr(heads, "box_predictor", None)
    return list(found) if isinstance(found, nn.ModuleList) else [found] if found is not None else []


def _detection_heads(heads: Any) -> list[tuple[str, nn.Module]]:
    """("mask" or "keypoint", the module that makes the logits) of the heads that read detections."""
    found = []
    for name, layer in (("mask", "predictor"), ("keypoint", "score_lowres")):
        module = getattr(getattr(heads, f"{name}_head", None), layer, None)
        if getattr(heads, f"{name}_on", False) and isinstance(module, nn.Module):
            found.append((name, module))
    return found


def _heads(model: Any) -> list[tuple[str, nn.Module]]:
    """The modules whose outputs are compared, by kind."""
    found: list[tuple[str, nn.Module]] = []
    rpn, heads = getattr(model, "proposal_generator", None), getattr(model, "roi_heads", None)
    if rpn is not None:
        found.append(("proposals", rpn.rpn_head))
    found += [("boxes", predictor) for predictor in _predictors(heads)]
    found += [(f"{name}s", module) for name, module in _detection_heads(heads)]
    if getattr(model, "sem_seg_head", None) is not None:
        found.append(("semantic", classifier(model)))
    return found


def _of(outputs: list[Any], head: str, count: int) -> list[torch.Tensor]:
    """Flattens a head's output, which must hold `count` tensors."""
    found = [x for output in outputs for kind in output for x in (kind if isinstance(kind, (list, tuple)) else [kind])]
    if len(found) != count or not all(isinstance(x, torch.Tensor) for x in found):
        raise InputError(f"{head} returns other outputs than that of Detectron2; give divergence=")
    return found


def _own_masks(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The mask logits (R, M, M) of each detection's class, of those of all classes (R, K, M, M) or (R, 1, M, M)."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, classes if logits.shape[1] > 1 else torch.zeros_like(classes)]


@contextmanager
def _detections(heads: Any, detected: list[Any], *, record: bool) -> Iterator[None]:
    """Lets the heads that read detections read recorded ones; without such heads, ends the pass."""
    if not hasattr(heads, "forward_with_given_boxes"):
        yield
        return
    own: Callable = heads.forward_with_given_boxes

    def forward_with_given_boxes(features: Any, instances: list[Any]) -> None:
        if record:
            detected.extend(
                type(one)(one.image_size, pred_boxes=one.pred_boxes, pred_classes=one.pred_classes) for one in instances
            )
        if _detection_heads(heads):
            own(features, [type(one)(one.image_size, **one.get_fields()) for one in detected])
        raise Enough

    heads.forward_with_given_boxes = forward_with_given_boxes
    try:
        yield
    finally:
        del heads.forward_with_given_boxes
