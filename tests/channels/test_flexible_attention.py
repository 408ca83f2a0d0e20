"""Attention by `flex_attention`, an operation that runs functions and has no schema."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention as module
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import sirfp
from sirfp.channels import find_groups
from sirfp.tracing.table import HIGHER_ORDER
from sirfp.verify import compare, mask

HEADS, WIDTH, TOKENS = 4, 8, 128


class Block(nn.Module):
    """A transformer's block; subclasses say how attention is called."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.embed, self.norm = nn.Linear(6, 24), nn.LayerNorm(24)
        self.joint, self.out = nn.Linear(24, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 3)

    def attend(self, q, k, v):
        return flex_attention(q, k, v)

    def forward(self, x):
        x = self.embed(x)
        parts = self.joint(self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x + self.mlp(x))


class OwnScale(Block):
    def attend(self, q, k, v):
        return flex_attention(q, k, v, scale=0.3)


class Slopes(Block):
    def attend(self, q, k, v):
        return flex_attention(q, k, v, scale=0.3, score_mod=lambda score, b, h, i, j: score - (h + 1) * (i - j).abs())


class Causal(Block):
    def attend(self, q, k, v):
        blocks = create_block_mask(lambda b, h, i, j: i >= j, None, None, TOKENS, TOKENS, device="cpu")
        return flex_attention(q, k, v, scale=0.3, block_mask=blocks)


def pruned(kind: type[Block], share: float) -> sirfp.PruningPlan:
    """Prunes a block, and asserts that it equals the masked one."""
    torch.manual_seed(0)
    dense, x = kind().eval(), torch.randn(1, TOKENS, 6)
    small, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    plan = sirfp.prune(small, x, "random", keep_flops=share, bias_correction=False)
    mask(masked, plan)
    assert compare(masked, small, x, plan).relative < 1e-5 < compare(dense, small, x).relative
    assert not module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    return plan


def test_whole_heads_go_where_the_scale_follows_the_width():
    plan = pruned(Block, 0.4)
    assert plan.channels["joint"] == HEADS and set(plan.frozen) == {"head"}


def test_the_width_of_heads_goes_where_the_code_gives_the_scale():
    plan = pruned(OwnScale, 0.4)
    assert plan.channels["joint"] == WIDTH and set(plan.frozen) == {"head"}


@pytest.mark.parametrize("kind", [Slopes, Causal])
def test_heads_stay_where_functions_may_tell_them_apart(kind):
    assert pruned(kind, 0.6).channels["joint"] == WIDTH


def test_heads_stay_where_functions_may_tell_them_apart_and_the_scale_follows_the_width():
    class Both(Slopes):
        def attend(self, q, k, v):
            return flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score - (h + 1) * (i - j).abs())

    assert "joint" in pruned(Both, 0.8).frozen


def test_an_operation_that_runs_functions_without_a_rule_keeps_what_it_reads(monkeypatch):
    monkeypatch.delitem(HIGHER_ORDER, "flex_attention")
    found = find_groups(Block().eval(), torch.randn(1, TOKENS, 6))
    assert {frozen.reason for frozen in found.frozen if frozen.name == "joint"} == {"flex_attention has no rule"}
    assert "mlp.0" in [group.name for group in found]
