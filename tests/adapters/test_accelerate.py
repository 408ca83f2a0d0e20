"""Accelerate needs no adapter: its checkpoints hold the pruner's state by its own hooks, as docs/own_loop.md shows."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, build, mean_square

import sirfp

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

X = torch.zeros(1, 3, 16, 16)
BATCHES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
ASKED = {"criterion": "taylor", "keep_flops": 0.5, "steps": 2, "reconstruction": 0}


class Loop:
    """A loop with Accelerate, two batches for each step of the optimizer, cut after steps 2 and 4."""

    def __init__(self):
        self.accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = build(Residual).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.pruner = pruner = sirfp.Pruner(self.model, X, optimizer=self.optimizer, **ASKED)
        self.accelerator.register_save_state_pre_hook(
            lambda models, weights, folder: torch.save(pruner.state_dict(), f"{folder}/pruner.pt")
        )
        self.accelerator.register_load_state_pre_hook(
            lambda models, folder: pruner.load_state_dict(torch.load(f"{folder}/pruner.pt"))
        )

    def run(self, first, last):
        for place in range(2 * first, 2 * last):
            with self.accelerator.accumulate(self.model):
                with self.pruner.look(complete=self.accelerator.sync_gradients):
                    self.accelerator.backward(mean_square(self.model, BATCHES[place]))
                self.optimizer.step()
                self.optimizer.zero_grad()
            if place in (3, 7):
                self.pruner.cut()


def same(model, other):
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, msg=name)


def test_the_plan_is_that_of_a_loop_of_ones_own():
    loop, model = Loop(), build(Residual).train()
    loop.run(0, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = sirfp.Pruner(model, X, optimizer=optimizer, **ASKED)
    for step in range(6):
        optimizer.zero_grad()
        with pruner.look():
            for batch in BATCHES[2 * step : 2 * step + 2]:
                (mean_square(model, batch) / 2).backward()
        optimizer.step()
        if step in (1, 3):
            pruner.cut()
    assert loop.pruner.plan == pruner.plan and pruner.done
    same(model, loop.accelerator.unwrap_model(loop.model))


@pytest.mark.parametrize("interrupted", [1, 3])
def test_it_goes_on_from_accelerates_own_checkpoint(interrupted, tmp_path):
    whole, first, second = Loop(), Loop(), Loop()
    whole.run(0, 6)
    first.run(0, interrupted)
    first.accelerator.save_state(tmp_path / "state")
    second.accelerator.load_state(tmp_path / "state")
    second.run(interrupted, 6)
    assert second.pruner.plan == whole.pruner.plan
    same(whole.model, second.model)
