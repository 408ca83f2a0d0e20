"""The hook that keeps memory during training: from the first step to the last, and not where it is scarce."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from sirfp.hooks import KeptMemory
from sirfp.network import kept_memory


def test_memory_is_kept_while_training(usual_memory, monkeypatch):
    options: list[tuple[int, int]] = []
    monkeypatch.setattr(kept_memory, "_mallopt", lambda: lambda name, value: options.append((name, value)) or 1)
    usual = [(-3, 32 * 2**20), (-1, 64 * 2**20)]
    hook = KeptMemory()
    hook.trainer = SimpleNamespace(model=nn.Linear(2, 2), iter=18)
    hook.before_train()
    assert options == [(-3, 2**30), (-1, 2**30)]
    monkeypatch.setattr(kept_memory, "_free_share", lambda: 0.1)
    hook.after_step()
    assert len(options) == 2, "it looks at memory at every twentieth step"
    hook.trainer.iter = 19
    hook.after_step()
    assert options[2:] == usual
    hook.after_train()
    assert options[4:] == usual
