"""The dense model of a command, and its inputs: random inputs, or images of a folder.

| model | input |
| --- | --- |
| timm | tensor (N, C, H, W), preprocessed by the network's timm configuration |
| Detectron2 | `list[dict]`, images in INPUT.FORMAT, shorter side resized to INPUT.MIN_SIZE_TEST |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.dense import fill, read_weights
from ..data.pixels import FORMATS, check_channels, format_of
from ..errors import InputError, one_line
from ..network.detectron import check_detectron2
from ..network.forward import call, image_channels, inference, random_images
from ..network.proposals import random_proposals
from ..network.untouched import copied_model
from .detectron import build, zoo_config
from .images import find_images, read_image

NAMED_WEIGHTS = ("timm", "pypi://")


@dataclass
class Source:
    """A dense model, on the CPU until it is moved, and its inputs.

    Attributes:
        name: the name that the user gave, for messages.
        model: the dense model.
        size: (height, width) of the example inputs in pixels.
        weights: source of the weights; None for random weights.
    """

    name: str
    model: nn.Module
    size: tuple[int, int]
    weights: str | None = None

    def example(self, batch: int = 1, seed: int = 0) -> Any:
        """Makes random inputs of `batch` images."""
        raise NotImplementedError

    def read(self, paths: Sequence[Path]) -> Any:
        """Reads image files as inputs of the model."""
        raise NotImplementedError

    def raw(self, inputs: Any) -> list[torch.Tensor]:
        """The images of inputs before normalisation, each (C, H, W) with values 0 to 255."""
        raise NotImplementedError

    @property
    def colours(self) -> str:
        """The order of the colour channels: "RGB", "BGR", "L" (grey), "RGBA" or e.g. "6 channels"."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> None:
        """Moves the model to a device. Inputs of a timm network are made there; Detectron2's models move theirs."""
        self.model.to(device)

    def fresh(self) -> nn.Module:
        """A copy of the dense model."""
        return copied_model(self.model)

    def batches(self, folder: str, count: int, batch: int, seed: int = 0) -> Iterator[Any]:
        """Reads random images of a folder and its subfolders, each image at most once.

        Args:
            folder: folder of images; may have subfolders.
            count: largest number of batches; fewer if the folder has fewer images.
            batch: number of images per batch.
            seed: seed of the random selection.

        Raises:
            InputError: the folder does not exist or has no image (raised by this call, before the first batch); or an
                image cannot be read (raised during iteration).
        """
        paths = find_images(folder)
        random.Random(seed).shuffle(paths)
        paths = paths[: count * batch]
        return (self.read(paths[i : i + batch]) for i in range(0, len(paths), batch))

    def check(self) -> None:
        """Calls the model once.

        Raises:
            InputError: the model fails on images of this size.
        """
        try:
            with inference(self.model):
                call(self.model, self.example())
        except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
            height, width = self.size
            reason = one_line(error, 200) or type(error).__name__
            raise InputError(
                f"{self.name} cannot be run on {height} x {width} pixels ({reason}); "
                "choose another --size, if the size is to blame"
            ) from None


@dataclass
class TimmSource(Source):
    """A timm network."""

    preprocessing: dict[str, Any] = field(default_factory=dict)

    def example(self, batch: int = 1, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.preprocessing["input_size"][0], *self.size, generator=generator).to(self.device)

    def read(self, paths: Sequence[Path]) -> torch.Tensor:
        from timm.data import create_transform

        transform = create_transform(**self.preprocessing, is_training=False)
        mode = format_of(self.preprocessing["input_size"][0])
        return torch.stack([transform(read_image(path).convert(mode)) for path in paths]).to(self.device)

    def raw(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        mean, std = (inputs.new_tensor(self.preprocessing[key]).reshape(-1, 1, 1) for key in ("mean", "std"))
        return list((inputs * std + mean) * 255)

    @property
    def colours(self) -> str:
        channels = self.preprocessing["input_size"][0]
        return FORMATS.get(channels, f"{channels} channels")


@dataclass
class DetectronSource(Source):
    """A model of Detectron2."""

    cfg: Any = None

    def example(self, batch: int = 1, seed: int = 0) -> list[dict]:
        generator = torch.Generator().manual_seed(seed)
        inputs = random_images(self.size, batch, generator, image_channels(self.model))
        if self.cfg.MODEL.LOAD_PROPOSALS:
            count = self.cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
            for given in inputs:
                given["proposals"] = random_proposals(*self.size, count, generator)
        return inputs

    def read(self, paths: Sequence[Path]) -> list[dict]:
        import numpy as np
        from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
        from detectron2.data.transforms import ResizeShortestEdge

        check_channels(self.cfg.INPUT.FORMAT, image_channels(self.model))
        side = self.cfg.INPUT.MIN_SIZE_TEST
        resize = ResizeShortestEdge([side, side], self.cfg.INPUT.MAX_SIZE_TEST)
        inputs = []
        for path in paths:
            image = convert_PIL_to_numpy(_apply_exif_orientation(read_image(path)), self.cfg.INPUT.FORMAT)
            height, width = image.shape[:2]
            image = resize.get_transform(image).apply_image(image)
            tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))
            inputs.append({"image": tensor, "height": height, "width": width})
        return inputs

    def raw(self, inputs: list[dict]) -> list[torch.Tensor]:
        return [one["image"] for one in inputs]

    @property
    def colours(self) -> str:
        return self.cfg.INPUT.FORMAT


BuildSource = Callable[[Any, str, "tuple[int, int] | None"], Source]
SOURCES: dict[str, BuildSource] = {}
"""{PROJECT of a config: function that builds the source}.

For projects whose models are not built by Detectron2 or are not called with `list[dict]`.
"""


def register_source(project: str) -> Callable[[BuildSource], BuildSource]:
    """Registers the decorated function as the builder of a project's dense models.

    The function gets the config, a file of weights (or ""), and the (height, width) of the inputs (or None). It returns
    a `Source`.

    Args:
        project: value of PROJECT in the project's configs.
    """

    def add(function: BuildSource) -> BuildSource:
        SOURCES[project] = function
        return function

    return add


def from_timm(
    name: str,
    *,
    weights: str = "",
    size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    channels: int = 0,
    preprocessing: dict[str, Any] | None = None,
) -> Source:
    """Builds a timm network.

    Args:
        name: one of `timm.list_models()`.
        weights: a file, "timm" for timm's download, "pypi://efficientnet-lite0", or "" for random weights.
        size: (height, width) in pixels; by default the size of the network's training images.
        num_classes: number of classes; 0 for a network without classifier. By default the network's number.
        channels: number of channels of an image; 0 for the network's number.
        preprocessing: timm's data config, e.g. input_size, mean, std; by default the network's.

    Raises:
        InputError: there is no such network, or the weights do not fit it.
    """
    from timm.data import resolve_data_config

    from ..models.timm_weights import create_timm, for_channels, network_channels

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    options |= {"in_chans": channels} if channels else {}
    if weights.startswith(NAMED_WEIGHTS) and not Path(weights).is_file():
        model = create_timm(name, weights, **options)
    else:
        model = create_timm(name, **options)
        if weights:
            fill(model, read_weights(weights), weights)
    usual_data = preprocessing or resolve_data_config({}, model=model)
    preprocessing = for_channels(usual_data, network_channels(model, usual_data["input_size"]))
    channels, *usual = preprocessing["input_size"]
    size = tuple(size or usual)
    preprocessing["input_size"] = (channels, *size)
    return TimmSource(f"timm {name}", model.eval(), size, weights or None, preprocessing)


def from_config(
    path: str | Sequence[str],
    opts: Sequence[str] = (),
    *,
    weights: str = "",
    size: tuple[int, int] | None = None,
    name: str = "",
) -> Source:
    """Builds the model of a config file of Detectron2 or of a project (`sirfp.config.projects`).

    Args:
        path: a config file, or several: each later file overrides keys of the earlier ones. A lazy config (.py) is
            executed as a Python program.
        opts: KEY VALUE pairs that override the files; MODEL.WEIGHTS is used as `weights` if that is "".
        weights: a file; "" for random weights.
        size: (height, width) in pixels; by default SIRFP.INPUT_SIZE, else the size in the config's INPUT.
        name: name for messages; by default the path.

    Raises:
        InputError: the config is not valid, the weights do not fit the model, or Detectron2 is not installed.
    """
    check_detectron2("a config")
    from detectron2.projects.deeplab import add_deeplab_config

    from ..config.reading import input_size, load_config
    from ..models.deformable import provide_deformable

    provide_deformable()
    files = [path] if isinstance(path, str) else list(path)
    path = files[0]
    if path.endswith(".py"):
        if len(files) > 1:
            raise InputError(f"{path} is a lazy config: other files cannot override it; give KEY VALUE pairs")
        model, cfg = _lazy(path, opts)
    else:
        cfg = load_config(files, opts, add_deeplab_config)
        cfg.MODEL.DEVICE = "cpu"
        if not weights and "MODEL.WEIGHTS" in opts[::2]:
            weights = cfg.MODEL.WEIGHTS
        if cfg.PROJECT in SOURCES:
            return replace(SOURCES[cfg.PROJECT](cfg, weights, size), name=name or path)
        model = build(cfg, path)
    if weights:
        fill(model, read_weights(weights), weights)
    return DetectronSource(name or path, model.eval(), size or input_size(cfg), weights or None, cfg)


def _lazy(path: str, opts: Sequence[str]) -> tuple[nn.Module, Any]:
    """Builds the model of a lazy config; returns it with a config that holds the format and size of its inputs."""
    from ..config.reading import load_config
    from .lazy import build_lazy

    model, inputs = build_lazy(path, opts)
    return model, load_config("", [word for key, value in inputs.items() for word in (f"INPUT.{key}", str(value))])


def from_zoo(config: str, opts: Sequence[str] = (), **kwargs: Any) -> Source:
    """Builds a model of Detectron2's model zoo from its config, e.g. "COCO-Detection/retinanet_R_50_FPN_1x.yaml".

    The config may also be a lazy config (.py).

    Raises:
        InputError: the zoo has no such config, or Detectron2 is not installed; see also `from_config`.
    """
    path, name = zoo_config(config)
    return from_config(str(path), opts, name=f"zoo {name}", **kwargs)
