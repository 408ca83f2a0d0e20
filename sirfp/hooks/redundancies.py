"""A hook that keeps the redundancy matrices of a run's most pruned layers, before and after, to be looked at.

They are SIRFP's (Wu et al., AAAI 2025, section "Spatial-aware redundancy"), whatever the criterion of the run, and
taken alike from both networks: the dense one just before the first pruning and the fine-tuned one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from torch import nn

from ..channels.find import find_groups
from ..clique.search import greedy
from ..criteria.observer import Observer
from ..criteria.sirfp import SIRFP
from ..files.whole import whole_file
from ..network.forward import call, inference
from ..redundancy.average import edge_weights
from ..structure.groups import Group
from ..structure.plan import PruningPlan
from .registry import HOOKS, rebuilt, session, unwrapped

NAME = "redundancies.npz"
GROUPS, BATCHES, LARGEST = 4, 4, 512
"""How many layers, seen on how many batches, and the most channels that one of them has."""


@HOOKS.register()
class Redundancies(HookBase):
    """Writes `redundancies.npz` at the end of a run; stands after Report, which keeps the dense network.

    The file has `names` and, for the i-th of them, `before<i>` (C, C) and `after<i>` (k, k), float16 values in [0, 1],
    `order<i>` (C,), the channels as the greedy clique removes them, and `kept<i>` (k,), those that stayed. Channels
    are counted as they compete: of a group norm, all of one of its groups are one. A layer that the cut leaves with
    other channels that compete, such as a group norm with one group, is not in it.
    """

    def __init__(self, cfg):
        self.folder = cfg.OUTPUT_DIR

    def after_train(self) -> None:
        plan = session(self.trainer).plan
        dense = os.path.join(self.folder, "dense.safetensors")
        if plan is None or self.trainer.iter < self.trainer.max_iter or not comm.is_main_process():
            return
        if not os.path.isfile(dense):
            return
        inputs, batches = self.trainer.example_inputs(), list(itertools.islice(self.trainer.batches(), BATCHES))
        names = most_pruned(plan)
        model = rebuilt(self.trainer, dense)
        channels = {group.name: group.channels for group in find_groups(model, inputs, trial=False)}
        before = redundancies(model, inputs, names, batches)
        after = redundancies(unwrapped(self.trainer.model), inputs, names, batches)
        seen = [n for n in names if n in before and n in after and len(after[n]) == len(plan.kept[n])]
        content: dict[str, Any] = {"names": np.array(seen)}
        for i, name in enumerate(seen):
            content[f"before{i}"], content[f"after{i}"] = scaled(before[name]), scaled(after[name])
            content[f"order{i}"] = greedy(edge_weights(before[name]))[0].numpy()
            content[f"kept{i}"] = np.searchsorted(channels[name], plan.kept[name])
        with whole_file(os.path.join(self.folder, NAME)) as beside, open(beside, "wb") as file:
            np.savez_compressed(file, **content)


def most_pruned(plan: PruningPlan, count: int = GROUPS) -> list[str]:
    """The groups that lost most channels, of those that are not too large to be looked at."""
    lost = {name: plan.channels[name] - len(kept) for name, kept in plan.kept.items()}
    fit = [name for name in lost if lost[name] > 0 and plan.channels[name] <= LARGEST]
    return sorted(fit, key=lambda name: -lost[name])[:count]


def redundancies(
    model: nn.Module, example_inputs: Any, names: Sequence[str], batches: Sequence[Any]
) -> dict[str, torch.Tensor]:
    """The redundancy matrices, (C, C), of a model's groups of those names, mean over batches."""
    groups: list[Group] = [g for g in find_groups(model, example_inputs, trial=False) if g.name in names and g.features]
    criterion = SIRFP(model, groups, ema=0.9, stride=1)
    with Observer(model, criterion) as observer, inference(model):
        for batch in batches:
            call(model, batch)
            observer.step()
    return {group.name: criterion.matrix(group).cpu() for group in groups}


def scaled(matrix: torch.Tensor) -> np.ndarray:
    """Redundancies as shares of what two equal maps would have, in [0, 1] for maps that are alike in strength."""
    own = matrix.diagonal().clamp_min(1e-30).sqrt()
    return (matrix.abs() / (own[:, None] * own)).nan_to_num(0).clamp(0, 1).half().numpy()
