"""Where runs run: as processes of this machine, or as jobs of a cluster through submitit."""

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

PATIENCE = 10.0
"""Seconds that a process has for ending when it is told to."""


class Run(Protocol):
    """A run that was started."""

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def stop(self) -> None:
        """Ends it, with all that it has started."""


class Runner(Protocol):
    """What starts runs."""

    def start(self, arguments: list[str], console: Path, slot: int) -> Run:
        """Starts Python with arguments; what it says is added to a file."""


class Processes:
    """Runs as child processes, which share the cores and the GPUs of this machine.

    Args:
        jobs: how many at a time.
    """

    def __init__(self, jobs: int):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = max(1, cores // jobs)
        self.gpus = _gpus() if jobs > 1 else []

    def start(self, arguments: list[str], console: Path, slot: int) -> Run:
        """See `Runner`."""
        environment = dict(os.environ)
        most = environment.get("OMP_NUM_THREADS", "")
        environment["OMP_NUM_THREADS"] = str(min(self.threads, int(most)) if most.isdigit() else self.threads)
        environment.setdefault("OMP_WAIT_POLICY", "passive")
        if len(self.gpus) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return Process(arguments, console, environment)


class Process:
    """A child process in a session of its own, which ends with this one."""

    def __init__(self, arguments: list[str], console: Path, environment: Mapping[str, str] | None = None):
        with open(console, "ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # so that Ctrl-C comes to the study alone, which then ends its runs
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def ended(self) -> int | None:
        """See `Run`."""
        return self.process.poll()

    def stop(self) -> None:
        """See `Run`."""
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except (ProcessLookupError, PermissionError):
                self.process.wait()
            except subprocess.TimeoutExpired:
                continue
            return


class Cluster:
    """Runs as jobs that submitit hands to a cluster.

    Args:
        kind: "slurm", or "local" for this machine as a stand-in.
        folder: where submitit keeps its files, on a disk that all machines share.
        options: submitit's parameters of a job, e.g. {"timeout_min": 600, "slurm_partition": "gpu"}.

    Raises:
        InputError: submitit is not installed, there is no such cluster, or it takes no such option.
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
        return ClusterJob(self.executor.submit(_attend, arguments, str(console)))


class ClusterJob:
    """A job of submitit."""

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


def _attend(arguments: list[str], console: str) -> int:
    """Runs Python on a machine of the cluster and waits for it."""
    run = Process(arguments, Path(console))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while run.ended() is None:
            time.sleep(0.2)
        return run.ended()
    finally:
        run.stop()


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _end_with_parent() -> None:
    """Has the kernel end this process when the study is killed hard, so that no run is left behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
