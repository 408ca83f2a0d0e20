"""Lightning's own trainer prunes, goes on from its own checkpoint, and cuts as a loop of one's own does."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, build, mean_square

import sirfp

lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
from sirfp.adapters.lightning import PruneCallback  # noqa: E402

X = torch.zeros(1, 3, 16, 16)
BATCHES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(12)]
ASKED = {"criterion": "taylor", "keep_flops": 0.5, "steps": 2, "reconstruction": 0}


class Loader:
    """Gives the batches in order; a run that goes on begins at the batch at which it has stopped."""

    def __init__(self):
        self.place = 0

    def __len__(self):
        return len(BATCHES)

    def __iter__(self):
        while self.place < len(BATCHES):
            self.place += 1
            yield BATCHES[self.place - 1]

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = build(Residual).train()

    def training_step(self, batch, index):
        return mean_square(self.network, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def fit(folder, steps, callback, accumulate=1, kind=Module, **given):
    module = kind()
    trainer = lightning.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulate, callbacks=[callback], default_root_dir=folder,
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Loader(), **given)
    return module.network, trainer


def own_loop(accumulate=1):
    model = build(Residual).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner = sirfp.Pruner(model, X, optimizer=optimizer, **ASKED)
    for step in range(6):
        optimizer.zero_grad()
        with pruner.look():
            for batch in BATCHES[accumulate * step : accumulate * step + accumulate]:
                (mean_square(model, batch) / accumulate).backward()
        optimizer.step()
        if step + 1 in (3, 5):
            pruner.cut()
    return model, pruner.plan


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_plan_is_that_of_a_loop_of_ones_own(accumulate, tmp_path):
    callback = PruneCallback(X, start=3, recover=2, **ASKED)
    network, _ = fit(tmp_path, 6, callback, accumulate)
    model, plan = own_loop(accumulate)
    assert callback.steps.pruner.plan == plan and plan.flops[1] <= 0.5 * plan.flops[0]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, msg=name)
    sirfp.save(tmp_path / "p.safetensors", network)
    assert sirfp.load(tmp_path / "p.safetensors", build(Residual)) == plan


@pytest.mark.parametrize("interrupted", [1, 3, 4])
def test_it_goes_on_from_lightnings_own_checkpoint(interrupted, tmp_path):
    network, _ = fit(tmp_path / "whole", 6, PruneCallback(X, start=3, recover=2, **ASKED))
    _, trainer = fit(tmp_path / "first", interrupted, PruneCallback(X, start=3, recover=2, **ASKED))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = PruneCallback(X, start=3, recover=2, **ASKED)
    other, _ = fit(tmp_path / "second", 6, again, ckpt_path=str(tmp_path / "last.ckpt"))
    assert again.steps.pruner.done
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, msg=name)


class ByHand(Module):
    automatic_optimization = False


def test_what_cannot_be_is_said(tmp_path):
    for arguments, words in (
        ({"start": 0}, "start must be a whole number of at least 1, got 0"),
        ({"start": 3, "steps": 2}, "recover must be a whole number of at least 1, got 0"),
        ({"start": 3, "accumulate": 4, "steps": 1}, "accumulate must be at most start, 3"),
        ({"start": 3, "keep_flops": 1.5, "steps": 1}, "keep_flops must"),
    ):
        with pytest.raises(sirfp.InputError, match=words):
            PruneCallback(X, **({"recover": 0} | arguments))
    with pytest.raises(sirfp.InputError, match="needs automatic optimisation and one optimizer"):
        fit(tmp_path, 6, PruneCallback(X, start=3, recover=2, **ASKED), kind=ByHand)
