"""Distillation: what of a pruned network is compared with the dense network, its teacher, in each training step.

A student runs as usual; hooks note the inputs and outputs of some of its modules. Then the teacher runs on the same
images, up to the same outputs, and the losses of `teacher_losses` compare them. So a task's own losses, augmentation
and sampling stay as they are, and no network needs code for distillation.

The kind of comparison is chosen by the class of the network (`distillation_for`). To add one for a network of your own:

    @DISTILLATIONS.register("MyDetector")     # the name of its class, or of a base class
    class MyDistillation(Distillation): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import nn

from ..errors import InputError
from ..tracing.registry import Registry
from .teacher_losses import (
    FOREGROUND,
    centre_loss,
    channel_loss,
    class_loss,
    confidence,
    dense_box_loss,
    dense_class_loss,
    offset_loss,
    region_box_loss,
)


class Call(NamedTuple):
    """One call of a module: its positional arguments and what it returned."""

    inputs: tuple[Any, ...]
    output: Any


Calls = Mapping[str, list[Call]]


@contextmanager
def noted(modules: Mapping[str, nn.Module]) -> Iterator[Calls]:
    """Notes, while active, every call of some modules; yields {name: calls}, with an entry for each name."""
    calls: dict[str, list[Call]] = {name: [] for name in modules}

    def note(name: str) -> Any:
        return lambda module, inputs, output: calls[name].append(Call(inputs, output))

    handles = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


class Distillation:
    """Compares a student with its teacher in a training step.

    Attributes:
        share: True if MODEL.TEACHER.WEIGHT w is the share of this loss, so that the task's losses are multiplied by
            1 - w; False if this loss is multiplied by w and added to the task's losses.

    Args:
        temperature: logits are divided by it.
    """

    share = False

    def __init__(self, temperature: float):
        self.temperature = temperature

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """Returns the modules of the student whose calls are noted, {name: module}."""
        raise NotImplementedError

    def losses(self, teacher: Any, calls: Calls) -> dict[str, torch.Tensor]:
        """Runs the teacher and compares it with the student.

        Args:
            teacher: the dense network, frozen and in evaluation mode.
            calls: the calls of the student's modules in this step.

        Returns:
            {name: loss, ()}, with the gradients of the student's outputs. Names begin with `loss_teacher`.
        """
        raise NotImplementedError


DISTILLATIONS: Registry[type[Distillation]] = Registry("distillation")
"""{name of a network's class, or of a base class: the distillation of these networks}."""


def distillation_for(model: nn.Module, temperature: float) -> Distillation:
    """Returns the distillation of a network: that of its class, or of the nearest base class that has one.

    Raises:
        InputError: there is no distillation for this network.
    """
    for kind in type(model).__mro__:
        found = DISTILLATIONS.get(kind.__name__, None)
        if found is not None:
            distillation = found(temperature)
            distillation.modules(model)
            return distillation
    raise InputError(f"MODEL.TEACHER: there is no distillation for the network {type(model).__name__}")


@DISTILLATIONS.register("Module")
class ClassDistillation(Distillation):
    """Logits of classifiers: a share of the loss is the divergence from the teacher's classes (Hinton et al. 2015)."""

    share = True

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """See `Distillation`. The network itself is noted."""
        if hasattr(student, "backbone") and hasattr(student, "preprocess_image"):
            raise InputError(f"MODEL.TEACHER: there is no distillation for {type(student).__name__} of Detectron2")
        return {"network": student}

    def losses(self, teacher: Any, calls: Calls) -> dict[str, torch.Tensor]:
        """See `Distillation`."""
        ((inputs, logits),) = calls["network"]
        if not (isinstance(logits, torch.Tensor) and logits.dim() == 2):
            raise InputError(
                "MODEL.TEACHER: the network returns no logits (N, K); register a distillation for its class"
            )
        with torch.no_grad():
            wanted = teacher(*inputs)
        return {"loss_teacher": class_loss(logits, wanted, self.temperature)}


@DISTILLATIONS.register("SemanticSegmentor")
class ChannelDistillation(Distillation):
    """Class logits of segmentors, before they are resized: channel-wise distillation (Shu et al., ICCV 2021)."""

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """See `Distillation`."""
        if not isinstance(getattr(student.sem_seg_head, "predictor", None), nn.Module):
            kind = type(student.sem_seg_head).__name__
            raise InputError(f"MODEL.TEACHER: the segmentation head {kind} has no layer `predictor` that gives logits")
        return {"backbone": student.backbone, "predictor": student.sem_seg_head.predictor}

    def losses(self, teacher: Any, calls: Calls) -> dict[str, torch.Tensor]:
        """See `Distillation`."""
        return self.compare(teacher, _features(teacher, calls), calls)

    def compare(self, teacher: Any, features: Mapping[str, torch.Tensor], calls: Calls) -> dict[str, torch.Tensor]:
        """Compares logits, given the features of the teacher's backbone."""
        with torch.no_grad(), noted({"predictor": teacher.sem_seg_head.predictor}) as own:
            teacher.sem_seg_head(features)
        loss = channel_loss(calls["predictor"][0].output, own["predictor"][0].output, self.temperature)
        return {"loss_teacher_semantic": loss}


@DISTILLATIONS.register("DenseDetector")
class DenseDistillation(Distillation):
    """One-stage detectors (RetinaNet, FCOS): classes, and boxes and centre-ness where the teacher sees objects."""

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """See `Distillation`."""
        return {"backbone": student.backbone, "head": student.head}

    def losses(self, teacher: Any, calls: Calls) -> dict[str, torch.Tensor]:
        """See `Distillation`. Outputs of the head: logits, offsets and, in FCOS, centre-ness, a map for each level."""
        with torch.no_grad():
            features = _features(teacher, calls)
            levels = [features[name] for name in teacher.head_in_features]
            outputs = teacher.head(levels)
            anchors = torch.cat([boxes.tensor for boxes in teacher.anchor_generator(levels)])
        sizes = (teacher.num_classes, 4, 1)
        own = [_places(maps, size) for maps, size in zip(calls["head"][0].output, sizes, strict=False)]
        wanted = [_places(maps, size) for maps, size in zip(outputs, sizes, strict=False)]
        sure = confidence(wanted[0])
        found = (sure >= FOREGROUND).nonzero().squeeze(1)
        weights = sure[found]
        decode, places = teacher.box2box_transform.apply_deltas, anchors[found % len(anchors)]
        boxes, goals = (decode(offsets[found].float(), places) for offsets in (own[1], wanted[1]))
        losses = {
            "loss_teacher_class": dense_class_loss(own[0], wanted[0], self.temperature),
            "loss_teacher_box": dense_box_loss(boxes, goals, weights),
        }
        if len(own) > 2:
            losses["loss_teacher_centre"] = centre_loss(own[2][found, 0], wanted[2][found, 0], weights)
        return losses


@DISTILLATIONS.register("GeneralizedRCNN")
class RegionDistillation(Distillation):
    """Two-stage detectors: the proposal network, and the box head on the student's proposals.

    As in Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017, sections
    3.2 and 3.3: soft classes and the teacher's boxes in both stages. Both networks see the same regions, so their
    outputs correspond. Boxes are pulled everywhere in proportion to the teacher's probability, without the paper's
    bound. Masks and keypoints have their own losses only. Cascades are compared stage by stage.
    """

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """See `Distillation`."""
        heads: Any = getattr(student, "roi_heads", None)
        rpn: Any = getattr(student, "proposal_generator", None)
        if not (hasattr(heads, "box_pooler") and hasattr(heads, "box_predictor") and hasattr(rpn, "rpn_head")):
            kinds = f"{type(rpn).__name__} and {type(heads).__name__}"
            raise InputError(f"MODEL.TEACHER: no distillation for {kinds}; RPN and StandardROIHeads are supported")
        predictors = {f"predictor{i}": part for i, part in enumerate(_stages(heads.box_predictor))}
        return {"backbone": student.backbone, "proposals": rpn.rpn_head, "pooler": heads.box_pooler, **predictors}

    def losses(self, teacher: Any, calls: Calls) -> dict[str, torch.Tensor]:
        """See `Distillation`."""
        return self.compare(teacher, _features(teacher, calls), calls)

    def compare(self, teacher: Any, features: Mapping[str, torch.Tensor], calls: Calls) -> dict[str, torch.Tensor]:
        """Compares both stages, given the features of the teacher's backbone."""
        rpn, heads = teacher.proposal_generator, teacher.roi_heads
        with torch.no_grad():
            outputs = rpn.rpn_head([features[name] for name in rpn.in_features])
            maps = [features[name] for name in heads.box_in_features]
        own, wanted = ([_places(part, size) for part, size in zip(pair, (1, 4), strict=True)]
                       for pair in (calls["proposals"][0].output, outputs))  # fmt: skip
        losses = {
            "loss_teacher_rpn_class": dense_class_loss(own[0], wanted[0], self.temperature),
            "loss_teacher_rpn_box": offset_loss(own[1], wanted[1], confidence(wanted[0])),
        }
        classes, boxes = [], []
        stages = zip(calls["pooler"], _stages(heads.box_head), _stages(heads.box_predictor), strict=True)
        for i, (pooled, head, predictor) in enumerate(stages):
            with torch.no_grad():
                logits, offsets = predictor(head(heads.box_pooler(maps, pooled.inputs[1])))
            own_logits, own_offsets = calls[f"predictor{i}"][0].output
            classes.append(class_loss(own_logits, logits, self.temperature))
            boxes.append(region_box_loss(own_offsets, offsets, logits))
        return losses | {"loss_teacher_class": torch.stack(classes).sum(), "loss_teacher_box": torch.stack(boxes).sum()}


@DISTILLATIONS.register("PanopticFPN")
class PanopticDistillation(RegionDistillation):
    """Two-stage detectors with a semantic head: both of `RegionDistillation` and `ChannelDistillation`."""

    def __init__(self, temperature: float):
        super().__init__(temperature)
        self.semantic = ChannelDistillation(temperature)

    def modules(self, student: Any) -> dict[str, nn.Module]:
        """See `Distillation`."""
        return super().modules(student) | self.semantic.modules(student)

    def compare(self, teacher: Any, features: Mapping[str, torch.Tensor], calls: Calls) -> dict[str, torch.Tensor]:
        """Compares both stages and the semantic logits."""
        return super().compare(teacher, features, calls) | self.semantic.compare(teacher, features, calls)


def _features(teacher: Any, calls: Calls) -> Mapping[str, torch.Tensor]:
    """Runs the teacher's backbone on the normalised and padded images that the student's backbone was given."""
    with torch.no_grad():
        return teacher.backbone(*calls["backbone"][0].inputs)


def _stages(part: nn.Module) -> list[nn.Module]:
    """The modules of a cascade's stages; one module for a single stage."""
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _places(levels: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Reshapes maps (N, A * size, H, W) of each level to (N * places, size); places are the boxes of all levels."""
    return torch.cat([permute_to_N_HWA_K(level, size) for level in levels], 1).flatten(0, 1)
