"""Starts runs: as processes of this machine, or as jobs of a cluster through submitit."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError

STOP_SECONDS = 10.0
"""Seconds between SIGTERM and SIGKILL, in which a run can shut down by itself."""
SPINS = "3000"
"""GOMP_SPINCOUNT: how often a waiting thread of a run looks again before it releases its core, some 0.1 ms. The default
of GNU's OpenMP, 300,000, slows training down several times on a machine that does other work; 0 slows it down on an
idle one."""


class Run(Protocol):
    """A started run."""

    def ended(self) -> int | None:
        """The exit status, negative for a signal; None while the run is active."""

    def stop(self) -> None:
        """Ends the run and all processes that it has started."""


class Runner(Protocol):
    """Starts runs."""

    def start(self, arguments: list[str], console: Path, slot: int) -> Run:
        """Starts Python with arguments.

        Args:
            arguments: the command line after `python`.
            console: file to which the output is appended.
            slot: index of the run among the concurrent runs, from 0; selects the GPU.
        """


class Processes:
    """Starts runs as child processes, which share the CPU cores and the GPUs of this machine.

    Args:
        jobs: number of concurrent runs.
    """

    def __init__(self, jobs: int):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, cores // jobs)
        self.gpus = _gpus() if jobs > 1 else []

    def start(self, arguments: list[str], console: Path, slot: int) -> Run:
        """See `Runner`."""
        environment = dict(os.environ)
        limit = environment.get("OMP_NUM_THREADS", "")
        environment["OMP_NUM_THREADS"] = str(min(self.threads, int(limit)) if limit.isdigit() else self.threads)
        if "OMP_WAIT_POLICY" not in environment:
            environment.setdefault("GOMP_SPINCOUNT", SPINS)
        if len(self.gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return Process(arguments, console, environment)


class Process:
    """A child process in a separate session; it ends when this process ends."""

    def __init__(self, arguments: list[str], console: Path, environment: Mapping[str, str] | None = None):
        with open(console, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C then reaches only the study, which stops its runs
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def ended(self) -> int | None:
        """See `Run`."""
        return self.process.poll()

    def stop(self) -> None:
        """See `Run`."""
        for number, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except (ProcessLookupError, PermissionError):
                self.process.wait()
            except subprocess.TimeoutExpired:
                continue
            return


class Cluster:
    """Starts runs as cluster jobs through submitit.

    Args:
        kind: "slurm", or "local" to imitate a cluster on this machine.
        folder: folder of submitit's files, on a disk that all machines share.
        options: submitit's parameters of a job, e.g. {"timeout_min": 600, "slurm_partition": "gpu"}.

    Raises:
        InputError: submitit is not installed, the cluster is not available, or an option is not valid.
    """

    def __init__(self, kind: str, folder: Path, options: Mapping[str, Any]):
        try:
            import submitit
        except ImportError:
            raise InputError("--cluster needs submitit: pip install 'sirfp[cluster]'") from None
        try:
            self.executor = submitit.AutoExecutor(folder=str(folder), cluster=kind)
            self.executor.update_parameters(**{"timeout_min": 24 * 60, "name": "sirfp", **options})
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise InputError(f"--cluster {kind}: {' '.join(str(error).split())}") from None

    def start(self, arguments: list[str], console: Path, slot: int) -> Run:
        """See `Runner`."""
        return ClusterJob(self.executor.submit(_run_and_wait, arguments, str(console)))


class ClusterJob:
    """A job submitted through submitit."""

    def __init__(self, job: Any):
        self.job = job

    def ended(self) -> int | None:
        """See `Run`."""
        if not self.job.done():
            return None
        return 1 if self.job.exception() is not None else self.job.result()

    def stop(self) -> None:
        """See `Run`."""
        self.job.cancel(check=False)


def _run_and_wait(arguments: list[str], console: str) -> int:
    """Runs Python on a machine of the cluster; waits for its exit status and returns it."""
    run = Process(arguments, Path(console))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while (status := run.ended()) is None:
            time.sleep(0.2)
        return status
    finally:
        run.stop()


def _gpus() -> list[str]:
    """The GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _end_with_parent() -> None:
    """Asks the kernel to send SIGTERM to this process when the study is killed, so that no run outlives the study."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
