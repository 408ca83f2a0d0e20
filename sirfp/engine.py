"""The training run of all tasks: Detectron2's trainer on any device, with hooks that the config names.

A project's `train_net.py` defines a subclass of `Trainer` (its data, its evaluator) and ends with

    if __name__ == "__main__":
        run(MyTrainer, add_my_config)
"""

from __future__ import annotations

import argparse
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from .config import input_size, load_config, register_data, validate, warn_of_unused
from .data.reading import reading_data
from .data.stream import TrainingStream, detection_stream
from .errors import InputError
from .files.config_files import config_files
from .files.own_code import import_own
from .hooks import HOOKS, BestCheckpoint, KeptMemory, PeriodicCheckpoint, teachers
from .models.deformable import provide_deformable
from .models.keypoints import provide_contiguous_heat_maps
from .network.channels_last import use_channels_last
from .network.detectron import averages, set_averages
from .network.forward import random_images
from .processes import average_norms
from .training import launch
from .training.checkpointer import Checkpointer
from .training.launch import one_line_errors
from .training.lr_schedule import PhasedPolyLR
from .training.output_folder import hold_output_folder
from .training.set_up import set_up
from .training.step import MixedPrecisionTrainer, autocast_dtype
from .training.sync_norm import replace_sync_norms

Configure = Callable[[CfgNode], None]


class Trainer(DefaultTrainer):
    """Detectron2's `DefaultTrainer` for any task, on CPUs or GPUs.

    A hook may replace `model`, `optimizer`, `scheduler` and `checkpointer`: each step reads these attributes again.

    Args:
        cfg: the whole config. With `SOLVER.AMP.ENABLED`, steps run in a 16-bit type on devices where it is faster.
    """

    def __init__(self, cfg: CfgNode):
        super(DefaultTrainer, self).__init__()  # the rest follows DefaultTrainer, except for step and checkpointer
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        batch, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
        if batch % processes:
            raise InputError(f"SOLVER.IMS_PER_BATCH must be a multiple of the {processes} processes, got {batch}")
        model = use_channels_last(self.build_model(cfg))
        if comm.get_world_size() > 1 and not next(model.parameters()).is_cuda:
            replace_sync_norms(model)
        optimizer = self.build_optimizer(cfg, model)
        with reading_data(cfg.DATASETS.TRAIN):
            data_loader = self.build_train_loader(cfg)
        device = next(model.parameters()).device
        precision = autocast_dtype(device) if cfg.SOLVER.AMP.ENABLED else None
        logging.getLogger(__name__).info(f"Training on {device} in {precision or torch.float32}")
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = self.build_checkpointer(cfg, model, trainer=weakref.proxy(self))
        self._trainer = MixedPrecisionTrainer(
            self.distribute(model), data_loader, optimizer, precision, self.after_backward, self.losses,
            cfg.SIRFP.MAX_NONFINITE,
        )  # fmt: skip
        self._trainer.finite.before_end = self._keep
        self.checkpointer.optimizer = optimizer
        self.start_iter, self._last_tested = 0, -1
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @classmethod
    def check_data(cls, cfg: CfgNode, names: Sequence[str]) -> None:
        """Checks the data sets of a run against the config, before processes are started; a task may override it."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Builds the model that the config describes.

        Raises:
            InputError: the config names a part that does not exist, or its values contradict each other.
        """
        provide_deformable()
        provide_contiguous_heat_maps()
        try:
            model = build_model(cfg)
        except InputError:
            raise
        except (KeyError, ValueError, AssertionError) as error:
            logging.getLogger(__name__).debug("The model cannot be built", exc_info=True)
            reason = str(error.args[0] if error.args else error) or type(error).__name__
            hint = "; --import FILE.py runs the code that registers it" if "registry!" in reason else ""
            raise InputError(f"the model cannot be built from this config: {reason}{hint}") from error
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        logging.getLogger(__name__).info("Model: %s, %.2f M parameters", type(model).__name__, millions)
        return model

    @staticmethod
    def distribute(model: nn.Module) -> nn.Module:
        """Wraps a model in DistributedDataParallel; returns it unchanged if the run has a single process."""
        on_gpu = next(model.parameters()).is_cuda
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return create_ddp_model(
            model,
            broadcast_buffers=False,
            find_unused_parameters=True,  # e.g. pyramid levels that a detector's head does not read
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingStream:
        """Builds the stream of augmented training batches in Detectron2's format."""
        return detection_stream(cfg)

    def run_step(self) -> None:
        """Runs one iteration, whose random numbers depend only on the seed and the iteration's number."""
        if isinstance(self._trainer.data_loader, TrainingStream):
            self._trainer.data_loader.seed_step(self.iter)
        super().run_step()

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """Builds Detectron2's schedules, DeepLab's `WarmupPolyLR` or `PhasedPolyLR`, which restarts at each pruning."""
        if cfg.SOLVER.LR_SCHEDULER_NAME == "PhasedPolyLR":
            return PhasedPolyLR.from_config(cfg, optimizer)
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_checkpointer(cls, cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> Checkpointer:
        """Builds the checkpointer, which writes and reads training checkpoints in OUTPUT_DIR."""
        return Checkpointer(model, cfg.OUTPUT_DIR, cfg.SIRFP.PLAN, **checkpointables)

    def build_hooks(self) -> list[HookBase | None]:
        """Builds Detectron2's hooks, the hook of distillation, if any, and the hooks of `SIRFP.HOOKS`.

        The hooks of `SIRFP.HOOKS` run after the learning-rate schedule and before checkpoints and evaluation. Thus
        checkpoints hold the pruned model, and evaluation tests it.
        """
        ret = super().build_hooks()
        after = 1 + max(i for i, hook in enumerate(ret) if isinstance(hook, hooks.LRScheduler))
        ret[after:after] = [*teachers(self.cfg), *(build_hook(name, self.cfg) for name in self.cfg.SIRFP.HOOKS)]
        ret = [hook for hook in ret if not isinstance(hook, hooks.PeriodicCheckpointer)]
        before = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        solver = self.cfg.SOLVER
        periodic = PeriodicCheckpoint(self.checkpointer, solver.CHECKPOINT_PERIOD, solver.KEEP_CHECKPOINTS)
        ret[before] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        ret.insert(before, periodic)
        if self.cfg.TEST.BEST_METRIC and comm.is_main_process():
            after = 1 + max(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, self.cfg.TEST.BEST_METRIC)
            ret.insert(after, best)
        return [KeptMemory(), *ret]

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes from the last checkpoint in OUTPUT_DIR, or starts from MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        if hasattr(self.scheduler, "max_iters"):  # this run may be longer than the run that wrote the checkpoint
            self.scheduler.max_iters = self.max_iter
        if self.checkpointer.plan:
            self.rewrap()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the run, including running averages that a model keeps outside its `state_dict`."""
        return super().state_dict() | {"averages": averages(self.checkpointer.model)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        set_averages(self.checkpointer.model, state_dict.get("averages", {}))

    def _keep(self) -> None:
        """Writes a checkpoint of the last finished iteration, if there is one."""
        if self.iter > self.start_iter:
            self.checkpointer.save(f"model_{self.iter - 1:07d}", iteration=self.iter - 1)

    def rewrap(self) -> None:
        """Wraps the model in DistributedDataParallel again, after its parameters were replaced."""
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._trainer.model = self.distribute(model.module)

    def agree(self) -> None:
        """Combines, over all processes, the statistics of the norms and of the criterion."""
        pruning = getattr(self, "pruning", None)
        if pruning is not None:
            pruning.agree()
        else:
            average_norms(self.checkpointer.model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict[str, Any]:
        """Runs Detectron2's evaluation; first averages norms' statistics, so that all processes test one network."""
        average_norms(model)
        return super().test(cfg, model, evaluators)

    def evaluate(self) -> dict[str, Any]:
        """Tests the current model; after the last iteration, further calls return the results of the first call."""
        if self.iter < self.max_iter or self._last_tested != self.iter:
            self._last_eval_results = self.test(self.cfg, self.model)
            self._last_tested = self.iter
        return self._last_eval_results

    def draw(self, models: Mapping[str, nn.Module], path: str) -> None:
        """Draws the predictions of `models`, {name: model}, for a few images into a PNG file; does nothing by default.

        A task may override it.
        """

    def losses(self, model: nn.Module, data: Any) -> dict[str, torch.Tensor]:
        """Computes the losses of a model on a training batch, {name: scalar}; Detectron2's models return them."""
        return model(data)

    def batches(self) -> Iterator[Any]:
        """Returns an iterator over the batches of the next training steps."""
        return iter(self._trainer._data_loader_iter)

    def autocast(self) -> AbstractContextManager[None]:
        """Returns the context in which a training step runs the model."""
        return self._trainer.autocast()

    def example_inputs(self) -> Any:
        """Returns the input for counting FLOPs and measuring latency: one random image."""
        generator, channels = torch.Generator().manual_seed(0), len(self.cfg.MODEL.PIXEL_MEAN)
        return random_images(input_size(self.cfg), 1, generator, channels)

    def train(self) -> dict[str, Any] | None:
        """Trains the model; returns the results of the last evaluation, None if the run had no evaluation."""
        super().train()
        return getattr(self, "_last_eval_results", None)


def build_hook(name: str, cfg: CfgNode) -> HookBase:
    """Builds a trainer hook by its name in the registry `sirfp.hooks.HOOKS`.

    Raises:
        InputError: no hook has this name; the message lists the existing hooks.
    """
    return HOOKS.find(name, "SIRFP.HOOKS")(cfg)


def setup(args: argparse.Namespace, add_config: Configure | None = None) -> CfgNode:
    """Builds a checked, frozen config from the command line; imports the user's own code and registers data sets.

    Raises:
        InputError: the config has a mistake.
    """
    for code in getattr(args, "imports", ()):
        import_own(code)
    cfg = load_config(config_files(args), args.opts or (), add_config)
    if not args.num_gpus:
        cfg.MODEL.DEVICE = "cpu"
    if args.eval_only:
        cfg.SIRFP.TRIAL_DEVICE = ""  # nothing is pruned, and this machine may lack the device of the training run
    cfg.freeze()
    validate(cfg)
    register_data(cfg)
    if not (cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN):
        raise InputError(f"DATASETS.{'TEST' if args.eval_only else 'TRAIN'} names no data set; set it in the config")
    return cfg


def main(args: argparse.Namespace, trainer_class: type[Trainer], add_config: Configure | None = None) -> Any:
    """Trains, or evaluates with `--eval-only`; runs in each process.

    Returns:
        The results of the last evaluation, {task: {metric: value}}.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(launch.OneLine())
    cfg = setup(args, add_config)
    for name in cfg.DATASETS.TEST:  # otherwise the run would only fail at its first evaluation
        with reading_data([name]):
            DatasetCatalog.get(name)
    with nullcontext() if args.eval_only else hold_output_folder(cfg.OUTPUT_DIR, resume=args.resume):
        set_up(cfg, args)
        warn_of_unused(cfg)
        if args.eval_only:
            return evaluate(trainer_class, cfg, resume=args.resume)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        try:
            return trainer.train()
        except KeyboardInterrupt:
            launch.interrupted(trainer.iter, trainer.checkpointer)


def evaluate(trainer_class: type[Trainer], cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Evaluates MODEL.WEIGHTS, or with `resume` the last checkpoint, on DATASETS.TEST."""
    model = trainer_class.build_model(cfg)
    checkpointer = trainer_class.build_checkpointer(cfg, model)
    if not cfg.MODEL.WEIGHTS and not resume:
        untrained = "MODEL.WEIGHTS is empty: no run has trained the network that is evaluated; name a file, or give"
        logging.getLogger(__name__).warning("%s --resume for the last checkpoint in OUTPUT_DIR", untrained)
    with checkpointer.strictly():
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = trainer_class.test(cfg, use_channels_last(model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def run(trainer_class: type[Trainer], add_config: Configure | None = None, argv: Sequence[str] | None = None) -> None:
    """The main function of a `train_net.py`: reads the command line, starts processes, trains or evaluates.

    Args:
        trainer_class: the task's trainer.
        add_config: a function that adds the task's own config keys.
        argv: the command line; by default that of the program.
    """
    args = launch.argument_parser().parse_args(argv)
    with one_line_errors():
        launch.resolve_devices(args)
        cfg = setup(args, add_config)  # before processes are started, so that a mistake is reported only once
        trainer_class.check_data(cfg, (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    launch.start(main, args, trainer_class, add_config)
