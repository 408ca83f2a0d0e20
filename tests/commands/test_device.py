"""`--device`: its checks, and that models and inputs follow it. No GPU is needed."""

from __future__ import annotations

import re

import pytest
import torch

from sirfp.cli import build_parser
from sirfp.commands.device import check_device
from sirfp.errors import InputError
from sirfp.sources import source


def test_commands_that_run_networks_take_it():
    _, parsers = build_parser()
    own = {name for name, parser in parsers.items() if "--device" in parser._option_string_actions}
    assert own == {"prune", "sensitivity", "verify", "report"}
    assert all(parsers[name].get_default("device") == "cpu" for name in own)


@pytest.mark.parametrize(
    ("name", "gpus", "says"),
    [
        ("cuda", 0, "finds no GPU on this machine.*; leave --device out"),
        ("cuda:1", 1, "has 1 GPU, counted from cuda:0"),
        ("cuda:2", 2, "has 2 GPUs, counted from cuda:0"),
        ("cuda:-1", 2, "cpu, cuda or cuda:N"),
        ("cdua", 1, "did you mean cuda"),
        ("CPU", 0, "did you mean cpu"),
        (" cpu\n", 0, "did you mean cpu"),
        ("cuda:٠", 1, "did you mean cuda"),  # a digit of another script
        ("cuda:" + 5000 * "1", 1, "cpu, cuda or cuda:N"),
        ("meta", 1, "cpu, cuda or cuda:N"),
        ("mps", 1, "cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, name, gpus, says):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    shown = f"({re.escape(name)}|{re.escape(repr(name))})"
    with pytest.raises(InputError, match=f"^--device {shown}: .*{says}"):
        check_device(name)


def test_the_device_of_the_trial_is_checked_alike():
    with pytest.raises(InputError, match="^--trial-device 'gpu': networks run on cpu, cuda or cuda:N"):
        check_device("gpu", "--trial-device")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:1"])
def test_a_device_that_is_there(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device(name)


def test_inputs_are_made_where_the_model_is():
    given = source.from_timm("test_resnet", size=(32, 32))
    assert given.device.type == given.example().device.type == "cpu"
    given.to("meta")
    assert {given.device.type, given.example().device.type, given.fresh().conv1[0].weight.device.type} == {"meta"}
    assert given.raw(given.example())[0].device.type == "meta"
