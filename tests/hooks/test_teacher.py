"""The network before the first cut teaches the pruned one: from then on, unchanged, and through every interruption."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from marks import slow_but
from tiny_run import Stop, Stopped, TaskTrainer, config, run
from tiny_tasks import PROJECTS, command, make_data

from sirfp import engine
from sirfp.checkpoint import read_safetensors
from sirfp.config import load_config
from sirfp.config.checks import validate
from sirfp.config.data import register_data
from sirfp.errors import InputError

pytestmark = pytest.mark.usefixtures("undrawn", "found_once")

ON = ("MODEL.TEACHER.WEIGHT", "0.5")
SHORT = "SIRFP.STEPS 1 SIRFP.START_ITER 4 SIRFP.ACCUMULATE_ITERS 2 SIRFP.RECOVER_ITERS 0 SOLVER.MAX_ITER 6".split()
"""One cut, after four iterations of six."""


def teach(trainer):
    return next(hook for hook in trainer._hooks if type(hook).__name__ == "Teach")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [(line["iteration"], line.get("loss_teacher")) for line in lines if "loss" in line]


def same_weights(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, *ON)


def test_it_teaches_from_the_first_cut_on(whole):
    folder, trainer = whole
    taught = [iteration for iteration, loss in losses(folder) if loss is not None]
    assert taught and min(taught) >= 8 and max(taught) == 19, losses(folder)  # the cuts come after 8 and 13 iterations
    teacher = teach(trainer).teacher
    _, dense = read_safetensors(folder / "dense.safetensors")
    same_weights(dense, {name: value.contiguous() for name, value in teacher.state_dict().items()})
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    assert not any("teacher" in name for name in saved["model"]), "the network's own file holds no teacher"


def test_it_changes_the_training_after_the_cut_only(whole, tmp_path):
    plain = run(tmp_path)
    taught = whole[1].model.state_dict()
    assert (whole[0] / "pruning.json").is_file() and not hasattr(plain, "teacher")
    dense = [json.loads((folder / "pruning.json").read_text())["dense"] for folder in (tmp_path, whole[0])]
    assert dense[0]["metrics"] == dense[1]["metrics"], "the same run until the first cut"
    assert any(not torch.equal(value, taught[name]) for name, value in plain.model.state_dict().items()
               if value.shape == taught[name].shape)  # fmt: skip
    assert not any(loss for _, loss in losses(tmp_path))


@pytest.mark.parametrize("stop", slow_but([5, 10, 14, 19], 5, 10))  # prunings after 8 and 13
def test_a_resumed_run_has_the_same_teacher_and_result(whole, tmp_path, stop):
    with pytest.raises(Stopped):
        run(tmp_path, *ON, stop=stop)
    resumed = run(tmp_path, *ON, resume=True)
    assert resumed.pruning.plan == whole[1].pruning.plan
    same_weights(whole[1].model.state_dict(), resumed.model.state_dict())
    same_weights(teach(whole[1]).teacher.state_dict(), teach(resumed).teacher.state_dict())


def test_a_file_teaches_from_the_first_iteration(whole, tmp_path):
    for name in ("dense.safetensors", "pruned.safetensors", "model_final.pth"):
        file = whole[0] / name
        if name == "model_final.pth":
            with pytest.raises(InputError, match="holds a pruned model"):
                run(tmp_path / name, *ON, "MODEL.TEACHER.WEIGHTS", str(file))
            continue
        trainer = run(tmp_path / name, *ON, *SHORT, "MODEL.TEACHER.WEIGHTS", str(file))
        assert all(loss is not None for _, loss in losses(tmp_path / name))
        _, expected = read_safetensors(file)
        same_weights(expected, {k: v.contiguous() for k, v in teach(trainer).teacher.state_dict().items()})
        saved = torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        assert "Teach" not in saved["trainer"]["hooks"], "checkpoints need not hold a teacher that has a file"


def test_the_teacher_of_a_run_from_a_pruned_network_is_that_network(whole, tmp_path):
    more = ("MODEL.WEIGHTS", str(whole[0] / "pruned.safetensors"), "SIRFP.KEEP_FLOPS", "0.25")
    with pytest.raises(Stopped):
        run(tmp_path, *ON, *more, stop=14)
    further = run(tmp_path, *ON, *more, resume=True)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (whole[1].model, teach(further).teacher)]
    assert sizes[0] == sizes[1] > sum(p.numel() for p in further.model.parameters())


def test_checkpoints_without_a_teacher_go_on_with_the_file_of_the_report(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(Stopped):
        run(folder, stop=14)
    shutil.copytree(folder, other)
    resumed = run(folder, *ON, resume=True)
    _, dense = read_safetensors(folder / "dense.safetensors")
    same_weights(dense, {name: value.contiguous() for name, value in teach(resumed).teacher.state_dict().items()})
    (other / "dense.safetensors").unlink()
    with pytest.raises(InputError, match="name the dense network's file in MODEL.TEACHER.WEIGHTS"):
        run(other, *ON, resume=True)


def test_each_part_of_a_split_batch_is_compared(whole, tmp_path):
    """A trainer that accumulates gradients calls the losses several times in a step."""

    class Accumulating(TaskTrainer):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.calls = 0

        def losses(self, model, data):
            self.calls += 1
            return model(data)

        def run_step(self):
            step, inner = self._trainer, self._trainer.losses

            def halves(model, data):
                parts = [inner(model, half) for half in data.chunk(2)]
                return {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}

            step.losses = halves
            super().run_step()
            step.losses = inner

    trainer = Accumulating(config(tmp_path, *ON))
    trainer.train()
    assert trainer.calls == 40 and trainer.pruning.steps == 2
    assert all((loss is not None) == (i >= 8) for i, loss in losses(tmp_path))


@pytest.mark.parametrize("amp", ["True", "False"])
def test_it_runs_in_the_precision_of_the_step(tmp_path, amp, monkeypatch):
    monkeypatch.setattr(engine, "autocast_dtype", lambda device: torch.bfloat16)
    seen = []
    trainer = TaskTrainer(config(tmp_path, *ON, "SOLVER.AMP.ENABLED", amp))
    trainer.register_hooks([Stop(10)])
    trainer._hooks.insert(0, trainer._hooks.pop())
    hook = teach(trainer)

    def freeze(model, own=hook._freeze):
        own(model)
        last = next(module for module in reversed(list(model.modules())) if isinstance(module, torch.nn.Conv2d))
        last.register_forward_hook(lambda *args: seen.append(args[2].dtype))

    hook._freeze = freeze
    with pytest.raises(Stopped):
        trainer.train()
    assert set(seen) == {torch.bfloat16 if amp == "True" else torch.float32}


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        ((*ON, "SIRFP.HOOKS", "[]", "SIRFP.KEEP_FLOPS", "1.0"), "SIRFP.HOOKS lacks PruneSteps"),
        (("MODEL.TEACHER.WEIGHT", "-1.0"), "MODEL.TEACHER.WEIGHT must be at least 0"),
        ((*ON, "MODEL.TEACHER.TEMPERATURE", "0.0"), "MODEL.TEACHER.TEMPERATURE must be above 0"),
        (("MODEL.TEACHER.WEIGHT", "nan"), "MODEL.TEACHER.WEIGHT"),
    ],
)
def test_mistakes_are_said_before_the_run(tmp_path, opts, says):
    with pytest.raises(InputError, match=says):
        validate(config(tmp_path, *opts))


def test_a_missing_file_of_a_teacher_is_said(tmp_path):
    with pytest.raises(InputError, match=r"there is no file of weights .*gone\.pth"):
        run(tmp_path, *ON, "MODEL.TEACHER.WEIGHTS", str(tmp_path / "gone.pth"))


def test_no_config_turns_it_on():
    for file in sorted(PROJECTS.glob("*/configs/**/*.yaml")):
        assert "TEACHER" not in file.read_text(), file


PRUNE = (
    "SIRFP.KEEP_FLOPS 0.6 SIRFP.STEPS 2 SIRFP.ACCUMULATE_ITERS 2 SIRFP.RECOVER_ITERS 1 SIRFP.ACCUMULATE_PERIOD 1 "
    "SOLVER.MAX_ITER 6 SOLVER.CHECKPOINT_PERIOD 1 SIRFP.HOOKS ['Accumulate','PruneSteps','Recover'] "
    "SIRFP.CRITERION magnitude SIRFP.RECONSTRUCTION_ITERS 0 SIRFP.WIDTHS ranking SEED 3 SOLVER.BASE_LR 0.001 "
    "MODEL.TEACHER.TEMPERATURE 2.0 MODEL.TEACHER.WEIGHT 0.5"
).split()  # fmt: skip


TASKS = ["segmentation", "detection", "classification"]


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize("task", slow_but(TASKS, "detection", "classification"))
def test_every_task_learns_from_its_teacher_and_resumes(tmp_path, task, clean_catalogs):
    from scripts import loaded

    root = make_data(tmp_path / "data")
    with loaded(f"projects/{task}/train_net.py") as script:
        (trainer_class,) = (kind for kind in vars(script).values() if isinstance(kind, type)
                            and issubclass(kind, engine.Trainer) and kind is not engine.Trainer)  # fmt: skip
        words = command(task, root, f"taught_{task}")
        cfg = load_config(words[3], [*words[4:], *PRUNE, "MODEL.DEVICE", "cpu"])
        register_data(cfg)

        def train(folder, resume=False, stop=None):
            own = cfg.clone()
            own.OUTPUT_DIR = str(folder)
            folder.mkdir(exist_ok=True)
            torch.manual_seed(0)
            trainer = trainer_class(own)
            if stop is not None:
                trainer.register_hooks([Stop(stop)])
                trainer._hooks.insert(0, trainer._hooks.pop())
            trainer.resume_or_load(resume=resume)
            trainer.train()
            return trainer

        whole = None if task == "detection" else train(tmp_path / "whole")
        with pytest.raises(Stopped):
            train(tmp_path / "cut", stop=4)
        resumed = train(tmp_path / "cut", resume=True)
    saved = torch.load(tmp_path / "cut/model_0000003.pth", weights_only=True)["trainer"]["hooks"]["Teach"]["weights"]
    same_weights(saved, teach(resumed).teacher.state_dict())
    if whole is not None:  # two runs of a detector in one process differ in the last digits, without a teacher too
        same_weights(whole.model.state_dict(), resumed.model.state_dict())
        same_weights(teach(whole).teacher.state_dict(), teach(resumed).teacher.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "cut/metrics.json").read_text().splitlines()]
    taught = [{k: v for k, v in line.items() if k.startswith("loss_teacher")} for line in lines if "total_loss" in line]
    losses = taught[-1].values()  # an untrained detector sees no object, so that its boxes are not compared
    assert max(losses) > 0 and all(value >= 0 for value in losses), lines
