"""A hook that writes the redundancy matrices of the most pruned layers, before and after pruning, for figures.

Redundancies are those of SIRFP (Wu et al., AAAI 2025, section "Spatial-aware redundancy"), for every criterion of the
run. They are computed in the same way for the dense network just before the first pruning and for the fine-tuned one.
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
"""Number of groups in the file, number of batches for their redundancies, largest number of channels of a group."""


@HOOKS.register()
class Redundancies(HookBase):
    """Writes `redundancies.npz` at the end of a run.

    In SIRFP.HOOKS it comes after Report, which writes the dense network. The file holds `names`, the names of the
    groups, and these arrays for group i:

        before<i>: redundancies in the dense network, (C, C), float16 in [0, 1].
        after<i>: redundancies in the fine-tuned network, (k, k), float16 in [0, 1].
        order<i>: the channels in the order in which the greedy clique removes them, (C,).
        kept<i>: positions of the kept channels, (k,), in [0, C).

    C and k count atoms, the smallest units that can be removed: usually single channels, but all channels of one group
    of a group norm form one atom. A layer is left out if its number of atoms in the fine-tuned network differs from the
    plan, e.g. because its group norm has only one group left.
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
    """Returns the names of the `count` groups that lost most channels, without groups of more than LARGEST channels."""
    lost = {name: plan.channels[name] - len(kept) for name, kept in plan.kept.items()}
    fit = [name for name in lost if lost[name] > 0 and plan.channels[name] <= LARGEST]
    return sorted(fit, key=lambda name: -lost[name])[:count]


def redundancies(
    model: nn.Module, example_inputs: Any, names: Sequence[str], batches: Sequence[Any]
) -> dict[str, torch.Tensor]:
    """Returns the redundancy matrix, (C, C), of each named group of a model, averaged over batches."""
    groups: list[Group] = [g for g in find_groups(model, example_inputs, trial=False) if g.name in names and g.features]
    criterion = SIRFP(model, groups, ema=0.9, stride=1)
    with Observer(model, criterion) as observer, inference(model):
        for batch in batches:
            call(model, batch)
            observer.step()
    return {group.name: criterion.matrix(group).cpu() for group in groups}


def scaled(matrix: torch.Tensor) -> np.ndarray:
    """Normalises redundancies by those of each channel with itself, r_ij / sqrt(r_ii r_jj), clipped to [0, 1]."""
    own = matrix.diagonal().clamp_min(1e-30).sqrt()
    return (matrix.abs() / (own[:, None] * own)).nan_to_num(0).clamp(0, 1).half().numpy()
