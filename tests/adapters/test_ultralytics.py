"""ultralytics' trainer prunes, goes on from its own checkpoint, and cuts as a loop of one's own does."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from PIL import Image

import sirfp

ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
from sirfp.adapters.ultralytics import FILE, PruneCallback  # noqa: E402

X = torch.zeros(1, 3, 64, 64)
ASKED = {"criterion": "sirfp", "keep_flops": 0.6, "steps": 2, "reconstruction": 0}
NETWORK = """
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C2f, [16, True]]
  - [-1, 1, Conv, [24, 3, 2]]
head:
  - [[3], 1, Detect, [nc]]
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Eight images of one box each, in the layout of ultralytics; returns the description's file."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "settings"))
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"data/images/{i}.png")
        (tmp_path / f"data/labels/{i}.txt").write_text(f"{i % 2} 0.5 0.5 0.4 0.3\n")
    (tmp_path / "net.yaml").write_text(NETWORK)
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images\nval: images\nnames: {{0: cat, 1: dog}}\n"
    )
    return tmp_path


class Interrupted(Exception):
    pass


def fit(folder, callback, name, model=None, stop=None, **given):
    model = model or ultralytics.YOLO(str(folder / "net.yaml"), task="detect")
    callback.add_to(model)
    if stop is not None:

        def end(trainer):
            if trainer.epoch == stop:
                raise Interrupted

        model.add_callback("on_train_epoch_start", end)
    given = given or {
        "data": str(folder / "data.yaml"), "epochs": 4, "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0,
        "device": "cpu", "project": str(folder), "name": name, "optimizer": "SGD", "lr0": 0.001, "warmup_epochs": 0,
        "plots": False, "val": False, "verbose": False, "seed": 0, "amp": False, "mosaic": 0.0, "close_mosaic": 0,
    }  # fmt: skip
    with contextlib.suppress(Interrupted):
        model.train(**given)
    return model


def test_it_prunes_and_the_plan_is_that_of_a_loop_of_ones_own(data):
    batches, before, after, plans = [], [], [], []
    callback, network = PruneCallback(X, start=2, recover=2, **ASKED), ultralytics.YOLO(str(data / "net.yaml"))

    def keep(trainer):
        before.append(copy.deepcopy(trainer.model))
        call = trainer.preprocess_batch

        def preprocess(batch):
            batch = call(batch)
            batches.append((copy.deepcopy(batch), copy.deepcopy(trainer.model.state_dict())))
            return batch

        trainer.preprocess_batch = preprocess

    network.add_callback("on_train_start", keep)
    network.add_callback("on_train_batch_end", lambda trainer: after.append(copy.deepcopy(trainer.model.state_dict())))
    network.add_callback("on_train_epoch_end", lambda trainer: plans.append(callback.steps.pruner.plan))
    fit(data, callback, "run", model=network)
    plan = callback.steps.pruner.plan
    assert callback.steps.pruner.done and 0.5 < plan.flops[1] / plan.flops[0] <= 0.6
    last = ultralytics.YOLO(str(data / "run/weights/last.pt")).model.float()
    assert sum(p.numel() for p in last.parameters()) == plan.params[1] < sum(p.numel() for p in before[0].parameters())
    assert last(torch.rand(1, 3, 64, 64)) is not None

    model = before[0].train()
    pruner = sirfp.Pruner(model, X, **ASKED)
    for number, wanted in enumerate(plans[:2]):
        steps = slice(2 * number, 2 * number + 2)
        for batch, weights in batches[steps]:
            model.load_state_dict(weights)
            with pruner.look():
                model(batch)[0].sum().backward()
            model.zero_grad()
        model.load_state_dict(after[steps][-1])
        assert pruner.cut() == wanted
    assert wanted == plan


def test_it_goes_on_from_ultralytics_own_checkpoint(data):
    whole = PruneCallback(X, start=2, recover=4, **ASKED)
    fit(data, whole, "whole")
    fit(data, PruneCallback(X, start=2, recover=4, **ASKED), "run", stop=2)
    last = data / "run/weights/last.pt"
    assert (last.parent / FILE).is_file()
    again = PruneCallback(X, start=2, recover=4, **ASKED)
    fit(data, again, "run", model=ultralytics.YOLO(str(last)), resume=True)
    assert again.steps.pruner.done
    plan, wanted = again.steps.pruner.plan, whole.steps.pruner.plan
    assert plan.flops[0] == wanted.flops[0] and abs(plan.flops[1] - wanted.flops[1]) < 0.05 * wanted.flops[0]
