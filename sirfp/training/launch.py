"""Starts the processes of a run, and ends all of them with a clear error message if one fails.

Processes run on GPUs (NCCL) or CPUs (gloo), on one machine or several. They are started by this module or by torchrun.
Detectron2's `launch` only supports one process per GPU. If a process dies, it prints the traceback of the parent
process instead of the reason.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from ..errors import InputError, one_line
from ..files.config_files import AddConfigFile
from ..files.own_code import add_import
from .checkpointer import Checkpointer

WRONG, FAULT, ALONE = 2, 1, 75
"""Exit codes: wrong input; any other error; a process that ended because another process had ended (never the exit code
of the whole run)."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""
GRACE = 5
"""Seconds after the end of one process until the others are killed. Chosen long enough for a process to notice the lost
connection and print a message, and short enough not to block the machine."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Error numbers of a disk that cannot store a file: disk full, quota exceeded, read-only, file too large."""
_PEER = re.compile(r"closed by peer|reset by peer|broken pipe|timed? ?out|socket|nccl|gloo", re.IGNORECASE)


class _InAnyOrder(argparse.ArgumentParser):
    """Reads options after KEY VALUE pairs too: `--resume` is often added to the end of an earlier command."""

    def parse_args(self, args=None, namespace=None):
        """As in argparse, whose positional `opts` takes all words after the first pair."""
        found = super().parse_args(args, namespace)
        late = next((2 * i for i, word in enumerate(found.opts[::2]) if word.startswith("--")), None)
        if late:
            pairs, rest = found.opts[:late], found.opts[late:]
            del found.opts
            found = self.parse_args(rest, found)
            found.opts = pairs + found.opts
        return found


def argument_parser() -> argparse.ArgumentParser:
    """Returns Detectron2's argument parser for a training script, with additional arguments for runs on CPUs."""
    detectron2 = default_argument_parser()
    parser = _InAnyOrder(
        parents=[detectron2], add_help=False, conflict_handler="resolve", epilog=detectron2.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--config-file", default="", metavar="FILE", action=AddConfigFile,
        help="path to config file; may be repeated, each later file overrides keys of the earlier ones",
    )  # fmt: skip
    parser.set_defaults(num_gpus=None, dist_url="auto")
    add_import(parser, "in every process")
    parser.add_argument(
        "--num-processes", type=int, default=0, metavar="N", help="train on CPUs, in N processes *per machine*"
    )
    parser.add_argument(
        "--timeout", type=float, default=30, metavar="MINUTES", help="how long processes wait for each other (30)"
    )
    return parser


def by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Returns True if torchrun, or a launcher that sets the same environment variables, has started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(environment)


def resolve_devices(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> None:
    """Fills in `num_gpus` (0 for CPUs) and `num_processes` per machine, and checks the arguments.

    Args:
        args: the arguments of `argument_parser`, changed in place.
        environment: the environment variables, which show whether torchrun has started this process.

    Raises:
        InputError: a number is out of range, or two arguments contradict each other.
    """
    gpus = torch.cuda.device_count()
    if args.num_processes < 0 or (args.num_gpus or 0) < 0 or args.num_machines < 1:
        raise InputError("--num-processes and --num-gpus must be at least 0, --num-machines at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise InputError(f"--machine-rank must lie in [0, {args.num_machines - 1}], got {args.machine_rank}")
    if not args.timeout > 0:
        raise InputError(f"--timeout must be more than 0 minutes, got {args.timeout}")
    if by_torchrun(environment):
        if args.num_processes or args.num_machines > 1:
            raise InputError("torchrun has started the processes: remove --num-processes and --num-machines")
        args.num_processes = int(environment.get("LOCAL_WORLD_SIZE", 1))
        if args.num_gpus is None:
            args.num_gpus = args.num_processes if gpus else 0
        if args.num_gpus not in (0, args.num_processes):
            raise InputError(
                f"--num-gpus {args.num_gpus}: torchrun has started {args.num_processes} processes on this machine; "
                "remove this option, or set it to 0 to train on CPUs"
            )
    elif args.num_processes:
        if args.num_gpus:
            raise InputError("--num-processes trains on CPUs: give --num-processes or --num-gpus, not both")
        args.num_gpus = 0
    else:
        if args.num_gpus is None:
            args.num_gpus = min(1, gpus)
        args.num_processes = args.num_gpus or 1
    if args.num_gpus > gpus:
        raise InputError(
            f"--num-gpus {args.num_gpus} is more than this machine has ({gpus}); --num-processes N trains on CPUs"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise InputError("--dist-url must be tcp://HOST:PORT for several machines, where HOST is the machine of rank 0")


def show_crashes() -> None:
    """Makes this process print the stack of each thread if a signal such as a segmentation fault ends it."""
    with suppress(AttributeError, OSError, RuntimeError, ValueError):  # standard error is closed or not a file
        if not faulthandler.is_enabled():
            faulthandler.enable()


def start(main: Callable[..., Any], args: argparse.Namespace, *more: Any) -> None:
    """Calls `main(args, *more)` in every process of a run and waits until all have ended.

    Args:
        main: the function to run; other processes must be able to import it from a module.
        args: the command line's arguments, completed by `resolve_devices`.
        *more: further arguments of `main`.

    Raises:
        SystemExit: the run has failed; the reason has been printed.
    """
    show_crashes()
    if by_torchrun():
        env = {name: int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("LOCAL_RANK", 0))}
        _take_part(main, args, more, env["RANK"], int(os.environ["WORLD_SIZE"]), env["LOCAL_RANK"], "env://")
    elif args.num_machines * args.num_processes == 1:
        with one_line_errors():
            main(args, *more)
    else:
        url = args.dist_url if args.dist_url != "auto" else f"tcp://127.0.0.1:{_free_port()}"
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # no warning for each ended process
        context = mp.start_processes(
            _spawned, (main, args, more, url), nprocs=args.num_processes, join=False, start_method="spawn"
        )
        try:
            while not context.join(grace_period=GRACE):
                pass
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            raise SystemExit(_explain(error, [process.exitcode for process in context.processes], args)) from None
        except KeyboardInterrupt:  # the other processes have received the signal too
            for process in context.processes:
                process.join(GRACE)
                process.kill()
            raise SystemExit(INTERRUPTED) from None


def _spawned(local_rank: int, main: Callable[..., Any], args: argparse.Namespace, more: tuple, url: str) -> None:
    show_crashes()
    rank = args.machine_rank * args.num_processes + local_rank
    _take_part(main, args, more, rank, args.num_machines * args.num_processes, local_rank, url)


def _take_part(
    main: Callable[..., Any], args: argparse.Namespace, more: tuple, rank: int, world: int, local_rank: int, url: str
) -> None:
    """Joins the process group of a run and calls `main` in this process."""
    with one_line_errors():
        if args.num_gpus:
            torch.cuda.set_device(local_rank)
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // args.num_processes))
        try:
            dist.init_process_group(
                "nccl" if args.num_gpus else "gloo",
                init_method=url,
                rank=rank,
                world_size=world,
                timeout=timedelta(minutes=args.timeout),
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"process {rank} of {world} cannot connect to the others at {url}: {reason}") from error
        comm.create_local_process_group(args.num_processes)
        comm.synchronize()
        main(args, *more)
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _explain(error: Exception, codes: list[int | None], args: argparse.Namespace) -> int:
    """Prints in one line why processes of this machine ended, unless a process has printed it; returns the exit code.

    Args:
        error: the error of `torch.multiprocessing`.
        codes: the exit codes of the processes, None for a process that is still running.
        args: the command line's arguments.
    """
    for said in (WRONG, INTERRUPTED):  # by the process itself
        if said in codes:
            return said
    by_signal = [(rank, -code) for rank, code in enumerate(codes) if code and code < 0 and -code != signal.SIGTERM]
    if not by_signal and isinstance(error, mp.ProcessExitedException) and error.signal_name:
        by_signal = [(error.error_index, signal.SIGTERM)]
    if by_signal:
        rank, number = by_signal[0]
        why = ", often because memory ran out" if number == signal.SIGKILL else ""
        line = f"process {rank} of {len(codes)} on this machine was ended by {signal.Signals(number).name}{why}"
    elif isinstance(error, mp.ProcessRaisedException):
        print(error, file=sys.stderr)
        return FAULT
    elif ALONE in codes:
        line = f"a process of the run has ended, or did not respond for {args.timeout:g} minutes"
    else:
        return next(code for code in codes if code)
    print(f"error: {line}; the others were stopped; --resume continues from the last checkpoint", file=sys.stderr)
    return FAULT


def in_one_line(error: BaseException) -> str:
    """Returns the message for wrong input, a full disk or a lost process; returns "" for all other errors."""
    if isinstance(error, InputError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" {error.filename}" if error.filename else ""
        return f"cannot write{where}: {error.strerror}; free space, then --resume continues from the last checkpoint"
    if _is_alone(error):
        reason = str(error).partition("\n")[0]
        return f"process {comm.get_rank()} lost the others ({reason}); --resume continues from the last checkpoint"
    return ""


def interrupted(iteration: int, checkpointer: Checkpointer) -> NoReturn:
    """Says, after Ctrl-C in training, where the run stopped and how it goes on.

    Args:
        iteration: the iteration that was interrupted.
        checkpointer: the run's checkpointer.

    Raises:
        SystemExit: always, with the exit code `INTERRUPTED`.
    """
    if comm.is_main_process():
        last = Path(checkpointer.get_checkpoint_file()).name
        goes_on = f"the last checkpoint is {last}: --resume goes on from it" if last else "there is no checkpoint yet"
        print(f"interrupted at iteration {iteration}; {goes_on}", file=sys.stderr)
    raise SystemExit(INTERRUPTED)


def _is_alone(error: BaseException) -> bool:
    """Returns True if an error means that another process of the run has ended or does not respond."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return several and isinstance(error, RuntimeError) and bool(_PEER.search(str(error)))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """While active, prints errors of `in_one_line` as one line on standard error and ends the process.

    The exit code is WRONG; for a lost process it is FAULT or ALONE. In a run of several processes, only the first
    process that fails prints its line.
    """
    try:
        yield
    except KeyboardInterrupt:  # outside training, see `interrupted`
        if comm.is_main_process():
            print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        line = in_one_line(error)
        if not line:
            raise
        alone = _is_alone(error)
        if alone and not by_torchrun():
            raise SystemExit(ALONE) from None  # the parent process prints the reason
        if _speaks_first():
            print(f"error: {line}", file=sys.stderr)
        raise SystemExit(FAULT if alone else WRONG) from None


def _speaks_first() -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return os.environ.get("RANK", "0") == "0"
    try:
        return dist.distributed_c10d._get_default_store().add("sirfp/said", 1) == 1
    except RuntimeError:  # the first process has ended, and the store with it
        return False


class OneLine(logging.Filter):
    """A log filter that replaces the traceback of an error by the message of `in_one_line`, if it has one."""

    def filter(self, record: logging.LogRecord) -> bool:
        line = in_one_line(record.exc_info[1]) if record.exc_info and record.exc_info[1] else ""
        if line:
            record.msg, record.args, record.exc_info = f"Stopped: {line}", (), None
        return True
