"""The pruning plan as data: the kept channels, and all that is needed to cut a dense model without running it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from ..network.branches import within

FORMAT = 1
LONGEST = 32 << 20
"""Maximum length of a plan that is read, in characters. A plan of ResNet-152 has less than a hundredth of this. Reading
a plan takes about ten times as many bytes of memory as it has characters."""
LONGEST_NAME = 10_000
"""Maximum length of a name or text in a plan, in characters: far above module names, short enough for a message."""
_UNSHOWN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, lone surrogates and bidirectional overrides, which change how a terminal or page shows a name."""
QUANTITIES = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}
"""Quantities that a budget can limit: {suffix of the key KEEP_* and the argument keep_*: its name in messages}. Each
has a class in `sirfp.budget.target`."""
MEASURED = frozenset({"latency"})
"""Quantities that are measured when a plan is made; the others are counted."""


@dataclass(frozen=True)
class Cut:
    """The indices kept along one dimension, the same for several tensors.

    Attributes:
        tensors: (name of a parameter or buffer, dimension) of each tensor.
        size: the dense size of the dimension.
        keep: kept indices of the dense dimension, ascending.
    """

    tensors: tuple[tuple[str, int], ...]
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """The channels that pruning keeps, in terms of the dense model.

    Attributes:
        kept: {group name: kept channel indices of the dense model}.
        channels: {group name: the dense model's number of channels}.
        places: {group name: (tensor, dimension) whose indices `kept` holds}.
        flops: (dense, pruned) multiply-adds of one call with the example inputs, as fvcore counts them.
        params: (dense, pruned) number of parameters.
        cuts: the tensors to cut.
        new_biases: modules that were given a bias, which they lack in the dense model.
        widths: {module: {feature: channels}} of the widths that Detectron2's backbones and timm's networks announce.
        criterion: name of the criterion.
        frozen: {module name: reason why its channels could not be removed}.
        branches: modules that run only in training; a model without them can be cut too (`sirfp.network.branches`).
        budget: (key of `QUANTITIES`, share of the dense model's quantity) of the last budget.
        latency: (dense, pruned) seconds of one call with the example inputs, if latency was the budget. The two were
            measured together; do not compare them with other measurements.
    """

    kept: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, int]
    places: Mapping[str, tuple[str, int]]
    flops: tuple[int, int]
    params: tuple[int, int]
    cuts: tuple[Cut, ...] = ()
    new_biases: tuple[str, ...] = ()
    widths: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    criterion: str = ""
    frozen: Mapping[str, str] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    budget: tuple[str, float] | None = None
    latency: tuple[float, float] | None = None

    def fitting(self, names: Collection[str]) -> PruningPlan:
        """Returns the plan for a model with tensors of these names: leaves out the training branches that it lacks."""
        if not self.branches:
            return self
        cuts = []
        for c in self.cuts:
            there = tuple(p for p in c.tensors if p[0] in names or not within(p[0], self.branches))
            if there:
                cuts.append(replace(c, tensors=there))
        biases = tuple(n for n in self.new_biases if f"{n}.weight" in names or not within(n, self.branches))
        return replace(self, cuts=tuple(cuts), new_biases=biases)

    def to_json(self) -> str:
        """Returns the plan as one line of JSON."""
        data = {
            "format": FORMAT,
            "criterion": self.criterion,
            "flops": self.flops,
            "params": self.params,
            "kept": self.kept,
            "channels": self.channels,
            "places": self.places,
            "cuts": [{"tensors": c.tensors, "size": c.size, "keep": c.keep} for c in self.cuts],
            "new_biases": self.new_biases,
            "widths": self.widths,
            "frozen": self.frozen,
            "branches": self.branches,
            "budget": self.budget,
            "latency": self.latency,
        }
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """Reads a plan and checks every type, range and size.

        Raises:
            InputError: the text is not a valid plan; the message names the entry.
        """
        if not isinstance(text, str) or len(text) > LONGEST:
            raise InputError(f"the plan must be a text of at most {LONGEST} characters")
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the plan is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"the plan has format {_get(data, 'format')!r}, this version reads {FORMAT}")
        kept = _mapping(data, "kept", _indices)
        channels, places = _mapping(data, "channels", _count), _mapping(data, "places", _place)
        cuts = tuple(_cut(c, f"plan.cuts[{i}]") for i, c in enumerate(_list(data, "cuts")))
        sizes = {place: cut.size for cut in cuts for place in cut.tensors}
        for name, indices in kept.items():
            if name not in channels:
                raise InputError(f"plan.channels lacks the group {name!r}")
            if not 1 <= len(indices) <= channels[name]:
                raise InputError(f"plan.kept of {name!r} must hold 1 to {channels[name]} indices, got {len(indices)}")
            size = sizes.get(places[name], indices[-1] + 1) if name in places else indices[-1] + 1
            if indices[-1] >= size:
                raise InputError(f"plan.kept of {name!r} must hold indices below {size}, got {indices[-1]}")
        return PruningPlan(
            kept=kept,
            channels=channels,
            places=places,
            flops=_pair(data, "flops"),
            params=_pair(data, "params"),
            cuts=cuts,
            new_biases=tuple(_text(t, "plan.new_biases") for t in _list(data, "new_biases")),
            widths=_mapping(
                data, "widths", lambda v, at: {_text(k, at): _count(n, at) for k, n in _dict(v, at).items()}
            ),
            criterion=_text(data.get("criterion", ""), "plan.criterion"),
            frozen=_mapping(data, "frozen", _text),
            branches=tuple(_text(t, "plan.branches") for t in _list(data, "branches")),
            budget=_budget(data.get("budget")),
            latency=_seconds(data.get("latency")),
        )

    def then(self, later: PruningPlan) -> PruningPlan:
        """Joins this plan and a later plan into one plan for the dense model.

        Args:
            later: a plan that was made on the model pruned by this plan.

        Raises:
            InputError: the later plan was made on another model.
        """
        own = {place: cut for cut in self.cuts for place in cut.tensors}
        new = {place: cut for cut in later.cuts for place in cut.tensors}
        joined: dict[tuple[int, tuple[int, ...]], list[tuple[str, int]]] = {}
        for place in dict.fromkeys([*own, *new]):
            if place in own and place in new:
                if new[place].size != len(own[place].keep):
                    raise InputError(
                        f"the later plan is for another model: it expects size {new[place].size} in dimension "
                        f"{place[1]} of {place[0]!r}, but this plan leaves {len(own[place].keep)}"
                    )
                size, keep = own[place].size, tuple(own[place].keep[i] for i in new[place].keep)
            else:
                cut = own.get(place) or new[place]
                size, keep = cut.size, cut.keep
            joined.setdefault((size, keep), []).append(place)
        cuts = tuple(Cut(tuple(places), size, keep) for (size, keep), places in joined.items())
        kept = dict(self.kept)
        for name, indices in later.kept.items():
            before = own.get(later.places[name])
            kept[name] = indices if before is None else tuple(before.keep[i] for i in indices)
        channels = {**later.channels, **self.channels}
        return PruningPlan(
            kept=kept,
            channels={name: channels[name] for name in kept},
            places={**later.places, **self.places},
            flops=(self.flops[0], later.flops[1]),
            params=(self.params[0], later.params[1]),
            cuts=cuts,
            new_biases=tuple(dict.fromkeys([*self.new_biases, *later.new_biases])),
            widths={m: {**self.widths.get(m, {}), **later.widths.get(m, {})} for m in {**self.widths, **later.widths}},
            criterion=later.criterion,
            frozen=later.frozen,
            branches=tuple(dict.fromkeys([*self.branches, *later.branches])),
            budget=later.budget,
            latency=_joined(self.latency, later.latency),
        )


def _get(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else data


def _dict(value: Any, at: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{at} must be a mapping, got {type(value).__name__}")
    return value


def _list(data: dict, key: str) -> list:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"plan.{key} must be a list, got {type(value).__name__}")
    return value


def _mapping(data: dict, key: str, read) -> dict:
    values = _dict(data.get(key, {}), f"plan.{key}")
    return {_text(k, f"plan.{key}"): read(v, f"plan.{key}[{k!r}]") for k, v in values.items()}


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{at} must be text, got {type(value).__name__}")
    if len(value) > LONGEST_NAME or _UNSHOWN.search(value):
        raise InputError(f"{at} must be a text of at most {LONGEST_NAME} printable characters, got {value!r:.40}")
    return value


def _count(value: Any, at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 60:
        raise InputError(f"{at} must be a whole number of at least 0, got {value!r:.40}")
    return value


def _indices(value: Any, at: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise InputError(f"{at} must be a list of indices, got {type(value).__name__}")
    result = tuple(_count(v, at) for v in value)
    if any(a >= b for a, b in zip(result, result[1:], strict=False)):
        raise InputError(f"{at} must be ascending indices, each once")
    return result


def _pair(data: dict, key: str) -> tuple[int, int]:
    value = _list(data, key)
    if len(value) != 2:
        raise InputError(f"plan.{key} must be [dense, pruned], got {len(value)} numbers")
    dense, pruned = (_count(number, f"plan.{key}") for number in value)
    if not dense:
        raise InputError(f"plan.{key}: the dense model must have at least 1, got 0")
    return dense, pruned


def _budget(value: Any) -> tuple[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InputError("plan.budget must be a [quantity, share] pair")
    quantity = _text(value[0], "plan.budget")
    if quantity not in QUANTITIES:
        raise InputError(f"plan.budget must name {' or '.join(QUANTITIES)}, got {quantity!r:.40}")
    share = _positive(value[1], "plan.budget")
    if share > 1:
        raise InputError(f"plan.budget must be a share in (0, 1], got {share!r:.40}")
    return quantity, share


def _seconds(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InputError("plan.latency must be [dense, pruned]")
    return _positive(value[0], "plan.latency"), _positive(value[1], "plan.latency")


def _positive(value: Any, at: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e18:
        raise InputError(f"{at} must hold numbers above 0, got {value!r:.40}")
    return float(value)


def _joined(first: tuple[float, float] | None, later: tuple[float, float] | None) -> tuple[float, float] | None:
    """Joins the latencies of two prunings to (dense, after both).

    Only the two times of one plan were measured together. Therefore the second plan's ratio is multiplied with the
    first plan's pruned time; times of different plans are not compared.
    """
    if first is None or later is None:
        return None
    return first[0], first[1] * later[1] / later[0]


def _cut(value: Any, at: str) -> Cut:
    data = _dict(value, at)
    size, keep = _count(data.get("size"), f"{at}.size"), _indices(data.get("keep"), f"{at}.keep")
    if not keep or keep[-1] >= size:
        raise InputError(f"{at}.keep must hold at least one index below {size}")
    places = tuple(_place(place, f"{at}.tensors") for place in _list(data, "tensors"))
    return Cut(places, size, keep)


def _place(value: Any, at: str) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{at} must be a [name, dimension] pair")
    return _text(value[0], at), _count(value[1], at)
