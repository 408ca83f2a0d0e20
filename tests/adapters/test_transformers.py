"""Hugging Face's Trainer prunes, goes on from its own checkpoint, and cuts as a loop of one's own does."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from data_folders import hide_folder_of_data

import sirfp

hide_folder_of_data()  # once more for processes, which have not read conftest.py
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which transformers' Trainer needs, is not installed")
from sirfp.adapters.transformers import FILE, PruneCallback  # noqa: E402

X = {"pixel_values": torch.zeros(1, 3, 16, 16)}
ASKED = {"criterion": "taylor", "keep_flops": 0.6, "steps": 2, "reconstruction": 0}
DATA = [
    {"pixel_values": torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)), "labels": seed % 3}
    for seed in range(32)
]


def network():
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    model.accepts_loss_kwargs = False  # lets the Trainer divide the losses of accumulated batches by their number
    return model


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(DATA)


def fit(folder, callback, accumulate=1, model=None, resume=None, until=6):
    model = model or network()
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=accumulate,
        max_grad_norm=0, learning_rate=0.01, lr_scheduler_type="constant", optim="sgd", save_steps=4, report_to=[],
        use_cpu=True, disable_tqdm=True, seed=0, ddp_backend="gloo" if "RANK" in os.environ else None,
    )  # fmt: skip
    trainer = InOrder(model, arguments, train_dataset=DATA, callbacks=[Stop(until)] if until < 6 else None)
    callback.add_to(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return model


class Stop(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step >= self.step


def own_loop(accumulate=1):
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = sirfp.Pruner(model, X, optimizer=optimizer, **ASKED)
    batches = [
        {key: torch.stack([torch.as_tensor(one[key]) for one in DATA[i : i + 4]]) for key in DATA[0]}
        for i in range(0, 32, 4)
    ]
    for step in range(6):
        optimizer.zero_grad()
        with pruner.look():
            for place in range(accumulate * step, accumulate * step + accumulate):
                (model(**batches[place % len(batches)]).loss / accumulate).backward()
        optimizer.step()
        if step + 1 in (3, 5):
            pruner.cut()
    return model, pruner.plan


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_plan_is_that_of_a_loop_of_ones_own(accumulate, tmp_path):
    callback = PruneCallback(X, start=3, recover=2, **ASKED)
    model = fit(tmp_path, callback, accumulate)
    other, plan = own_loop(accumulate)
    assert callback.steps.pruner.plan.kept == plan.kept and plan.flops[1] <= 0.6 * plan.flops[0]
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


def test_it_goes_on_from_the_trainers_own_checkpoint(tmp_path):
    whole = PruneCallback(X, start=3, recover=2, **ASKED)
    model = fit(tmp_path / "whole", whole)
    fit(tmp_path / "run", PruneCallback(X, start=3, recover=2, **ASKED), until=4)
    checkpoint = tmp_path / "run" / "checkpoint-4"
    again, dense = PruneCallback(X, start=3, recover=2, **ASKED), network()
    again.rebuild(dense, checkpoint)
    fit(tmp_path / "run", again, model=dense, resume=str(checkpoint))
    assert again.steps.pruner.plan == whole.steps.pruner.plan and again.steps.pruner.done
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(dense.state_dict()[name], tensor, msg=name)
    with pytest.raises(sirfp.InputError, match=f"has no {FILE}"):
        again.rebuild(network(), tmp_path)


def _process(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    callback = PruneCallback(X, start=3, recover=2, **ASKED)
    model = fit(folder, callback)
    assert callback.steps.pruner.done and torch.distributed.get_world_size() == 2
    torch.save((callback.steps.pruner.plan.to_json(), dict(model.named_parameters())), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_cut_alike_and_train_on_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (str(tmp_path), port), nprocs=2)
    (one, weights), (other, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert one == other
    for name, tensor in weights.items():  # apart, if each process went on with gradients of its own
        torch.testing.assert_close(others[name], tensor, msg=name)


def test_what_cannot_be_is_said():
    for given, words in (
        ({"world_size": 2, "n_gpu": 1}, r"add PruneCallback by callback.add_to\(trainer\)"),
        ({"world_size": 1, "n_gpu": 2}, "needs a process for each GPU, not one for 2"),
    ):
        with pytest.raises(sirfp.InputError, match=words):
            PruneCallback(X, start=3, steps=1).on_train_begin(SimpleNamespace(**given), None, None)
