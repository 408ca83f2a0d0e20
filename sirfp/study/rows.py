"""Reads the rows of a task: the entries of `criteria`, their `variants`, and rows that train a pruned network anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError, near
from .overrides import read_overrides
from .values import (
    as_block,
    as_count,
    as_list,
    as_name,
    as_nonempty,
    as_seeds,
    as_text,
    check_distinct,
    check_keys,
    required,
)

CONTROL = "unpruned"
"""Name of the rows of control runs (key `control`): they train the dense network for as long as a pruning run."""
SETTINGS = ("hooks", "overrides", "seeds", "steps")
ROW_KEYS = ("name", "criterion", "scratch", *SETTINGS)
VARIANT_KEYS = ("of", *SETTINGS)


@dataclass(frozen=True)
class RowSpec:
    """A row: runs that differ only in their budget and seed.

    Attributes:
        name: name in the study.
        criterion: name of the registered criterion; "" for a row that trains a pruned network from scratch.
        hooks: training hooks; of a pruning run, those inserted after Accumulate.
        overrides: {config key: value} for the runs of this row.
        seeds: seeds of the runs.
        steps: number of cuts; None for the task's number.
        scratch: name of the row whose pruned networks are trained from their initial weights; "" for a row that prunes.
    """

    name: str
    criterion: str
    hooks: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    scratch: str = ""


@dataclass(frozen=True)
class _Variant:
    """An entry of `variants`: settings that make a further row of each row that it is applied to."""

    name: str
    of: tuple[str, ...] | None
    settings: RowSpec

    def applied(self, row: RowSpec) -> RowSpec:
        """The row `<row>-<variant>`."""
        own = self.settings
        return replace(
            row,
            name=f"{row.name}-{self.name}",
            hooks=(*row.hooks, *own.hooks),
            overrides={**row.overrides, **own.overrides},
            seeds=own.seeds or row.seeds,
            steps=own.steps or row.steps,
        )


def read_rows(criteria: Any, variants: Mapping[str, Any], seeds: tuple[int, ...], at: str) -> tuple[RowSpec, ...]:
    """Reads the rows of a task, each followed by its variants.

    Args:
        criteria: the list `criteria`. A plain name selects the registered criterion of this name, without options.
        variants: the block `variants`.
        seeds: seeds of rows that name none.
        at: place of the task in the file, for messages.

    Raises:
        InputError: a key or value is not valid.
    """
    suffixes = [_variant(key, node, f"{at}.variants") for key, node in variants.items()]
    found: list[RowSpec] = []
    for i, item in enumerate(as_nonempty(criteria, f"{at}.criteria")):
        here = f"{at}.criteria[{i}]"
        node = {"name": item} if isinstance(item, str) else as_block(item, here)
        row = _row(node, here)
        if row.scratch:
            found.append(_with_source(row, found, here))
            continue
        row = replace(row, seeds=row.seeds or seeds)
        found.append(row)
        found += [variant.applied(row) for variant in suffixes if variant.of is None or row.name in variant.of]
    check_distinct([row.name for row in found], f"{at}.criteria")
    known = [row.name for row in found if not row.scratch]
    for variant in suffixes:
        for base in variant.of or ():
            if base not in known:
                place = f"{at}.variants.{variant.name}.of"
                raise InputError(f"{place}: no row that prunes is named {base}{near(base, known)}")
    return tuple(found)


def _row(node: Mapping[str, Any], at: str) -> RowSpec:
    """Checks an entry of `criteria`; its seeds are empty if it names none."""
    from ..criteria import CRITERIA

    check_keys(node, ROW_KEYS, at)
    own = as_name(required(node, "name", at), f"{at}.name")
    if own in ("dense", CONTROL):
        raise InputError(f"{at}: the name {own} is reserved for runs that do not prune; choose another")
    scratch = as_text(node["scratch"], f"{at}.scratch") if "scratch" in node else ""
    if scratch:
        for key in ("criterion", "steps"):
            if key in node:
                raise InputError(f"{at}: {key} is that of the row {scratch}, whose network is trained; remove it")
        return replace(_settings(node, at, initial=True), name=own, scratch=scratch)
    criterion = as_text(node.get("criterion", own), f"{at}.criterion")
    CRITERIA.find(criterion, at)
    return replace(_settings(node, at), name=own, criterion=criterion)


def _with_source(row: RowSpec, above: Sequence[RowSpec], at: str) -> RowSpec:
    """Checks that the row which a `scratch` row names is above it and has its seeds; fills in the seeds."""
    pruned = {other.name: other for other in above if not other.scratch}
    if row.scratch not in pruned:
        raise InputError(f"{at}.scratch: no row above it that prunes is named {row.scratch}{near(row.scratch, pruned)}")
    source = pruned[row.scratch]
    for seed in row.seeds:
        if seed not in source.seeds:
            raise InputError(f"{at}.seeds: the row {row.scratch} has no seed {seed}; it has {list(source.seeds)}")
    return replace(row, seeds=row.seeds or source.seeds)


def _variant(key: Any, node: Any, at: str) -> _Variant:
    """Checks an entry of `variants`."""
    own = as_name(key, at)
    here = f"{at}.{own}"
    node = as_block(node, here)
    check_keys(node, VARIANT_KEYS, here)
    of = tuple(as_text(row, f"{here}.of") for row in as_nonempty(node["of"], f"{here}.of")) if "of" in node else None
    return _Variant(own, of, _settings(node, here))


def _settings(node: Mapping[str, Any], at: str, *, initial: bool = False) -> RowSpec:
    """The settings that rows and variants have in common, as a row without a name; `initial` as in `read_overrides`."""
    return RowSpec(
        "",
        "",
        hooks=tuple(as_text(hook, f"{at}.hooks") for hook in as_list(node.get("hooks", []), f"{at}.hooks")),
        overrides=read_overrides(node.get("overrides", {}), f"{at}.overrides", initial=initial),
        seeds=as_seeds(node["seeds"], f"{at}.seeds") if "seeds" in node else (),
        steps=as_count(node["steps"], f"{at}.steps", 1) if "steps" in node else None,
    )
