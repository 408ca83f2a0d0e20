"""Updates the sizes that timm's networks keep in attributes, so that timm can use a pruned network.

There are two kinds of sizes:

- Widths that other code reads: `num_features`, `feature_info`, and `in_features` of heads that `reset_classifier`
  rebuilds. They are only known from a forward pass. `TimmWidths` records the channels of these widths during the
  trace, the plan stores the number of kept channels, and `announce` sets the attributes.
- Sizes by which the forward of a block splits its channels. They follow from the block's weights; `refit` sets them
  after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .timm_attention import attention_kind, elastic, follow_heads, refit_heads
from .walk import walk, walk_modules

WIDTHS = ("num_features", "head_hidden_size", "embed_dim", "in_features")
FEATURE = "feature_info."


def kind(module: nn.Module) -> str:
    """Returns the full name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_network(module: nn.Module) -> bool:
    """Returns True if a module is a whole network of timm."""
    return type(module).__module__.startswith("timm.") and hasattr(module, "forward_features")


def is_head(module: nn.Module) -> bool:
    """Returns True if a module is one of timm's heads; `reset_classifier` rebuilds a head from its attributes."""
    return type(module).__module__ == "timm.layers.classifier" and isinstance(getattr(module, "in_features", None), int)


class TimmWidths:
    """Records, while active, the channel labels of the widths that timm's networks store in attributes.

    Args:
        model: a network of timm, or a model that contains networks of timm.
        trace: the trace that labels the channels.
        found: a dict to fill: {module name: {attribute: channel labels}}.
    """

    def __init__(self, model: nn.Module, trace: Any, found: dict[str, dict[str, Any]]):
        self.model, self.trace, self.found = model, trace, found
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> TimmWidths:
        for name, module in walk(self.model):
            if attention_kind(module):
                self._watch_attention(name, module)
            if is_network(module):
                self._watch_network(name, module)
            elif is_head(module):
                self._before(module, name, ["in_features"], module.in_features)
                last = getattr(module, "fc", None)
                if isinstance(last, nn.Module) and isinstance(getattr(module, "num_features", None), int):
                    self._before(last, name, ["num_features"], module.num_features)
        return self

    def __exit__(self, *exc) -> None:
        while self._undo:
            self._undo.pop()()

    def _watch_attention(self, name: str, attention: Any) -> None:
        """Labels heads and disables fused attention.

        Fused attention computes its scale from the width of a head; the other implementation uses the stored scale.
        """
        before, fused = type(attention), getattr(attention, "fused_attn", False)
        follow_heads(self.trace, name, attention)
        elastic(attention)
        self._undo.append(lambda: setattr(attention, "__class__", before))
        if fused:
            attention.fused_attn = False
            self._undo.append(lambda: setattr(attention, "fused_attn", True))

    def _watch_network(self, name: str, network: Any) -> None:
        """Adds hooks that record a network's widths: on `forward_features`, the classifier, and `feature_info`."""
        width, forward = getattr(network, "num_features", None), network.forward_features
        same = [key for key in WIDTHS if isinstance(width, int) and getattr(network, key, None) == width]
        hidden = getattr(network, "head_hidden_size", None)

        def forward_features(*args, **kwargs):
            output = forward(*args, **kwargs)
            self._note(name, [key for key in same if key != "head_hidden_size"], width, output)
            return output

        network.forward_features = forward_features
        self._undo.append(lambda: network.__dict__.pop("forward_features"))
        for classifier in _classifiers(network):
            self._before(classifier, name, ["head_hidden_size"], hidden)
        for index, (entry, module) in enumerate(_features(network)):
            if module is not None:
                hook = self._before if entry.get("hook_type") == "forward_pre" else self._after
                hook(module, name, [f"{FEATURE}{index}"], entry["num_chs"])

    def _before(self, module: nn.Module, name: str, keys: list[str], width: Any) -> None:
        hook = module.register_forward_pre_hook(lambda _, inputs: self._note(name, keys, width, inputs))
        self._undo.append(hook.remove)

    def _after(self, module: nn.Module, name: str, keys: list[str], width: Any) -> None:
        hook = module.register_forward_hook(lambda _, inputs, output: self._note(name, keys, width, output))
        self._undo.append(hook.remove)

    def _note(self, name: str, keys: list[str], width: Any, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[-1] if isinstance(output, list) else output[0]
        if not isinstance(output, torch.Tensor):
            return
        for labels in self.trace.dims(output):
            if labels is not None and len(labels) == width:
                self.found.setdefault(name, {}).update(dict.fromkeys(keys, labels))


def _classifiers(network: Any) -> list[nn.Module]:
    """Returns a list with the network's classifier, or with the first of several; an empty list if it has none."""
    try:
        found = network.get_classifier()
    except (AttributeError, NotImplementedError):
        return []
    found = found if isinstance(found, (tuple, list)) else [found]
    return [module for module in found if isinstance(module, nn.Module)][:1]


def _features(network: nn.Module) -> Iterator[tuple[dict[str, Any], nn.Module | None]]:
    """Yields each entry of `feature_info` and the module that the entry names, None if this module does not exist."""
    info = getattr(network, "feature_info", None)
    for entry in info if isinstance(info, list) else ():
        try:
            yield entry, network.get_submodule(entry["module"])
        except (AttributeError, KeyError):
            yield entry, None


def announce(module: Any, widths: Mapping[str, int]) -> None:
    """Sets the widths in the attributes of a network or head of timm; ignores other modules.

    Args:
        module: the module.
        widths: {name of an attribute, or "feature_info.<number of the entry>": width}.
    """
    if not (is_network(module) or is_head(module)):
        return
    info = getattr(module, "feature_info", None)
    if isinstance(info, list):
        module.feature_info = info = [dict(entry) for entry in info]
    for key, width in widths.items():
        if key in WIDTHS:
            setattr(module, key, width)
        index = key.removeprefix(FEATURE)
        if key.startswith(FEATURE) and index.isdecimal() and isinstance(info, list) and int(index) < len(info):
            info[int(index)]["num_chs"] = width


def _refit_res2net(block: Any) -> None:
    block.width = block.convs[0].in_channels


def _refit_selective_kernel(block: Any) -> None:
    width = block.paths[0].conv.in_channels
    block.in_channels = width * block.num_paths if block.split_input else width


REFITS: dict[str, Callable[[Any], None]] = {
    "timm.models.res2net.Bottle2neck": _refit_res2net,
    "timm.layers.selective_kernel.SelectiveKernel": _refit_selective_kernel,
}
"""{class of a block: the function that sets the sizes in the block's attributes from its weights}."""


def refit(model: nn.Module) -> None:
    """Sets the sizes in the attributes of timm's blocks from their weights, after a cut."""
    for module in walk_modules(model):
        fix = refit_heads if attention_kind(module) else REFITS.get(kind(module))
        if fix is not None:
            fix(module)
