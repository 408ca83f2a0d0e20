"""Every mistake in a user's input gives one line and exit code 2, before work starts."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from bad_inputs import COMMANDS, EXPORTS, STUDIES, STUDY, TRAINING
from command_files import make_files
from detectron2.data import DatasetCatalog, MetadataCatalog
from scripts import ROOT, loaded
from tiny_tasks import command, make_data

from sirfp import engine
from sirfp.cli import main
from sirfp.data import registration
from sirfp.exporting import missing_packages


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def projects():
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(loaded(f"projects/{name}/train_net.py"))
            for name in ("segmentation", "detection", "classification")
        }


def filled(words: list[str], **folders: Path) -> list[str]:
    """The words with `F/x` as the file x of folder F."""
    return [f"{folders[w[0]]}{w[1:]}" if w[1:2] == "/" and w[0] in folders else w for w in words]


def said(capsys) -> str:
    """The one line on standard error."""
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err, err
    return err


def test_there_are_enough():
    assert len(COMMANDS) + len(EXPORTS) + len(STUDIES) + len(TRAINING) >= 150


@pytest.mark.parametrize("case", COMMANDS)
def test_a_command(case, files, data, tmp_path, capsys):
    is_refused(*COMMANDS[case], files, data, tmp_path, capsys)


@pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")
@pytest.mark.parametrize("case", EXPORTS)
def test_an_export(case, files, data, tmp_path, capsys):
    is_refused(*EXPORTS[case], files, data, tmp_path, capsys)


def is_refused(argv: list[str], expected: str, files: Path, data: Path, tmp_path: Path, capsys) -> None:
    """A command prints the expected line and leaves no file behind."""
    if any(word.startswith("/proc") for word in argv) and not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    before = files_in(files, data)
    outputs = {"OUT": "out.safetensors", "OUT.onnx": "out.onnx"}
    argv = [str(tmp_path / outputs[word]) if word in outputs else word for word in argv]
    code = main(filled(argv, F=files, D=data))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ") and expected in err, err
    assert list(tmp_path.iterdir()) == [] and files_in(files, data) == before


def files_in(*folders: Path) -> list[Path]:
    """All files in folders but compiled code, which Python writes beside code of the user's."""
    return sorted(path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.mark.parametrize("case", STUDIES)
def test_a_study(case, tmp_path, capsys, monkeypatch):
    text, expected = STUDIES[case]
    monkeypatch.chdir(ROOT)
    (tmp_path / "own.yaml").write_text(text)
    assert main(["study", str(tmp_path / "own.yaml"), "--list", "--folder", str(tmp_path / "out")]) == 2
    assert expected in said(capsys) and not (tmp_path / "out").exists()


def test_the_study_that_is_made_wrong_is_right(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "own.yaml").write_text(STUDY)
    assert main(["study", str(tmp_path / "own.yaml"), "--list", "--folder", str(tmp_path / "out")]) == 0


@pytest.fixture
def forget_data():
    """Data sets that one test registers are unknown to the next."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        if name in registration._registered and "bad-input" in name:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("case", TRAINING)
def test_training(case, projects, tmp_path, capsys, monkeypatch, forget_data):
    row = TRAINING[case]
    if any(word.startswith("/proc") for word in row.options) and not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    root = make_data(tmp_path / "data")
    row.damage(root)
    before = {file: file.stat().st_size for file in root.rglob("*") if file.is_file()}
    module = projects[row.project]
    trainer = next(getattr(module, name) for name in dir(module) if name.endswith("Trainer") and name != "Trainer")
    configure = getattr(module, f"add_{row.project}_config", None)
    flags = [word for word in row.options if word.startswith("--")]
    given = command(row.project, root, f"bad-input-{list(TRAINING).index(case)}")
    options = filled(row.options, D=root)
    if flags and flags[0] in ("--config-file", "--num-gpus"):
        given[given.index(flags[0]) + 1] = options[1]
    else:
        given = [*flags, *given, *(word for word in options if word not in flags)]
    steps = []
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr(engine, "set_up", lambda cfg, args: Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True))
    monkeypatch.setattr(engine.MixedPrecisionTrainer, "run_step", lambda self: steps.append(1))
    with pytest.raises(SystemExit) as ended:
        engine.run(trainer, configure, given)
    assert ended.value.code == 2
    assert row.says in said(capsys)
    assert not steps, "no iteration was begun"
    assert {file: file.stat().st_size for file in before} == before, "what was there is as it was"


@pytest.mark.slow  # that libraries say nothing in a new process is tested by tests/training/test_calm.py too
def test_a_script_as_a_program(tmp_path):
    """In a new process there is one line, apart from what libraries log."""
    root = make_data(tmp_path / "data")
    (root / "images/0.png").write_bytes(b"")
    argv = [sys.executable, "projects/segmentation/train_net.py", *command("segmentation", root, "own")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=ROOT, env=environment)
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("W")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "images/0.png" in lines[0]
