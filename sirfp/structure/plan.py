"""The pruning plan as data: the kept channels, and all that is needed to cut a dense model without running it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from ..network.branches import within
from . import plan_values as read
from .joined_groups import KeptGroups, Side, joined_groups
from .plan_text import one_line, width_table

FORMAT = 1
LONGEST = 32 << 20
"""Maximum length of a plan that is read, in characters. A plan of ResNet-152 has less than a hundredth of this. Reading
a plan takes about ten times as many bytes of memory as it has characters."""
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


@dataclass(frozen=True, repr=False)
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
            raise InputError(f"the plan has format {read.member(data, 'format')!r}, this version reads {FORMAT}")
        kept = read.mapping(data, "kept", read.indices)
        channels, places = read.mapping(data, "channels", read.count), read.mapping(data, "places", _place)
        cuts = tuple(_cut(c, f"plan.cuts[{i}]") for i, c in enumerate(read.entries(data, "cuts")))
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
            flops=read.pair(data, "flops"),
            params=read.pair(data, "params"),
            cuts=cuts,
            new_biases=tuple(read.text(t, "plan.new_biases") for t in read.entries(data, "new_biases")),
            widths=read.mapping(
                data,
                "widths",
                lambda v, at: {read.text(k, at): read.count(n, at) for k, n in read.dictionary(v, at).items()},
            ),
            criterion=read.text(data.get("criterion", ""), "plan.criterion"),
            frozen=read.mapping(data, "frozen", read.text),
            branches=tuple(read.text(t, "plan.branches") for t in read.entries(data, "branches")),
            budget=_budget(data.get("budget")),
            latency=_seconds(data.get("latency")),
        )

    def continues(self, earlier: PruningPlan) -> bool:
        """Returns True if this plan is one of the dense model and includes the cuts of an earlier plan of that model.

        A plan of the model that the earlier plan leaves begins with the sizes after that cut. If the earlier plan cuts
        nothing, both models are the same, and the answer is False.
        """
        own = {place: cut for cut in self.cuts for place in cut.tensors}
        for cut in earlier.cuts:
            for now in map(own.get, cut.tensors):
                if now is None or now.size != cut.size or not set(now.keep) <= set(cut.keep):
                    return False
        return bool(earlier.cuts)

    def dense_size(self, name: str, size: int) -> int:
        """Returns the number of atoms that a group of the present model, of `size` atoms, has in the dense model.

        A plan may count a group in channels of the dense model, of which the present model removes several at once.
        """
        return round(self.channels[name] * size / len(self.kept[name])) if name in self.kept else size

    def __repr__(self) -> str:
        """Returns one line: the criterion, FLOPs, parameters and the number of groups."""
        return one_line(self.criterion, self.flops, self.params, len(self.kept))

    def table(self) -> str:
        """Returns a table of the channels that each group keeps, as text."""
        return width_table(self.kept, self.channels)

    def then(self, later: PruningPlan) -> PruningPlan:
        """Joins this plan and a later plan into one plan for the dense model.

        Args:
            later: a plan that was made on the model pruned by this plan. A plan of the dense model that continues this
                one, as `sirfp.prune` returns it, is returned as it is.

        Raises:
            InputError: the later plan was made on another model.
        """
        if later.continues(self):
            return later
        own = {place: cut for cut in self.cuts for place in cut.tensors}
        for name in later.new_biases:  # a bias that this plan does not know begins with the size of the dense layer
            if name not in self.new_biases and (f"{name}.weight", 0) in own:
                own[f"{name}.bias", 0] = own[f"{name}.weight", 0]
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
        sides = {
            place: Side(cut.size, own[place].keep if place in own else tuple(range(cut.size)), cut.keep)
            for cut in cuts
            for place in cut.tensors
        }
        first, second = (KeptGroups(dict(p.kept), dict(p.channels), dict(p.places)) for p in (self, later))
        kept, channels, places = joined_groups(first, second, sides)
        return PruningPlan(
            kept=kept,
            channels=channels,
            places=places,
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


def _budget(value: Any) -> tuple[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InputError("plan.budget must be a [quantity, share] pair")
    quantity = read.text(value[0], "plan.budget")
    if quantity not in QUANTITIES:
        raise InputError(f"plan.budget must name {' or '.join(QUANTITIES)}, got {quantity!r:.40}")
    share = read.positive(value[1], "plan.budget")
    if share > 1:
        raise InputError(f"plan.budget must be a share in (0, 1], got {share!r:.40}")
    return quantity, share


def _seconds(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise InputError("plan.latency must be [dense, pruned]")
    return read.positive(value[0], "plan.latency"), read.positive(value[1], "plan.latency")


def _joined(first: tuple[float, float] | None, later: tuple[float, float] | None) -> tuple[float, float] | None:
    """Joins the latencies of two prunings to (dense, after both).

    Only the two times of one plan were measured together. Therefore the second plan's ratio is multiplied with the
    first plan's pruned time; times of different plans are not compared.
    """
    if first is None or later is None:
        return None
    return first[0], first[1] * later[1] / later[0]


def _cut(value: Any, at: str) -> Cut:
    data = read.dictionary(value, at)
    size, keep = read.count(data.get("size"), f"{at}.size"), read.indices(data.get("keep"), f"{at}.keep")
    if not keep or keep[-1] >= size:
        raise InputError(f"{at}.keep must hold at least one index below {size}")
    places = tuple(_place(place, f"{at}.tensors") for place in read.entries(data, "tensors"))
    return Cut(places, size, keep)


def _place(value: Any, at: str) -> tuple[str, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{at} must be a [name, dimension] pair")
    return read.text(value[0], at), read.count(value[1], at)
