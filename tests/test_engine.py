"""The training run, on a task of its own: a line of two parameters through points."""

import itertools
import json

import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from sirfp import engine
from sirfp.config import load_config
from sirfp.errors import InputError
from sirfp.hooks import HOOKS
from sirfp.training import launch


class Line(nn.Module):
    def __init__(self, width: int = 1):
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, batch):
        if not self.training:
            return [self.layer.weight.item()]
        x = torch.rand(8, self.layer.in_features)
        return {"loss": ((self.layer(x) - 3 * x.sum(1, keepdim=True)) ** 2).mean()}


class LineTrainer(engine.Trainer):
    scores = itertools.repeat(0.0)

    @classmethod
    def build_model(cls, cfg):
        return Line()

    @classmethod
    def build_train_loader(cls, cfg):
        return [None] * 1000

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"line": {"score": next(cls.scores)}}


@pytest.fixture
def config(tmp_path):
    def make(*opts):
        fixed = ["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0", "MODEL.DEVICE", "cpu"]
        poly = ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.BASE_LR", "0.1"]
        return load_config("", [*fixed, *poly, *opts])

    return make


@pytest.mark.parametrize("amp", ["True", "False"])
def test_it_learns_and_writes(config, tmp_path, amp):
    trainer = LineTrainer(config("SOLVER.AMP.ENABLED", amp, "SOLVER.MAX_ITER", "60"))
    trainer.train()
    assert trainer.model.layer.weight.item() == pytest.approx(3, abs=1.2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < losses[0]
    assert {file.name for file in tmp_path.glob("*.pth")} == {"model_final.pth"}
    assert not list(tmp_path.glob(".*")), "nothing half-written"


def test_hooks_are_told_of_gradients(config):
    seen = []

    class Watch(HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.layer.weight.grad.abs().sum().item())

    trainer = LineTrainer(config())
    trainer.register_hooks([Watch()])
    trainer.train()
    assert len(seen) == 4 and all(seen)


def test_a_hook_may_replace_the_model(config):
    class Replace(HookBase):
        def after_step(self):
            if self.trainer.iter == 1:
                self.trainer.model = Line(width=2).train()
                self.trainer.optimizer = torch.optim.SGD(self.trainer.model.parameters(), lr=0.1)
                self.before = self.trainer.model.layer.weight.clone()

    hook = Replace()
    trainer = LineTrainer(config())
    trainer.register_hooks([hook])
    trainer.train()
    assert trainer.model.layer.in_features == 2
    assert not torch.equal(trainer.model.layer.weight, hook.before), "the new model is the one that learns"


def test_hooks_are_built_by_name_before_checkpoints(config, monkeypatch):
    class Ours(HookBase):
        def __init__(self, cfg):
            self.keep = cfg.SIRFP.KEEP_FLOPS

    monkeypatch.setitem(HOOKS._obj_map, "Ours", Ours)
    names = [type(hook).__name__ for hook in LineTrainer(config("SIRFP.HOOKS", "['Ours']"))._hooks]
    assert names.index("LRScheduler") < names.index("Ours") < names.index("PeriodicCheckpoint")
    with pytest.raises(InputError, match=r"no hook 'Our'; known are Accumulate, .* .did you mean Ours\?"):
        LineTrainer(config("SIRFP.HOOKS", "['Our']"))


def test_a_run_goes_on_and_may_be_made_longer(config):
    LineTrainer(config()).train()
    trainer = LineTrainer(config("SOLVER.MAX_ITER", "9"))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    trainer.train()
    assert trainer.iter == 9
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_best_is_kept_and_resuming_goes_on_from_the_last(config, tmp_path, monkeypatch):
    monkeypatch.setattr(LineTrainer, "scores", iter([1.0, 3.0, 2.0]))
    opts = ("TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "line/score", "SOLVER.MAX_ITER", "6")
    results = LineTrainer(config(*opts)).train()
    assert results == {"line": {"score": 2.0}}
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_a_checkpoint_of_another_model_is_refused(config, tmp_path):
    LineTrainer(config()).train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    saved["model"]["layer.weight"] = torch.zeros(1, 7)
    torch.save(saved, tmp_path / "model_final.pth")
    with pytest.raises(InputError, match="is for another model.*layer.weight"):
        LineTrainer(config()).resume_or_load(resume=True)
    LineTrainer(config("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))).resume_or_load(resume=False)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_broken_checkpoint_is_refused(config, tmp_path, content):
    file = tmp_path / "cut.pth"
    if content is None:
        torch.save({"model": Line().state_dict()}, file)
        content = file.read_bytes()[:-100]
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"cut\.pth"):
        LineTrainer(config("MODEL.WEIGHTS", str(file))).resume_or_load(resume=False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["SIRFP.KEEP_FLOPS", "2.0"], "SIRFP.KEEP_FLOPS must lie in"),
        (["--config-file", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["--num-gpus", "99"], "--num-gpus 99"),
        ([], "DATASETS.TRAIN names no data set"),
        (["DATASETS.TRAIN", "('camvid_sem_seg_train',)", "MODEL.WEIGHTS", "no.pth"], "camvid"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        engine.run(engine.Trainer, None, argv)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("error: ") and says in line


def test_an_evaluation_needs_no_device_for_the_trial_of_cuts():
    """The device of a training run may be missing on the machine of the evaluation."""
    data = "('coco_2017_val',)"
    options = ["DATASETS.TRAIN", data, "DATASETS.TEST", data, "SIRFP.TRIAL_DEVICE", "gpu"]
    parse = launch.argument_parser().parse_args
    assert engine.setup(parse(["--eval-only", *options])).SIRFP.TRIAL_DEVICE == ""
    with pytest.raises(InputError, match=r"SIRFP\.TRIAL_DEVICE 'gpu': there is no such device here"):
        engine.setup(parse(options))
