"""Modes that see all operations do not load PyTorch's compiler, which takes seconds."""

from __future__ import annotations

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from sirfp.channels.double_precision import _Narrow
from sirfp.network.even_noise import EvenNoise
from sirfp.tracing.mode import ChannelTrace
from sirfp.verify.choices import Choices


@pytest.mark.parametrize("kind", [_Narrow, EvenNoise, ChannelTrace, Choices])
def test_modes_do_not_load_the_compiler(kind):
    assert TorchDispatchMode._should_skip_dynamo()  # loads it; if PyTorch changes this, no mode need override it
    assert not kind._should_skip_dynamo()
