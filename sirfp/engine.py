"""The training run of all tasks: Detectron2's trainer on any device, with hooks by name, and a script's main.

A project's `train_net.py` subclasses `Trainer` (its data, its evaluator) and ends in

    if __name__ == "__main__":
        run(MyTrainer, add_my_config)
"""

from __future__ import annotations

import argparse
import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from .config.checks import validate
from .config.data import register_data
from .config.reading import input_size, load_config
from .data.descriptions import advice
from .data.stream import TrainingStream, detection_stream
from .errors import InputError, near, one_line
from .files.config_files import config_files
from .files.own_code import import_own
from .hooks import HOOKS, BestCheckpoint, PeriodicCheckpoint
from .models.deformable import provide_deformable
from .network.detectron import averages, set_averages
from .network.forward import random_images
from .processes import average_norms
from .training import launch
from .training.checkpointer import Checkpointer
from .training.launch import one_line_errors
from .training.lr_schedule import PhasedPolyLR
from .training.output_folder import hold_output_folder
from .training.step import MixedPrecisionTrainer, autocast_dtype, use_channels_last
from .training.sync_norm import replace_sync_norms

Configure = Callable[[CfgNode], None]


class Trainer(DefaultTrainer):
    """Detectron2's `DefaultTrainer` for any task, on a processor or on GPUs.

    `model`, `optimizer`, `scheduler` and `checkpointer` are looked up at each step, so a hook may change or
    replace them inside a run.

    Args:
        cfg: the whole config; with `SOLVER.AMP.ENABLED` a step runs in 16 bits where the device gains by it.
    """

    def __init__(self, cfg: CfgNode):
        super(DefaultTrainer, self).__init__()  # as DefaultTrainer's own, but for the step and the checkpointer
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        if cfg.SOLVER.IMS_PER_BATCH % comm.get_world_size():
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be shared evenly by "
                f"{comm.get_world_size()} processes; set it to a multiple of them"
            )
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
        """Checks the data sets of a run against the config, once, before processes are started; here nothing."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model that the config describes.

        Raises:
            InputError: it describes none.
        """
        provide_deformable()
        try:
            return super().build_model(cfg)
        except InputError:
            raise
        except (KeyError, ValueError, AssertionError) as error:
            logging.getLogger(__name__).debug("The model cannot be built", exc_info=True)
            reason = str(error.args[0] if error.args else error) or type(error).__name__
            raise InputError(f"the model cannot be built from this config: {reason}") from error

    @staticmethod
    def distribute(model: nn.Module) -> nn.Module:
        """Wraps a model for the processes of this run; one alone needs no wrapper."""
        on_gpu = next(model.parameters()).is_cuda
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return create_ddp_model(
            model,
            broadcast_buffers=False,
            find_unused_parameters=True,  # as levels of a pyramid that a detector's head does not look at
            device_ids=[comm.get_local_rank()] if on_gpu else None,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingStream:
        """Augmented training batches as Detectron2 makes them."""
        return detection_stream(cfg)

    def run_step(self) -> None:
        """One iteration; what it draws at random hangs on the seed and the iteration alone."""
        if isinstance(self._trainer.data_loader, TrainingStream):
            self._trainer.data_loader.seed_step(self.iter)
        super().run_step()

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """Detectron2's schedules, DeepLab's `WarmupPolyLR`, and `PhasedPolyLR`, which begins anew at each pruning."""
        if cfg.SOLVER.LR_SCHEDULER_NAME == "PhasedPolyLR":
            return PhasedPolyLR.from_config(cfg, optimizer)
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_checkpointer(cls, cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> Checkpointer:
        """What writes and reads training checkpoints, in OUTPUT_DIR."""
        return Checkpointer(model, cfg.OUTPUT_DIR, **checkpointables)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, with those that `SIRFP.HOOKS` names.

        Ours come after the schedule and before checkpoints and evaluation, which thus see what ours did.
        """
        ret = super().build_hooks()
        after = 1 + max(i for i, hook in enumerate(ret) if isinstance(hook, hooks.LRScheduler))
        ret[after:after] = [build_hook(name, self.cfg) for name in self.cfg.SIRFP.HOOKS]
        ret = [hook for hook in ret if not isinstance(hook, hooks.PeriodicCheckpointer)]
        before = next(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
        ret[before] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        ret.insert(before, PeriodicCheckpoint(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))
        if self.cfg.TEST.BEST_METRIC and comm.is_main_process():
            after = 1 + max(i for i, hook in enumerate(ret) if isinstance(hook, hooks.EvalHook))
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, self.cfg.TEST.BEST_METRIC)
            ret.insert(after, best)
        return ret

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the last checkpoint in OUTPUT_DIR, or starts from MODEL.WEIGHTS."""
        super().resume_or_load(resume)
        if hasattr(self.scheduler, "max_iters"):  # a checkpoint holds its own run's; a run may be made longer
            self.scheduler.max_iters = self.max_iter
        if self.checkpointer.plan:
            self.rewrap()

    def state_dict(self) -> dict[str, Any]:
        """The run's state, with what models keep beside their weights."""
        return super().state_dict() | {"averages": averages(self.checkpointer.model)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        set_averages(self.checkpointer.model, state_dict.get("averages", {}))

    def _keep(self) -> None:
        """Writes a checkpoint of the iterations that are done, where any are."""
        if self.iter > self.start_iter:
            self.checkpointer.save(f"model_{self.iter - 1:07d}", iteration=self.iter - 1)

    def rewrap(self) -> None:
        """Wraps the model for the processes of this run anew, after its parameters were replaced."""
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self._trainer.model = self.distribute(model.module)

    def agree(self) -> None:
        """Gives every process what all have seen of the data: norms' statistics, and those for the next pruning."""
        pruning = getattr(self, "pruning", None)
        if pruning is not None:
            pruning.agree()
        else:
            average_norms(self.checkpointer.model)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None) -> dict[str, Any]:
        """Detectron2's evaluation, of one network on all processes."""
        average_norms(model)
        return super().test(cfg, model, evaluators)

    def evaluate(self) -> dict[str, Any]:
        """Tests the model as it is; once it is trained, only the first time."""
        if self.iter < self.max_iter or self._last_tested != self.iter:
            self._last_eval_results = self.test(self.cfg, self.model)
            self._last_tested = self.iter
        return self._last_eval_results

    def draw(self, models: Mapping[str, nn.Module], path: str) -> None:
        """Draws what several models predict for a few images, where a task has a way to; here nothing."""

    def losses(self, model: nn.Module, data: Any) -> dict[str, torch.Tensor]:
        """Losses of a model on a training batch; Detectron2's models return them."""
        return model(data)

    def batches(self) -> Iterator[Any]:
        """What the model is called with in the training steps that come next."""
        return iter(self._trainer._data_loader_iter)

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which a training step runs the model."""
        return self._trainer.autocast()

    def example_inputs(self) -> Any:
        """What the model is called with, as FLOPs are counted and latency is measured on: one random image."""
        return random_images(input_size(self.cfg), 1, torch.Generator().manual_seed(0))

    def train(self) -> dict[str, Any] | None:
        """Runs training; returns the results of the last evaluation, if there was one."""
        super().train()
        return getattr(self, "_last_eval_results", None)


def build_hook(name: str, cfg: CfgNode) -> HookBase:
    """Builds a trainer hook from the registry `sirfp.hooks.HOOKS`.

    Raises:
        InputError: there is none of that name; lists the known.
    """
    known = [key for key, _ in HOOKS]
    if name not in known:
        listed = ", ".join(sorted(known))
        raise InputError(f"SIRFP.HOOKS: there is no hook {name!r}; known are {listed}{near(name, known)}")
    return HOOKS.get(name)(cfg)


@contextmanager
def reading_data(names: Sequence[str]) -> Iterator[None]:
    """Turns what Detectron2's loaders say where a data set is not there into an InputError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, AssertionError) as error:
        reason = one_line(error)
        raise InputError(
            f"data set {' or '.join(map(repr, names))} cannot be read: {reason}; its place is below the folder "
            f"that the environment variable DETECTRON2_DATASETS names{advice(names)}"
        ) from error


def setup(args: argparse.Namespace, add_config: Configure | None = None) -> CfgNode:
    """From the command line to a checked, frozen config, with the user's own code imported and data sets registered.

    Raises:
        InputError: something in the config is wrong.
    """
    for code in getattr(args, "imports", ()):
        import_own(code)
    cfg = load_config(config_files(args), args.opts or (), add_config)
    if not args.num_gpus:
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    validate(cfg)
    register_data(cfg)
    if not (cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN):
        raise InputError(f"DATASETS.{'TEST' if args.eval_only else 'TRAIN'} names no data set; set it in the config")
    return cfg


def main(args: argparse.Namespace, trainer_class: type[Trainer], add_config: Configure | None = None) -> Any:
    """Trains, or evaluates with `--eval-only`; one process of a run.

    Returns:
        The results of the last evaluation, {task: {metric: value}}.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(launch.OneLine())
    cfg = setup(args, add_config)
    for name in cfg.DATASETS.TEST:  # a mistake there should not wait for the first evaluation
        with reading_data([name]):
            DatasetCatalog.get(name)
    with nullcontext() if args.eval_only else hold_output_folder(cfg.OUTPUT_DIR, resume=args.resume):
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sirfp")
        if args.eval_only:
            return evaluate(trainer_class, cfg, resume=args.resume)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def evaluate(trainer_class: type[Trainer], cfg: CfgNode, *, resume: bool = False) -> dict[str, Any]:
    """Evaluates the weights in MODEL.WEIGHTS, or with `resume` the last checkpoint, on DATASETS.TEST."""
    model = trainer_class.build_model(cfg)
    checkpointer = trainer_class.build_checkpointer(cfg, model)
    with checkpointer.strictly():
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = trainer_class.test(cfg, use_channels_last(model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def run(trainer_class: type[Trainer], add_config: Configure | None = None, argv: Sequence[str] | None = None) -> None:
    """The whole of a `train_net.py`: reads the command line and trains or evaluates, in as many processes as asked.

    Args:
        trainer_class: the task's trainer.
        add_config: adds the task's own config keys.
        argv: the command line; the program's own by default.
    """
    args = launch.argument_parser().parse_args(argv)
    with one_line_errors():
        launch.resolve_devices(args)
        cfg = setup(args, add_config)  # once before processes are started
        trainer_class.check_data(cfg, (*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    launch.start(main, args, trainer_class, add_config)
