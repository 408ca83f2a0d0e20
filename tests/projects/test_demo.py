"""The demo: its trained networks, what it says, and a whole run of it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
from scripts import ROOT, loaded

from sirfp.data.scenes import make_scenes
from sirfp.engine import evaluate, setup
from sirfp.errors import InputError

LEAST = {"segmentation": 75.0, "detection": 50.0, "classification": 95.0}
"""The least metric of a trained network on `HELD_OUT` validation scenes, in per cent."""
HELD_OUT = 40


@pytest.fixture
def demo():
    with loaded("projects/demo/demo.py") as script:
        yield script
    for name in ("networks", "progress"):
        sys.modules.pop(name, None)


@pytest.fixture
def changed(demo, tmp_path, monkeypatch):
    """The demo with a copy of its networks, one of which has another last byte."""
    folder = tmp_path / "networks"
    shutil.copytree(demo.networks.NETWORKS, folder)
    file = folder / "segmentation.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(demo.networks.shipped, "__defaults__", (folder,))
    return demo


@pytest.mark.parametrize("task", LEAST)
def test_the_trained_networks_are_those_of_the_record(demo, task):
    file = demo.networks.shipped(demo.TASKS[task])
    record = demo.networks.record()
    known = record[task]
    assert set(record) == set(LEAST) == {path.stem for path in demo.networks.NETWORKS.glob("*.safetensors")}
    assert demo.networks.sha256(file) == known["sha256"] and file.with_suffix(".log").is_file()
    assert known["metric"] == demo.TASKS[task].metric and known["dense"] > LEAST[task]
    assert file.stat().st_size < 10e6


def test_a_changed_network_is_refused_in_one_line(changed, monkeypatch, capsys):
    with pytest.raises(InputError, match="its SHA-256 is not the one in networks.json"):
        changed.networks.shipped(changed.TASKS["segmentation"])
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    with pytest.raises(SystemExit) as ended:
        changed.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_a_missing_network_is_refused(demo, tmp_path):
    (tmp_path / "networks.json").write_text("{}")
    with pytest.raises(InputError, match=r"there is no trained network .*make demo TASK=classification SCRATCH=1"):
        demo.networks.shipped(demo.TASKS["classification"], tmp_path)


@pytest.mark.parametrize("task", LEAST)
def test_the_trained_networks_know_held_out_scenes(demo, task, tmp_path, monkeypatch, clean_catalogs):
    make_scenes(tmp_path / "scenes", train=1, val=HELD_OUT)
    for name in ("SIRFP_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.setenv(name, str(tmp_path))
    known = demo.TASKS[task]
    options = {"MODEL.WEIGHTS": demo.networks.shipped(known), "OUTPUT_DIR": tmp_path, "DATALOADER.NUM_WORKERS": 0}
    words = [str(word) for option in options.items() for word in option]
    with loaded(f"projects/{task}/train_net.py") as script:
        trainer = demo.trainer_of(script)
        args = SimpleNamespace(config_file=str(known.pruning), opts=words, num_gpus=0, eval_only=True)
        results = evaluate(trainer, setup(args))
    kind, _, name = known.metric.partition("/")
    assert results[kind][name] > LEAST[task]


class Stopped(Exception):
    """Ends a run of the demo before it prunes."""


@pytest.mark.parametrize(("option", "trained"), [("--ship", 1), ("--scratch", 2)])
def test_shipping_trains_the_named_network_only(demo, option, trained, tmp_path, monkeypatch):
    """From nothing, the network that the backbone starts from is trained too; to ship one, the shipped one is taken."""
    ran = []
    monkeypatch.chdir(tmp_path)
    for module in (demo, demo.networks):
        monkeypatch.setattr(module, "make_scenes", lambda *_, **__: SimpleNamespace(root=tmp_path))
    monkeypatch.setattr(demo.networks, "run_script", lambda task, file, options, **_: ran.append((task, options)))
    monkeypatch.setattr(demo.networks, "write_weights", lambda checkpoint, file: file.absolute())
    monkeypatch.setattr(demo, "prune", stop)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--task", "segmentation", option])
    with pytest.raises(Stopped):
        demo.main()
    assert [task.project for task, _ in ran] == ["classification", "segmentation"][-trained:]
    start = ran[-1][1]["MODEL.TIMM.WEIGHTS"]
    assert (start == demo.networks.shipped(demo.TASKS["classification"])) == (option == "--ship")
    assert option == "--ship" or start == tmp_path / ran[0][1]["OUTPUT_DIR"] / "dense.safetensors"


def stop(*_) -> None:
    raise Stopped


@pytest.fixture
def finished(tmp_path):
    """The output folder of a run of the demo."""
    row = {"metrics": {"sem_seg/mIoU": 80.0}, "flops": 1000, "params": 100, "latency": 0.004}
    rows = {"dense": row, "pruned": row | {"flops": 400}, "fine-tuned": row | {"flops": 400, "latency": 0.002}}
    (tmp_path / "pruning.json").write_text(json.dumps(rows))
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    return tmp_path


def test_the_last_line_says_where_the_results_are_and_what_is_next(demo, finished, capsys):
    demo.say(demo.TASKS["segmentation"], finished, 80.5)
    said = capsys.readouterr().out
    last = said.rstrip("\n").rpartition("\n")[2]
    picture, table, report = (finished / name for name in ("predictions.png", "pruning.md", "report.html"))
    assert last.startswith(f"Picture: {picture}; table: {table}; report: {report}. Next: make demo TASK=detection")
    assert report.is_file() and "2.00 times as fast" in said and "40.0% of the FLOPs" in said
    assert "for as many, the dense network has 80.5" in said and "CONTROL=1" in said


def test_what_the_iterations_would_give_the_dense_network_is_asked_for_where_it_is_not_known(demo, finished):
    notes = demo.remarks(demo.TASKS["segmentation"], demo.rows(finished), 100, None)
    assert notes[1].endswith("What they would give the dense network: make demo TASK=segmentation CONTROL=1")


def test_progress_says_how_much_time_is_left(demo, capsys):
    cfg = demo.networks.config(demo.TASKS["segmentation"])
    shown = demo.ShowProgress(cfg, demo.COSTS["segmentation"])
    done = [shown.done(iteration) for iteration in range(cfg.SOLVER.MAX_ITER + 1)]
    assert done == sorted(set(done)) and done[-1] < shown.total
    for i, amount in enumerate(done):
        shown.show(amount, "first" if i < 5 else "second")
    lines = capsys.readouterr().err.splitlines()
    assert 5 < len(lines) < 14 and lines[0].endswith("first") and lines[-1].endswith("second")
    assert all(re.match(r"\[ *\d+%, \d+ s, about \d+ s left\]", line) for line in lines[1:])


def test_the_makefile_runs_the_demo_of_each_task(demo):
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert all(f"$(if $({name}),--{name.lower()})" in recipe for name in ("SCRATCH", "CONTROL"))
    assert "projects/demo/demo.py --task $(TASK)" in recipe
    assert demo.parser().parse_args(["--task", "classification", "--scratch", "--control"]).scratch
