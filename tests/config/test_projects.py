"""Config keys that projects and a user's own code add."""

from __future__ import annotations

import sys

import pytest
from detectron2.config import CfgNode

from sirfp.config import load_config, projects, register_config
from sirfp.errors import InputError
from sirfp.files.own_code import import_own


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Has a test's registrations end with it."""
    monkeypatch.setattr(projects, "ALWAYS", [])
    yield
    projects.PROJECTS.pop("depth", None)


def add_depth(cfg):
    cfg.MODEL.DEPTH = CfgNode()
    cfg.MODEL.DEPTH.BINS = 64


def write(path, text):
    path.write_text(f"{text}\nVERSION: 2\n")
    return path


def test_configs_of_a_project_have_its_keys_and_no_others_do(tmp_path):
    register_config("depth")(add_depth)
    write(tmp_path / "base.yaml", "PROJECT: depth")
    file = write(tmp_path / "a.yaml", "_BASE_: base.yaml\nMODEL:\n  DEPTH:\n    BINS: 8")
    cfg = load_config(file)
    assert (cfg.MODEL.DEPTH.BINS, cfg.PROJECT) == (8, "depth")
    assert load_config("", ["PROJECT", "depth"]).MODEL.DEPTH.BINS == 64
    assert "DEPTH" not in load_config("").MODEL
    with pytest.raises(InputError, match="no config key MODEL.DEPTH.BIN .did you mean MODEL.DEPTH.BINS"):
        load_config(file, ["MODEL.DEPTH.BIN", "8"])


def test_a_trainers_own_keys_name_their_project_in_what_it_writes(tmp_path):
    register_config("depth")(add_depth)
    cfg = load_config("", [], add_depth)
    write(tmp_path / "config.yaml", cfg.dump())
    assert load_config(tmp_path / "config.yaml").MODEL.DEPTH.BINS == 64


def test_keys_of_every_config():
    register_config()(lambda cfg: setattr(cfg.SIRFP, "NOTE", "as it is"))
    assert load_config("", ["SIRFP.NOTE", "changed"]).SIRFP.NOTE == "changed"


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_projects_of_this_checkout_are_found_by_name(task, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    cfg = load_config("", ["PROJECT", task])
    assert ("CLASSIFIER" in cfg.MODEL, "GSRL" in cfg.SOLVER) == (task == "classification", task == "segmentation")


def test_every_config_of_a_project_with_keys_of_its_own_names_it():
    found = 0
    for task in ("segmentation", "classification"):
        for file in projects.CHECKOUT.glob(f"{task}/configs/*/*.yaml"):
            if file.parent.name != "base":
                assert CfgNode.load_yaml_with_base(str(file)).get("PROJECT") == task, file
                found += 1
    assert found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("PROJECT: segmentatoin", "'segmentatoin' is not imported.*did you mean segmentation"),
        ("PROJECT: ../../elsewhere", "PROJECT must be a name"),
        ("PROJECT: [segmentation]", "PROJECT must be a name"),
        ("MODEL:\n  MONOCULAR:\n    BINS: 8", "no config key MODEL.MONOCULAR.*; keys of a project need PROJECT"),
    ],
)
def test_what_is_not_known_is_named(text, what, tmp_path):
    with pytest.raises(InputError, match=what):
        load_config(write(tmp_path / "a.yaml", text))


def test_a_config_runs_no_code_that_lies_beside_it(tmp_path):
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth/__init__.py").write_text("raise SystemExit('was run')")
    (tmp_path / "train_net.py").write_text("raise SystemExit('was run')")
    with pytest.raises(InputError, match="use --import FILE"):
        load_config(write(tmp_path / "a.yaml", "PROJECT: depth"))


def test_two_projects_of_one_name_and_a_function_that_fails():
    register_config("depth")(add_depth)
    register_config("depth")(add_depth)
    with pytest.raises(ValueError, match="'depth' is registered already"):
        register_config("depth")(lambda cfg: None)
    with pytest.raises(InputError, match="which adds config keys, raised KeyError: 'NOTHING'"):
        load_config("", [], lambda cfg: cfg["NOTHING"])


def test_a_package_is_imported_from_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for root in ("here", "there"):
        (tmp_path / root / "a_users_package").mkdir(parents=True)
        (tmp_path / root / "a_users_package/__init__.py").write_text("")
    import_own(str(tmp_path / "here/a_users_package"))
    import_own(str(tmp_path / "here/a_users_package/"))
    with pytest.raises(InputError, match="was imported before, from .*here"):
        import_own(str(tmp_path / "there/a_users_package"))
    del sys.modules["a_users_package"]


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = set(sys.modules)
    for folder in ("here", "there", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_users_file.py").write_text(f"RUNS = [{folder!r}]\n")
        import_own(str(tmp_path / folder / "a_users_file.py"))
    added = [name for name in sys.modules if name not in known and name.endswith("a_users_file")]
    assert sorted(sys.modules.pop(name).RUNS[0] for name in added) == ["elsewhere", "here", "there"]


def test_a_mistake_in_a_config_imports_no_project(tmp_path, monkeypatch):
    """Only a run's whole config.yaml is looked up by its keys."""
    monkeypatch.setattr(projects, "_import_project", pytest.fail)
    monkeypatch.setattr(projects, "PROJECTS", {})
    file = tmp_path / "mistake.yaml"
    file.write_text("INPUT: {COLOUR_JITTER: 0.1}\n")
    with pytest.raises(InputError, match="there is no config key INPUT.COLOUR_JITTER"):
        load_config(file)
