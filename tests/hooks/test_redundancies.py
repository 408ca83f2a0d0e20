"""The redundancy matrices that a run keeps: channels counted as they compete, also where a group norm ties them."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from sirfp import checkpoint, prune
from sirfp.hooks.redundancies import NAME, Redundancies


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 48, 3), nn.GroupNorm(16, 48), nn.ReLU(), nn.Conv2d(48, 5, 1))


def run(tmp_path, keep: float):
    model, inputs = network(), torch.randn(2, 3, 12, 12)
    checkpoint.save(str(tmp_path / "dense.safetensors"), model, None)
    plan = prune(model, inputs, "magnitude", keep)
    trainer = SimpleNamespace(
        pruning=SimpleNamespace(plan=plan), iter=1, max_iter=1, cfg=None, model=model,
        build_model=lambda cfg: network(), example_inputs=lambda: inputs, batches=lambda: iter([inputs] * 4),
    )  # fmt: skip
    hook = Redundancies(SimpleNamespace(OUTPUT_DIR=str(tmp_path)))
    hook.trainer = trainer
    hook.after_train()
    return plan, np.load(tmp_path / NAME)


def test_channels_that_a_group_norm_ties_are_one(tmp_path):
    plan, found = run(tmp_path, 0.5)
    (name,) = found["names"].tolist()
    assert found["before0"].shape == (16, 16)
    kept = found["kept0"]
    assert found["after0"].shape == (len(kept), len(kept))
    assert (kept * 3).tolist() == list(plan.kept[name])


def test_a_group_norm_of_which_few_groups_are_left_competes_otherwise(tmp_path):
    plan, found = run(tmp_path, 0.15)
    assert [len(kept) for kept in plan.kept.values()] == [2]
    assert not len(found["names"])
