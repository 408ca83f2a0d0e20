"""Losses that pull the outputs of a student towards those of its teacher; each is 0 where both outputs are equal."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from ..network.divergence_terms import BERNOULLI, Huber, exact

FOREGROUND = 0.05
"""Smallest probability with which a teacher's box counts: Detectron2's threshold for detections of dense detectors."""
BOX = Huber(1.0)
"""Loss of the four offsets of a box (smooth L1, Girshick, Fast R-CNN, ICCV 2015)."""


def class_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence of softened classes, times the squared temperature (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits (N, K).
        temperature: both logits are divided by it.

    Returns:
        The mean over the N rows, ().
    """
    own, wanted = (F.log_softmax(exact(logits) / temperature, 1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(own, wanted, log_target=True, reduction="batchmean")


def channel_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL divergence over the positions of each class's map, times the squared temperature.

    A softmax over all positions of a channel turns it into a distribution that says where the class is (Shu et al.,
    Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, equations 2 to 4).

    Args:
        student, teacher: logits (N, K, H, W).
        temperature: both logits are divided by it.

    Returns:
        The mean over images and classes, ().
    """
    images, classes = student.shape[:2]
    own, wanted = (logits.reshape(images * classes, -1) for logits in (student, teacher))
    return class_loss(own, wanted, temperature)


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Returns the highest class probability of each place, (...), for logits of one-against-all classes (..., K)."""
    return exact(logits).sigmoid().amax(-1)


def dense_class_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Binary KL divergence of each class at each place of a detector, weighted by the teacher's confidence there.

    Most places are background, where teacher and student agree. The weights, the highest class probability of the
    teacher, put the loss where the teacher sees objects; their sum normalises it (Du et al., Distilling Object
    Detectors with Feature Richness, NeurIPS 2021, section 3). The loss is a sum over classes, times the squared
    temperature.

    Args:
        student, teacher: logits of one-against-all classes, (places, K).
        temperature: both logits are divided by it.

    Returns:
        The loss, ().
    """
    weights = confidence(teacher)
    apart = BERNOULLI.value(exact(teacher) / temperature, exact(student) / temperature).sum(-1)
    return temperature**2 * weighted_mean(apart, weights)


def weighted_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the sum of losses times weights, both (places,), divided by the sum of the weights, if it is above 1."""
    return (weights * losses).sum() / weights.sum().clamp(min=1)


def dense_box_loss(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Generalised IoU loss of the student's boxes to the teacher's.

    An IoU loss to the teacher's boxes is part of Yang et al., Bridging Cross-task Protocol Inconsistency for
    Distillation in Dense Object Detection, ICCV 2023; here its weights are the teacher's confidence.

    Args:
        student, teacher: boxes (places, 4), corners in pixels.
        weights: the weight of each place, (places,). Places where the teacher's box is empty are left out.

    Returns:
        The weighted mean, (); 0 without places.
    """
    weights = weights * (teacher[:, 2:] > teacher[:, :2]).all(1)
    return weighted_mean(generalized_box_iou_loss(exact(student), exact(teacher)), weights)


def centre_loss(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the binary KL divergence of centre-ness (FCOS), for logits and weights (places,)."""
    return weighted_mean(BERNOULLI.value(teacher, student), weights)


def offset_loss(student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean of the smooth L1 loss of box offsets (places, 4), summed over the four; weights (places,)."""
    return weighted_mean(BOX.value(teacher, student).sum(1), weights)


def region_box_loss(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Smooth L1 loss of box offsets to the teacher's, weighted by the teacher's probability of the class of the box.

    Args:
        student, teacher: offsets (R, 4) of one box, or (R, 4 K) of one box for each of K classes.
        classes: the teacher's logits (R, K + 1), background last.

    Returns:
        The sum over classes and offsets, divided by the number of regions R, ().
    """
    shares = exact(classes).softmax(1)[:, :-1]
    boxes = student.shape[1] // 4
    weights = shares if boxes > 1 else shares.sum(1, keepdim=True)
    apart = BOX.value(teacher, student).view(len(student), boxes, 4).sum(2)
    return (weights * apart).sum() / max(len(student), 1)
