"""Files from strangers: no config, checkpoint or zoo file runs anything."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sirfp.checkpointer import Checkpointer
from sirfp.config import load_config
from sirfp.errors import InputError


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth", ".safetensors", ""])
def test_a_checkpoint_runs_nothing(tmp_path, suffix):
    file, mark = tmp_path / f"evil{suffix}", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"model": Bomb(mark), "__author__": "x", "model_state": Bomb(mark)}))
    with pytest.raises(InputError):
        Checkpointer(network()).load(str(file))
    assert not mark.exists()


def test_resume_runs_nothing_and_stays_in_its_folder(tmp_path):
    mark, out = tmp_path / "ran", tmp_path / "out"
    out.mkdir()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(mark)))
    (out / "evil.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    for name in ("../evil.pth", str(tmp_path / "evil.pth"), "evil.pkl"):
        (out / "last_checkpoint").write_text(name)
        with pytest.raises(InputError):
            Checkpointer(network(), str(out)).resume_or_load("", resume=True)
    assert not mark.exists()


@pytest.mark.parametrize("author", [True, False])
def test_the_zoos_arrays_are_read(tmp_path, author):
    model = network()
    arrays = {name: np.full(t.shape, 2, np.float32) for name, t in model.state_dict().items()}
    content = {"model": arrays, "__author__": "someone"} if author else {"blobs": arrays | {"w_momentum": np.ones(1)}}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    Checkpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert all(bool((t == 2).all()) for t in model.state_dict().values()), model.state_dict()


@pytest.mark.parametrize("base", [False, True])
def test_a_config_runs_nothing(tmp_path, base):
    mark, file = tmp_path / "ran", tmp_path / "evil.yaml"
    file.write_text(f'MODEL:\n  WEIGHTS: !!python/object/apply:builtins.open ["{mark}", "w"]\n')
    if base:
        (tmp_path / "child.yaml").write_text("_BASE_: evil.yaml\n")
        file = tmp_path / "child.yaml"
    with pytest.raises(InputError, match="no valid YAML"):
        load_config(file)
    assert not mark.exists()


def test_configs_that_name_each_other_end_in_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {other}.yaml\n")
    with pytest.raises(InputError):
        load_config(tmp_path / "a.yaml")


def test_tensors_are_read(tmp_path):
    model = network()
    torch.save({"model": {n: torch.ones_like(t) for n, t in model.state_dict().items()}}, tmp_path / "good.pth")
    Checkpointer(model).load(str(tmp_path / "good.pth"))
    assert all(bool((t == 1).all()) for t in model.state_dict().values())
