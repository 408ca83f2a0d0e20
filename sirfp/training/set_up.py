"""Sets up a process of a training run: logs, the seed, and a copy of the config in the output folder."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import warnings
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..files.whole import whole_file
from ..reporting.provenance import versions

LOGGERS = ("fvcore", "detectron2", "sirfp")
CONFIG = "config.yaml"
_handlers: dict[str, list[logging.Handler]] = {}
"""For each logger, the handlers that the last run of this process added."""


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Sets up logging to the console and to log.txt, writes the config, and seeds random numbers.

    Detectron2's `default_setup` also prints the whole config, several hundred lines. It lies in the output folder.

    Args:
        cfg: the whole config.
        args: the command line, see `sirfp.training.launch.argument_parser`.
    """
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    _log_to(folder, rank)
    logger = logging.getLogger("sirfp")
    logger.info(versions())
    logger.info("Command: %s", shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    logger.info("Process %d of %d", rank, comm.get_world_size())
    if comm.is_main_process():
        with whole_file(folder / CONFIG) as beside:
            beside.write_text(cfg.dump())
        logger.info("The whole config: %s", folder / CONFIG)
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")  # of Detectron2's anchors
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _log_to(folder: Path, rank: int) -> None:
    """Logs to the console and to log.txt in the folder, and no longer to those of an earlier run of this process.

    Details for debugging, such as the traceback of an error that is told in one line, go into the file only.
    """
    setup_logger.cache_clear()  # it adds handlers only at the first call for a folder
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in _handlers.pop(name, []):
            logger.removeHandler(handler)
        others = list(logger.handlers)
        # colours would be escape sequences in a file
        setup_logger(str(folder), distributed_rank=rank, name=name, color=sys.stdout.isatty())
        _handlers[name] = [handler for handler in logger.handlers if handler not in others]
        for handler in _handlers[name]:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.INFO)
