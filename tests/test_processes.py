"""Several processes (gloo): they equal one process, start in every way, and end with a clear message if one fails."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from marks import slow_but
from scripts import ROOT, loaded

from sirfp import engine, processes
from sirfp.errors import InputError
from sirfp.training import launch

pytestmark = pytest.mark.usefixtures("undrawn", "found_once", "untried")

SCRIPT = [sys.executable, str(Path(tiny_run.__file__))]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT[1]]


def run(folder, *flags, fault="", monkeypatch=None) -> int:
    """A run that this process starts; its exit code."""
    if fault:
        monkeypatch.setenv("TINY_FAULT", fault)
    try:
        engine.run(tiny_run.SharedTrainer, None, tiny_run.arguments(folder, *flags))
    except SystemExit as end:
        return end.code
    return 0


def kept(folder, rank=0):
    return torch.load(folder / f"process{rank}.pth", weights_only=True)


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, forks):
    """The folder of a run in two processes."""
    folder = tmp_path_factory.mktemp("pair")
    with forks():
        assert run(folder, "--num-processes", "2") == 0
    return folder


def test_two_processes_equal_one(pair, tmp_path):
    """Eight images in one process, or four in each of two, give the same plan and the same statistics.

    Sums over processes are rounded otherwise than sums in one. Training carries that on, and what a cut solves for
    enlarges it, so after the first cut the bound is wider.
    """
    assert run(tmp_path, "--num-gpus", "0") == 0
    whole, first, second = kept(tmp_path), kept(pair, 0), kept(pair, 1)
    assert (pair / "plan.json").read_text() == (tmp_path / "plan.json").read_text()
    apart = [
        [float((two[name] - matrix).abs().max() / matrix.abs().max()) for name, matrix in one.items()]
        for one, two in zip(whole["seen"], first["seen"], strict=True)
    ]
    dense, *pruned = filter(None, apart)
    assert len(dense) == 6 and max(dense) < 1e-5 and max(map(max, pruned)) < 1e-3, apart
    for kind in ("weights", "momenta", "seen"):
        same(first[kind], second[kind])
    same(first["weights"], whole["weights"], rtol=5e-3, atol=5e-4)


def test_two_processes_learn_from_one_teacher(forking, tmp_path):
    taught = ("MODEL.TEACHER.WEIGHT", "0.5", "SIRFP.STEPS", "1", "SOLVER.MAX_ITER", "14")  # one pruning, after 8
    assert run(tmp_path / "two", "--num-processes", "2", *taught) == 0
    assert run(tmp_path / "one", "--num-gpus", "0", *taught) == 0
    whole, first, second = kept(tmp_path / "one"), kept(tmp_path / "two", 0), kept(tmp_path / "two", 1)
    same(first["weights"], second["weights"])
    same(first["weights"], whole["weights"], rtol=5e-3, atol=5e-4)
    teachers = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["trainer"]["hooks"]["Teach"]["weights"]
        for name in ("one", "two")
    ]
    same(*teachers, rtol=5e-3, atol=5e-4)


def test_two_processes_measure_the_curves_of_one(forking, tmp_path):
    """Each process measures on its own images, and the mean over all of them decides the widths."""
    once = ("SIRFP.WIDTHS", "curves", "SIRFP.STEPS", "1", "SOLVER.MAX_ITER", "10", "SIRFP.KEEP_FLOPS", "0.7")
    for name, *flags in (("two", "--num-processes", "2"), ("one", "--num-gpus", "0")):
        assert run(tmp_path / name, *flags, *once) == 0
    assert (tmp_path / "two/plan.json").read_text() == (tmp_path / "one/plan.json").read_text()
    same(kept(tmp_path / "two", 0)["weights"], kept(tmp_path / "two", 1)["weights"])
    two, one = (json.loads((tmp_path / name / "curves.json").read_text())["prunings"] for name in ("two", "one"))
    for ours, theirs in zip(two[0]["cuts"][0], one[0]["cuts"][0], strict=True):
        assert ours["group"] == theirs["group"] and ours["widths"] == theirs["widths"]
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=0.01, abs=1e-7)
    files = sorted(file.name for file in (tmp_path / "two").glob("curve_cache*"))
    assert files == ["curve_cache.json", "curve_cache.json.rank1"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork_as_torchrun(folder) -> list[int]:
    """Forks two processes with the environment variables of torchrun, which would start new ones; their exit codes."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in "01":
        child = os.fork()
        if not child:
            code = 1
            try:
                os.environ.update(common, RANK=rank, LOCAL_RANK=rank)
                code = run(folder)
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


WAYS = ["torchrun's environment", "torchrun", "spawned", "machines", "resume"]


@pytest.mark.parametrize("how", slow_but(WAYS, "torchrun's environment"))
def test_every_way_to_start_them_is_the_same(pair, tmp_path, how, monkeypatch, capfd):
    if how == "torchrun's environment":
        assert fork_as_torchrun(tmp_path) == [0, 0]
    elif how == "torchrun":
        subprocess.run([*TORCHRUN, "OUTPUT_DIR", str(tmp_path)], check=True, capture_output=True, timeout=300)
    elif how == "spawned":
        assert run(tmp_path, "--num-processes", "2") == 0
    elif how == "machines":
        url = f"tcp://127.0.0.1:{free_port()}"
        flags = ["--num-machines", "2", "--dist-url", url, "--num-processes", "1", "--machine-rank"]
        threads = {**os.environ, "OMP_NUM_THREADS": "1"}  # as --num-processes 2 sets: more sum in another order
        both = [subprocess.Popen([*SCRIPT, *flags, str(i), "OUTPUT_DIR", str(tmp_path)], env=threads) for i in range(2)]
        assert [machine.wait(300) for machine in both] == [0, 0]
    else:  # cut off between the two prunings
        assert run(tmp_path, "--num-processes", "2", fault="kill:0:11", monkeypatch=monkeypatch) == 1
        assert "SIGKILL" in capfd.readouterr().err
        monkeypatch.delenv("TINY_FAULT")
        assert run(tmp_path, "--num-processes", "2", "--resume") == 0
    assert (tmp_path / "plan.json").read_text() == (pair / "plan.json").read_text()
    for rank in range(2):
        same(kept(tmp_path, rank)["weights"], kept(pair, rank)["weights"])


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("kill:1:9", 1, "process 1 of 2 on this machine was ended by SIGKILL"),
        ("wrong:1:9", 2, "process 1 has read something wrong"),
        pytest.param("wrong:0:9", 2, "process 0 has read something wrong", marks=pytest.mark.slow),
        pytest.param("crash:1:9", 1, "ValueError: a fault of the program", marks=pytest.mark.slow),
        pytest.param("freeze:1:9", 1, "did not respond for 0.1 minutes", marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_ends_the_run_with_a_word(forking, tmp_path, fault, code, says, monkeypatch, capfd):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of earlier tests write to streams that are closed
    flags = ["--timeout", "0.1"] if "freeze" in fault else []
    assert run(tmp_path, "--num-processes", "2", *flags, fault=fault, monkeypatch=monkeypatch) == code
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ") or says in line]
    assert len(said) == 1 and says in said[0], said
    assert (tmp_path / "model_0000008.pth").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "says"), [("kill:1:9", "SIGKILL"), ("wrong:1:9", "error: process 1 has read some")])
def test_under_torchrun_too(tmp_path, fault, says):
    """The message names the process that failed first; what that process printed comes before it."""
    command = [*TORCHRUN, "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"TINY_FAULT": fault}, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and says in done.stderr and len(said) <= 1, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "detection", "classification"])
def test_every_project_trains_prunes_and_evaluates(tmp_path, task, monkeypatch):
    script = str(ROOT / "projects" / task / "train_net.py")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with loaded("benchmarks/random_kills.py") as kills:
        kills.small_scenes(tmp_path)
        arguments = [str(argument) for argument in kills.arguments(task, tmp_path / "out")]
    arguments += ["MODEL.TEACHER.WEIGHT", "0.5"]
    assert arguments.pop(0) == "--num-gpus" and arguments.pop(0) == "0"
    subprocess.run([sys.executable, script, "--num-processes", "2", *arguments], check=True, timeout=600)
    rows = json.loads((tmp_path / "out/pruning.json").read_text())
    name = {"segmentation": "sem_seg/mIoU", "detection": "bbox/AP", "classification": "classification/loss"}[task]
    for start in (TORCHRUN[:-1], [sys.executable]):
        command = [*start, script, "--eval-only", "--resume", *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        assert f"{rows['fine-tuned']['metrics'][name]:.4f}" in done.stdout


def settled(*flags, torchrun=None, gpus=0, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    args = launch.argument_parser().parse_args(list(flags))
    environment = {"RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": torchrun, "WORLD_SIZE": "9"}
    launch.resolve_devices(args, environment if torchrun else {})
    return args.num_gpus, args.num_processes


@pytest.mark.parametrize(
    ("flags", "torchrun", "gpus", "expected"),
    [
        ([], None, 0, (0, 1)),
        ([], None, 8, (1, 1)),
        (["--num-gpus", "8"], None, 8, (8, 8)),
        (["--num-gpus", "0"], None, 8, (0, 1)),
        (["--num-processes", "2"], None, 8, (0, 2)),
        ([], "4", 8, (4, 4)),
        ([], "2", 0, (0, 2)),
        (["--num-gpus", "0"], "2", 8, (0, 2)),
    ],
)
def test_how_many_processes_there_are(flags, torchrun, gpus, expected, monkeypatch):
    assert settled(*flags, torchrun=torchrun, gpus=gpus, monkeypatch=monkeypatch) == expected


@pytest.mark.parametrize(
    ("flags", "torchrun", "gpus", "says"),
    [
        (["--num-gpus", "2"], None, 1, "more than this machine has (1); --num-processes N"),
        (["--num-gpus", "2", "--num-processes", "2"], None, 2, "not both"),
        (["--num-gpus", "2"], "4", 8, "torchrun has started 4"),
        ([], "4", 2, "more than this machine has (2)"),
        (["--num-processes", "2"], "2", 0, "remove --num-processes"),
        (["--num-machines", "2"], None, 1, "tcp://HOST:PORT"),
        (["--num-machines", "2", "--machine-rank", "2"], None, 1, "must lie in [0, 1]"),
        (["--num-processes", "-1"], None, 1, "at least 0"),
        (["--timeout", "0"], None, 1, "more than 0 minutes"),
    ],
)
def test_what_does_not_go_together_is_said(flags, torchrun, gpus, says, monkeypatch):
    with pytest.raises(InputError) as error:
        settled(*flags, torchrun=torchrun, gpus=gpus, monkeypatch=monkeypatch)
    assert says in str(error.value)


def test_norms_are_averaged_without_gradients(monkeypatch):
    """Running statistics that require gradients, such as parameters, can be set in place only outside autograd."""
    norm = torch.nn.BatchNorm2d(4)
    for buffer in (norm.running_mean, norm.running_var):
        buffer.requires_grad_()
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "broadcast", lambda first, src: first.sub_(2))  # the first has 2 less
    monkeypatch.setattr(processes.dist, "all_reduce", lambda rest: None)
    processes.average_norms(norm)
    assert norm.running_mean.tolist() == [-1] * 4 and norm.running_var.tolist() == [0] * 4
    assert norm.running_mean.grad_fn is None and norm.running_mean.requires_grad
