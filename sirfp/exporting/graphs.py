"""Models as functions of one tensor, for export: the input is raw images, the output is the final outputs.

`images` is (N, C, H, W), float32, values 0 to 255, colours in the order of the model's config (timm: RGB). The function
includes normalisation and the padding that the network needs. It has three parts: `prepare`, `network` and `finish`.
If the image size is dynamic, each part is exported separately and the three files are joined. The reason is `network`:
the exporter can trace it more easily if its input sizes are declared as multiples of the network's stride.

Models of Detectron2 are typed `Any` in this package: the library has no type annotations for its modules' attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensors = tuple[torch.Tensor, ...]


class Graph(nn.Module):
    """Maps images to the final outputs of a model.

    Args:
        mean: mean of each colour, for values 0 to 255.
        std: standard deviation of each colour, for values 0 to 255.
        multiple: image sides are padded to a multiple of this number, with zeros after normalisation, as in Detectron2.
        square: side of the square to which images are padded; 0 to pad to `multiple` instead.
        coarsest: largest stride of all feature maps of the backbone, including unused maps; at least `multiple`.

    Attributes:
        outputs: names of the outputs of `forward`, in order.
        intermediate: names of the outputs of `network`, in order.
        padded_outputs: True if `network` returns maps of the padded size.
    """

    mean: torch.Tensor
    std: torch.Tensor
    outputs: tuple[str, ...] = ()
    intermediate: tuple[str, ...] = ()
    padded_outputs = False

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], multiple: int = 1, square: int = 0, coarsest: int = 1
    ):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1), False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1), False)
        self.multiple, self.square = max(1, multiple), square
        self.coarsest = max(self.multiple, coarsest)

    def forward(self, images: torch.Tensor) -> Tensors:
        """Maps images (N, C, H, W) to `outputs`."""
        return self.finish(images, *self.network(self.prepare(images), images))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises and pads (N, C, H, W)."""
        x = (images - self.mean) / self.std
        if self.square:
            return F.pad(x, (0, self.square - x.shape[3], 0, self.square - x.shape[2]))
        if self.multiple > 1:
            x = F.pad(x, (0, -x.shape[3] % self.multiple, 0, -x.shape[2] % self.multiple))
        return x

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Maps the output of `prepare` to the tensors named in `intermediate`; reads only the size of `images`."""
        raise NotImplementedError

    def finish(self, images: torch.Tensor, *intermediate: torch.Tensor) -> Tensors:
        """Maps the output of `network` to the tensors named in `outputs`; reads only the size of `images`."""
        raise NotImplementedError

    def original(self, images: torch.Tensor) -> Tensors:
        """Computes `outputs` by the original model; an exported file is compared with them."""
        raise NotImplementedError


class ClassifierGraph(Graph):
    """A timm network: maps images to `logits` (N, K).

    Args:
        model: the network, called with normalised images.
        mean: mean of each colour in timm's convention, for values in [0, 1].
        std: standard deviation of each colour, for values in [0, 1].
    """

    outputs = intermediate = ("logits",)

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__([255 * value for value in mean], [255 * value for value in std])
        self.model = model

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Calls the network; returns its logits."""
        return (self.model(x),)

    def finish(self, images: torch.Tensor, *intermediate: torch.Tensor) -> Tensors:
        """Returns the logits unchanged."""
        return intermediate

    def original(self, images: torch.Tensor) -> Tensors:
        """Logits of images normalised in timm's order: first to [0, 1], then by mean and std."""
        return (self.model((images / 255 - self.mean / 255) / (self.std / 255)),)


class SegmentorGraph(Graph):
    """A Detectron2 `SemanticSegmentor`: maps images (N, C, H, W) to `logits` (N, K, H, W) and `classes` (N, H, W)."""

    outputs = ("logits", "classes")
    intermediate = ("padded_logits",)
    padded_outputs = True

    def __init__(self, model: Any):
        super().__init__(model.pixel_mean, model.pixel_std, *padding_sizes(model.backbone))
        self.backbone, self.head = model.backbone, model.sem_seg_head
        self.call = model.forward

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Logits of the padded images."""
        return (self.head(self.backbone(x))[0],)

    def finish(self, images: torch.Tensor, *intermediate: torch.Tensor) -> Tensors:
        """Crops the padding and takes the class of highest logit at each pixel."""
        logits = intermediate[0][:, :, : images.shape[2], : images.shape[3]]
        return logits, logits.argmax(1)

    def original(self, images: torch.Tensor) -> Tensors:
        """Logits of Detectron2's inference, and their classes."""
        logits = torch.stack([found["sem_seg"] for found in self.call(detectron_inputs(images))])
        return logits, logits.argmax(1)


def detectron_inputs(images: torch.Tensor) -> list[dict]:
    """Converts images (N, C, H, W) to a list of dicts, the input of Detectron2's models."""
    return [{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images]


def padding_sizes(backbone: Any) -> tuple[int, int, int]:
    """Returns how the images for a Detectron2 backbone must be padded.

    Returns:
        `multiple`, `square` and `coarsest`, see `Graph`.
    """
    constraints = getattr(backbone, "padding_constraints", None) or {}
    multiple = constraints.get("size_divisibility") or backbone.size_divisibility
    strides = [shape.stride or 1 for shape in backbone.output_shape().values()]
    return multiple, constraints.get("square_size") or 0, max(strides)
