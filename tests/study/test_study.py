"""A study runs exactly the unfinished runs, after any interruption."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
import time

import pytest

from sirfp.criteria import CRITERIA
from sirfp.files.lock import locked
from sirfp.study import grid
from sirfp.study.grid import config_texts
from sirfp.study.run_folders import RunFolders
from sirfp.study.scheduler import ended_by


def test_dense_training_is_shared_and_done_once(finished):
    bench, calls = finished, finished.started
    dense = [call for call in calls if "-dense-" in call["out"]]
    assert [call["options"]["SEED"] for call in dense] in (["1", "3"], ["3", "1"])
    assert len(calls) == 2 + 2 * 2 * 2
    cell = next(c for c in calls if "-sirfp-0.5-seed3" in c["out"])["options"]
    assert cell["SOLVER.MAX_ITER"] == "12" and cell["SIRFP.STEPS"] == "2" and cell["SIRFP.KEEP_FLOPS"] == "0.5"
    assert "seed3" in cell["MODEL.WEIGHTS"] and cell["SIRFP.SEED"] == cell["SEED"] == "3"
    assert bench.run() == 0 and bench.calls() == [], "all is done"
    left = {file.name for file in (bench.root / "out/cells").glob("*/*.pth")}
    assert not left and len(list((bench.root / "out/dense").glob("*/model_final.pth"))) == 2
    assert "done in" in bench.said


def test_other_settings_find_no_old_result_and_the_old_ones_find_it_again(bench):
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1]}
    bench.run()
    bench.calls()
    bench.content["pruning_overrides"] = {"SIRFP.EMA": 0.5}
    bench.run()
    (call,) = bench.calls()
    assert call["options"]["SIRFP.EMA"] == "0.5" and "sirfp" in call["out"], "the dense run is another's too"
    (bench.root / "base.yaml").write_text("SOLVER:\n  BASE_LR: 0.2\n")
    bench.run()
    assert len(bench.calls()) == 2, "a config, too, decides on a result"
    (bench.root / "base.yaml").write_text("SOLVER:\n  BASE_LR: 0.1\n")
    del bench.content["pruning_overrides"]
    bench.run()
    assert bench.calls() == []


LISTS = ("[a.yaml, b.yaml]", '["a.yaml","b.yaml"]', "\n  - a.yaml\n  - b.yaml", "[a.yaml,\n  b.yaml]")


@pytest.mark.parametrize("bases", ["a.yaml", "'a.yaml'", *LISTS])
def test_all_bases_of_a_config_decide_on_a_result(tmp_path, bases):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"SEED: {ord(name)}\n")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {bases}  # the network\nVERSION: 2\n")
    texts = config_texts(tmp_path / "own.yaml")[1:]
    assert texts == ["SEED: 97\n", "SEED: 98\n"][: 1 + ("b.yaml" in bases)]


def test_an_option_s_new_key_finds_the_result_of_its_old_key(bench):
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1]}
    bench.content["pruning_overrides"] = {"SIRFP.EMA": 0.5, "SIRFP.ACCUMULATE_STRIDE": 2}
    bench.run()
    bench.calls()
    bench.content["pruning_overrides"] = {"SIRFP.OPTIONS.EMA": 0.5, "SIRFP.OPTIONS.STRIDE": 2}
    bench.run()
    assert bench.calls() == [], "the settings are the same"
    bench.content["pruning_overrides"]["SIRFP.OPTIONS.EMA"] = 0.6
    bench.run()
    (call,) = bench.calls()
    assert call["options"]["SIRFP.OPTIONS.EMA"] == "0.6" and call["options"]["SIRFP.OPTIONS.STRIDE"] == "2"


def test_the_names_of_runs_are_those_of_before_there_were_options(bench):
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1], "pruning_overrides": {"SIRFP.EMA": 0.5}}
    (cell,) = grid.load(bench.file).cells
    assert cell.fingerprint[:8] == "006f1e22"


OWN_CRITERION = """
from sirfp.criteria import CRITERIA, Criterion

@CRITERIA.register("own_of_a_study")
class Own(Criterion):
    def __init__(self, model, groups, *, seed=0, my_option: int = 1):
        super().__init__(model, groups, seed=seed)

    def scores(self):
        return {}
"""


def test_a_criterion_of_one_s_own_with_an_option(bench, capsys):
    from sirfp.criteria import CRITERIA

    (bench.root / "own_of_a_study.py").write_text(OWN_CRITERION)
    script = bench.root / "train_net.py"
    script.write_text(script.read_text().replace('"random": 30.0', '"own_of_a_study": 30.0'))
    own = {"name": "own", "criterion": "own_of_a_study", "overrides": {"SIRFP.OPTIONS.MY_OPTION": 3}}
    bench.content |= {"criteria": [own], "budgets": [0.5], "seeds": [1]}
    given = ["--import", str(bench.root / "own_of_a_study.py")]
    try:
        assert bench.run(*given) == 0
        told = bench.calls()[-1]["options"]
        assert told["SIRFP.OPTIONS.MY_OPTION"] == "3" and told["--import"] == given[1], "the run imports it too"
        own["overrides"] = {"SIRFP.OPTIONS.MY_OPTION": 0.5}
        assert bench.run(*given) == 2
        assert "SIRFP.OPTIONS.MY_OPTION must be a whole number, got 0.5" in capsys.readouterr().err
        assert not bench.calls()
    finally:
        del CRITERIA["own_of_a_study"]


def test_a_failure_is_kept_and_shown_and_stops_nothing(bench, capsys):
    bench.content["seeds"] = [1]
    (bench.root / "fail").write_text("magnitude-0.5-seed1")
    assert bench.run() == 1
    said = capsys.readouterr()
    assert "1 of 5 runs failed" in said.err and "RuntimeError: <b>no luck</b>" in said.out
    states = {run["name"]: run["state"] for run in bench.results()["runs"]}
    assert list(states.values()).count("done") == 4 and states["task/net/magnitude/0.5/seed1"] == "failed"
    page = (bench.root / "out/report.html").read_text()
    assert "&lt;b&gt;no luck&lt;/b&gt;" in page and "<b>no luck" not in page
    bench.calls()
    assert bench.run() == 1 and bench.calls() == [], "a failure is not tried again unasked"
    (bench.root / "fail").unlink()
    assert bench.run("--retry") == 0
    assert [call["out"][:28] for call in bench.calls()] == ["task-net-magnitude-0.5-seed1"]


def test_a_crash_is_told_with_its_signal_and_iteration(bench, capsys):
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1]}
    (bench.root / "crash").write_text("sirfp")
    assert bench.run() == 1
    cause = bench.results()["runs"][1]["cause"]
    assert cause == "crashed (segmentation fault, signal 11) after iteration 6"  # half of 12, as its metrics say
    assert ended_by(9, 0) == "ended (killed, signal 9), perhaps out of memory, before its first report"
    assert ended_by(15, 3) == "ended (terminated, signal 15) after iteration 2"


def test_a_dense_failure_leaves_out_only_what_needs_it(bench):
    bench.content["budgets"] = [0.5]
    (bench.root / "fail").write_text("dense-seed3")
    bench.run()
    assert all("seed1" in call["out"] or "dense" in call["out"] for call in bench.calls())
    (bench.root / "fail").unlink()
    assert bench.run("--retry") == 0 and len(bench.calls()) == 1 + 2


def test_a_run_without_results_has_failed(bench, capsys):
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1]}
    (bench.root / "leave").write_text("sirfp")
    bench.run()
    assert "left no result" in bench.results()["runs"][1]["cause"]
    bench.content["tasks"]["task"]["metric"] = "task/scor"
    assert bench.run() == 2
    assert "no metric task/scor (did you mean task/score?)" in capsys.readouterr().err
    bench.content["overrides"] = {"SOLVER.BASE_LR": 0.3}
    assert bench.run() == 1 and "no metric task/scor (did" in bench.results()["runs"][0]["cause"]


def test_values_over_seeds(finished):
    bench = finished
    rows = {(row["criterion"], row["budget"]): row for row in bench.results()["rows"]}
    assert list(rows)[0] == ("dense", None) and rows["dense", None]["mean"] == 62.0  # of 61 and 63
    row = rows["sirfp", 0.5]  # 50 + 10 * 0.5 + 2 * seed: 57 and 61
    assert row["mean"] == 59.0 and row["std"] == pytest.approx(8**0.5)
    assert row["change"] == -3.0 and row["change_std"] == pytest.approx(2**0.5)  # -4 and -2
    assert (row["flops"], row["flops_kept"], row["params_kept"]) == (500, 0.5, 0.45)
    assert (row["cut"], row["latency"], row["speedup"], row["seeds"]) == (5.0, 0.01, 2.0, [1, 3])
    with open(bench.root / "out/results.csv") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 5 and float(written[1]["std"]) == pytest.approx(8**0.5) and written[1]["seeds"] == "1 3"
    line = next(line for line in (bench.root / "out/results.md").read_text().splitlines() if line.startswith("| sirfp"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    costs = ["5e-07", "50.0%", "4.5e-05", "45.0%", "10.0", "20.0", "2.00×"]
    assert cells == ["sirfp", "50.0%", "5.00", "59.00 ± 2.83", "-3.00", *costs, "2"]
    assert float(written[1]["latency_ms"]) == pytest.approx(10) and float(written[1]["flops_kept_percent"]) == 50
    assert float(written[1]["gflops"]) == pytest.approx(5e-7) and not {"latency", "flops"} & set(written[1])


def test_a_criterion_has_seeds_hooks_and_settings_of_its_own(bench):
    bench.content["criteria"] = [
        "sirfp",
        {"name": "other", "criterion": "magnitude", "hooks": ["Some"], "overrides": {"SIRFP.LR_FACTOR": 0.5},
         "seeds": [7], "steps": 3},
    ]  # fmt: skip
    study = grid.load(bench.file)
    others = [job for job in study.cells if job.criterion == "other"]
    assert {job.seed for job in others} == {7} and {job.needs.name for job in others} == {"task/net/dense/seed7"}
    options = dict(others[0].options)
    assert options["SIRFP.CRITERION"] == "magnitude" and options["SIRFP.LR_FACTOR"] == "0.5"
    assert options["SIRFP.HOOKS"].startswith("['Accumulate', 'Some', 'Report'")
    assert options["SIRFP.STEPS"] == "3" and options["SOLVER.MAX_ITER"] == "12"  # as long as those of two steps


def test_a_control_trains_on_for_as_long_as_a_pruning(bench):
    bench.content |= {"control": True, "criteria": ["sirfp"], "budgets": [0.5], "pruning_overrides": {"SIRFP.EMA": 0.5}}
    assert bench.run() == 0
    controls = [call["options"] for call in bench.calls() if "-unpruned-" in call["out"]]
    assert [options["SEED"] for options in controls] == ["1", "3"] and "SIRFP.EMA" not in controls[0]
    assert controls[0]["SOLVER.MAX_ITER"] == "12" and controls[0]["SIRFP.HOOKS"] == "[]"
    row = bench.results()["rows"][1]
    assert (row["criterion"], row["mean"], row["change"], row["flops_kept"]) == ("unpruned", 67.0, 5.0, 1.0)
    page = (bench.root / "out/report.html").read_text()
    assert page.count('<line class="dense"') == 2 and page.count('class="best"') == 0, "there is one criterion only"


def test_list_and_only(bench, capsys):
    assert bench.run("--list", "--only", "*/sirfp/0.75/*", "--json") == 0
    names = [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert names == [
        "task/net/dense/seed1", "task/net/sirfp/0.75/seed1", "task/net/dense/seed3", "task/net/sirfp/0.75/seed3",
    ]  # fmt: skip
    assert bench.run("--list", "--only", "magnitude/0.75/seed3", "--only", "*/sirfp/0.75/*seed1", "--json") == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)["runs"]] == [
        *names[:2], "task/net/dense/seed3", "task/net/magnitude/0.75/seed3",
    ]  # fmt: skip
    assert not (bench.root / "out").exists()
    assert bench.run("--only", "sirfp", "--only", "nothing") == 2
    assert "--only nothing: no run of that name" in capsys.readouterr().err
    assert bench.run("--only", "nothing") == 2 and "no run of that name" in capsys.readouterr().err
    assert bench.run("--report") == 2


def test_one_study_at_a_time(bench, capsys):
    with locked(bench.root / "out", "study"):
        assert bench.run() == 2
        assert f"another study is running in {bench.root / 'out'} (process {os.getpid()}" in capsys.readouterr().err
    (bench.root / "out/lock").write_text("process 4194303 on here\n")  # one that was killed
    with locked(bench.root / "out", "study") as before:
        assert before == 4194303


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_started_again_it_goes_on(bench, how):
    bench.content |= {"criteria": ["sirfp"], "seeds": [1]}
    (bench.root / "hang").write_text("0.75")
    study = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(bench.run()))  # imports nothing
    study.start()
    half = lambda: [p for p in (bench.root / "out").glob("cells/*0.75*/checkpoint")]  # noqa: E731
    deadline = time.monotonic() + 60
    while not half() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(study.pid, how)
    study.join(20)
    assert study.exitcode == (-9 if how == signal.SIGKILL else 130)
    assert [call["from"] for call in bench.calls()] == [False, False, False]
    (bench.root / "hang").unlink()
    assert bench.run() == 0
    (call,) = bench.calls()
    assert "0.75" in call["out"] and call["from"], "it goes on from its checkpoint"
    assert {run["state"] for run in bench.results()["runs"]} == {"done"}


def test_no_run_is_left_behind(bench):
    from sirfp.study.runner import Process

    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    code += "print('up', flush=True); time.sleep(60)"
    process = Process(["-c", code], bench.root / "said.txt")
    while "up" not in (bench.root / "said.txt").read_text():
        time.sleep(0.02)
    assert process.ended() is None
    process.stop()
    assert process.ended() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):  # the whole group has gone, once the system has collected it
        for _ in range(1000):
            os.killpg(process.process.pid, 0)
            time.sleep(0.02)


def test_a_cluster_of_this_machine(bench):
    pytest.importorskip("submitit", reason="submitit is not installed (extra: cluster)")
    bench.content |= {"criteria": ["sirfp"], "budgets": [0.5], "seeds": [1]}
    assert bench.run("--cluster", "local", "--cluster-option", "timeout_min=1", "--only", "dense") == 0
    assert len(bench.calls()) == 1
    assert bench.run("--cluster", "local", "--cluster-option", "timeout=1") == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"critera": []}, "the study has no key 'critera' (did you mean criteria?"),
        ({"criteria": ["sirpf"]}, "there is no criterion 'sirpf'; known are"),
        ({"criteria": ["sirfp", "sirfp"]}, "tasks.task.criteria has sirfp twice"),
        ({"budgets": [1.5]}, "a budget is a share of FLOPs between 0 and 1, got 1.5"),
        ({"budgets": 0.5}, "tasks.task.budgets must be a list, got 0.5"),
        ({"seeds": [-1]}, "a whole number of at least 0, got -1"),
        ({"iterations": {"dense": 3, "accumulate": 2}}, "tasks.task.iterations lacks finetune"),
        ({"overrides": {"SEED": 3}}, "SEED is set by the study's seeds"),
        ({"overrides": {"SIRFP.EDGE_WIGHT": 3}}, "did you mean SIRFP.EDGE_WEIGHT"),
        ({"overrides": {"SOLVER": {"BASE_LR": 3}}}, "write SOLVER.BASE_LR in full"),
        ({"tasks": {"x": {"metric": "m", "models": {"n": "dense.yaml"}}}}, "no project 'x'"),
        ({"tasks": {"x": {"script": "train_net.py", "metric": "m", "models": {"n": "dens.yaml"}}}},
         "there is no file dens.yaml (did you mean dense.yaml"),
        ({"tasks": {"x": {"script": "train_net.py", "models": {"n": "dense.yaml"}}}}, "tasks.x lacks metric"),
        ({"tasks": {"../x": {}}}, "write letters, digits"),
        ({"tasks": []}, "tasks must be a block"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(bench, capsys, change, says):
    bench.content |= change
    assert bench.run("--list") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and "study.yaml" in lines[0]


def test_the_studies_of_the_tree_are_whole(bench):
    from pathlib import Path

    from sirfp.criteria import CRITERIA

    for file in (Path(__file__).parents[2] / "studies").glob("*.yaml"):
        text = file.read_text()
        if all(name in CRITERIA for name in ("taylor", "dcfp")) or "taylor" not in text:
            study = grid.load(file)
            assert {job.task for job in study.cells} and RunFolders(study.folder).state(study.jobs[0])


def test_a_study_names_code_of_its_own(bench):
    """The code is part of a run's name: a changed criterion is another run."""
    code = bench.root / "named_by_a_study.py"
    code.write_text(
        "from sirfp.criteria import CRITERIA\nfrom sirfp.criteria.magnitude import Magnitude\n\n\n"
        "@CRITERIA.register('of_a_study')\nclass OfAStudy(Magnitude):\n    pass\n"
    )
    script = bench.root / "train_net.py"
    script.write_text(script.read_text().replace('"random": 30.0', '"of_a_study": 30.0'))
    bench.content |= {"imports": ["named_by_a_study.py"], "criteria": ["of_a_study"], "budgets": [0.5], "seeds": [1]}
    try:
        assert bench.run() == 0
        calls = bench.calls()
        assert len(calls) == 2 and all(call["options"]["--import"] == str(code) for call in calls)
        before = [job.fingerprint for job in grid.load(bench.file).jobs]
        code.write_text(code.read_text() + "\n# changed\n")
        assert set(before).isdisjoint(job.fingerprint for job in grid.load(bench.file).jobs)
    finally:
        del CRITERIA["of_a_study"]


def test_code_that_a_study_names_must_exist(bench, capsys):
    bench.content["imports"] = ["nowhere.py"]
    assert bench.run() == 2
    said = capsys.readouterr().err
    assert "imports: " in said and "nowhere.py: there is no such file" in said and "--import" not in said
