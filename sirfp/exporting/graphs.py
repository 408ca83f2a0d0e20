"""Models as functions of one tensor, which is what an exported file is: raw images in, final outputs out.

`images` is (N, C, H, W), float32, values 0 to 255, colours in the order of the model's config (timm: RGB).
Normalisation and the padding that the network needs are inside. A graph has three parts, `prepare`, `network` and
`finish`, which are exported apart and joined: the middle one is large, and easy to follow with sizes in multiples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

Tensors = tuple[torch.Tensor, ...]


class Graph(nn.Module):
    """A model from images to final outputs.

    Args:
        mean: of each colour, on the scale of the images.
        std: likewise.
        multiple: image sides are padded to a multiple of it, with zeros after normalisation as Detectron2 pads.
        square: side of the square that images are padded to instead, 0 for none.
        coarsest: see below; `multiple` by default.

    Attributes:
        outputs: names of what `forward` returns, in order.
        between: names of what `network` returns, in order.
        padded_outputs: whether these are maps of the padded size.
        coarsest: pixels of the padded images, a side, to a position of the smallest feature map, used or not.
    """

    outputs: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
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
        """Maps what `prepare` returned, and the images, of which only the size is read, to `between`."""
        raise NotImplementedError

    def finish(self, images: torch.Tensor, *between: torch.Tensor) -> Tensors:
        """Maps the images, of which only the size is read, and `between` to `outputs`."""
        raise NotImplementedError

    def original(self, images: torch.Tensor) -> Tensors:
        """`outputs` as the model gives them when it is called as its users call it."""
        raise NotImplementedError


class ClassifierGraph(Graph):
    """A timm network: images to `logits` (N, K).

    Args:
        model: called with normalised images.
        mean: as timm has it, for values in [0, 1].
        std: likewise.
    """

    outputs = between = ("logits",)

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__([255 * value for value in mean], [255 * value for value in std])
        self.model = model

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """The network itself."""
        return (self.model(x),)

    def finish(self, images: torch.Tensor, *between: torch.Tensor) -> Tensors:
        """Nothing."""
        return between

    def original(self, images: torch.Tensor) -> Tensors:
        """Logits of images normalised as timm does it."""
        return (self.model((images / 255 - self.mean / 255) / (self.std / 255)),)


class SegmentorGraph(Graph):
    """Detectron2's semantic segmentor: images to `logits` (N, K, H, W) and `classes` (N, H, W), at the images' size."""

    outputs = ("logits", "classes")
    between = ("padded_logits",)
    padded_outputs = True

    def __init__(self, model: nn.Module):
        super().__init__(model.pixel_mean, model.pixel_std, *sides(model.backbone))
        self.backbone, self.head = model.backbone, model.sem_seg_head
        self.call = model.forward

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Logits of the padded images."""
        return (self.head(self.backbone(x))[0],)

    def finish(self, images: torch.Tensor, *between: torch.Tensor) -> Tensors:
        """Cuts the padding off and takes the class of each pixel."""
        logits = between[0][:, :, : images.shape[2], : images.shape[3]]
        return logits, logits.argmax(1)

    def original(self, images: torch.Tensor) -> Tensors:
        """Logits as Detectron2 returns them."""
        logits = torch.stack([found["sem_seg"] for found in self.call(as_dicts(images))])
        return logits, logits.argmax(1)


def as_dicts(images: torch.Tensor) -> list[dict]:
    """A batch of images as Detectron2 takes it."""
    return [{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images]


def sides(backbone: nn.Module) -> tuple[int, int, int]:
    """The multiple and the square that a Detectron2 backbone wants images padded to, and its largest stride."""
    constraints = getattr(backbone, "padding_constraints", None) or {}
    multiple = constraints.get("size_divisibility") or backbone.size_divisibility
    strides = [shape.stride or 1 for shape in backbone.output_shape().values()]
    return multiple, constraints.get("square_size") or 0, max(strides)
