"""A pruned file records its model, so that commands need no flags; flags override the record."""

from __future__ import annotations

import json
from argparse import Namespace
from importlib.util import find_spec

import pytest
import timm
import torch
from command_files import NETWORK, SEGMENTOR, SMALL, make_files
from safetensors.torch import save_file
from timm.data import resolve_data_config

import sirfp
from sirfp.checkpoint import Origin, read, read_origin
from sirfp.checkpoint.origin import ORIGIN_KEY, PREPROCESSING
from sirfp.checkpoint.pruned import PLAN_KEY
from sirfp.cli import main
from sirfp.commands.recorded import complete

pytestmark = pytest.mark.usefixtures("found_again")
MAGNITUDE = ["--criterion", "magnitude", "--keep-flops", "0.6"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def small(files):
    """A pruned network of 7 classes, on images of 64 x 64 pixels."""
    file = files / "recorded.safetensors"
    assert main(["prune", *NETWORK, *MAGNITUDE, "--weights", str(files / "dense.pth"), "-o", str(file)]) == 0
    return file


def run(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def recording(small, origin, file):
    """A copy of a pruned file with another record."""
    plan, state = read(small)
    save_file(state, str(file), metadata={PLAN_KEY: plan.to_json(), ORIGIN_KEY: origin})
    return file


def words(**given):
    names = ("timm", "config_file", "zoo", "size", "num_classes")
    return Namespace(**(dict.fromkeys(names) | given))


def test_no_command_needs_flags_for_a_recorded_network(small, capsys):
    origin = read_origin(small)
    assert (origin.timm, origin.num_classes, origin.size, origin.colours) == ("test_resnet", 7, (64, 64), "RGB")
    assert len(origin.preprocessing["mean"]) == 3 and origin.preprocessing["input_size"] == (3, 64, 64)
    assert Origin.from_json(origin.to_json()) == origin
    with_flags = run(capsys, "report", small, *NETWORK)
    alone = run(capsys, "report", small)
    assert alone["size"] == [64, 64] and alone["model"] == "timm test_resnet, 7 classes"
    assert alone["flops"]["dense"] == with_flags["networks"][0]["flops"]
    timed = run(capsys, "report", small, "--latency", "--repeats", 1, "--warmup", 0)
    assert [row["flops"] for row in timed["networks"]] == [row["flops"] for row in with_flags["networks"]]
    assert run(capsys, "verify", small)["equal"]


@pytest.mark.skipif(find_spec("onnxscript") is None, reason="the extra export is not installed")
def test_an_export_needs_no_flags_for_a_recorded_network(small, tmp_path, capsys, monkeypatch):
    """It gets the network, its preprocessing and the size; tests/exporting writes files."""
    seen = []

    def export(graph, path, size, **_):
        seen.append((graph, size))
        raise sirfp.InputError("the exporter was reached")

    monkeypatch.setattr("sirfp.exporting.export", export)
    assert main(["export", str(small), "-o", str(tmp_path / "small.onnx")]) == 2
    assert capsys.readouterr().err.endswith("error: the exporter was reached\n")
    ((graph, size),) = seen
    model = timm.create_model("test_resnet", num_classes=7)
    plan = sirfp.load(small, model)
    values = torch.randint(0, 256, (1, 3, 64, 64)).float()
    mean, std = (255 * torch.tensor(read_origin(small).preprocessing[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(graph(values)[0], model.eval()((values - mean) / std))
    assert size == (64, 64) and plan.params[1] == sum(p.numel() for p in model.parameters())


def test_flags_override_the_record(small, capsys):
    flops = run(capsys, "report", small)["flops"]["dense"]
    larger = run(capsys, "report", small, "--size", 128, 128)
    assert larger["size"] == [128, 128] and larger["networks"][0]["flops"] > 3.5 * flops
    assert main(["verify", str(small), "--num-classes", "9"]) == 2
    assert "leave out --num-classes" in capsys.readouterr().err
    assert main(["verify", str(small), "--timm", "test_vit"]) == 2
    assert "is for another model" in capsys.readouterr().err
    args, _, preprocessing = complete(words(timm="test_vit"), [], str(small))
    assert (args.size, args.num_classes, preprocessing) == (None, None, {}), "the record is of another network"
    args, *_ = complete(words(timm="test_resnet"), [], str(small))
    assert (args.size, args.num_classes) == ((64, 64), 7), "of the same one, it says the rest"


def test_a_config_is_recorded_with_its_pairs(tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    weights = ["MODEL.WEIGHTS", ""]
    assert main(["prune", *SEGMENTOR, *SMALL, *weights, *MAGNITUDE, "-o", str(small)]) == 0
    origin = read_origin(small)
    assert origin.config_files == (SEGMENTOR[1],) and origin.opts == tuple(SMALL) and origin.colours == "RGB"
    assert run(capsys, "verify", small)["equal"]


def test_a_config_is_found_beside_the_file(small, tmp_path, monkeypatch):
    """A run writes `pruned.safetensors` beside its `config.yaml`."""
    origin = Origin(config_files=("config.yaml",), opts=("A", "1"), size=(32, 32))
    out = tmp_path / "out"
    out.mkdir()
    file = recording(small, origin.to_json(), out / "pruned.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sirfp.InputError, match="records the config config.yaml, which is missing here"):
        complete(words(), [], str(file))
    for folder in (tmp_path, out):  # the one beside the file comes first
        (folder / "config.yaml").touch()
        args, opts, _ = complete(words(), ["A", "2"], str(file))
        assert args.config_file == str(folder / "config.yaml").replace(f"{tmp_path}/config", "config")
        assert opts == ["A", "1", "A", "2"] and args.size == (32, 32)


@pytest.mark.parametrize(
    "origin",
    [
        Origin(config_files=("evil.py",)),
        Origin(zoo="COCO-Detection/fcos_R_50_FPN_1x.py", opts=("model._target_", "os")),
    ],
)
def test_a_record_executes_nothing(small, tmp_path, origin):
    file = recording(small, origin.to_json(), tmp_path / "small.safetensors")
    with pytest.raises(sirfp.InputError, match="would be executed: if you trust it, name it"):
        complete(words(), [], str(file))
    named = words(zoo=origin.zoo) if origin.zoo else words(config_file="evil.py")
    assert complete(named, ["model.a", "1"], str(file))[1] == ["model.a", "1"], "the user's pairs only"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "is no JSON object"),
        ("{}", "must name one of timm, zoo and config_files"),
        ('{"timm": "a", "zoo": "b"}', "must name one of"),
        ('{"timm": 3}', "timm is 3"),
        ('{"timm": "a\\u001b[31m"}', "timm is"),
        ('{"timm": "a", "size": [64, 0]}', "size is [64, 0]"),
        ('{"timm": "a", "size": [64, 1e9]}', "size is"),
        ('{"timm": "a", "num_classes": -1}', "num_classes is -1"),
        ('{"timm": "a", "preprocessing": {"mean": []}}', "preprocessing is"),
        ('{"zoo": "a", "opts": "b"}', "opts is 'b'"),
        ('{"zoo": "a", "opts": ["b"]}', "opts is ['b']"),
    ],
)
def test_a_damaged_record_is_said_in_one_line(small, tmp_path, capsys, text, told):
    file = recording(small, text, tmp_path / "small.safetensors")
    for command in ("report", "verify"):
        assert main([command, str(file)]) == 2
        err = capsys.readouterr().err
        assert told in err and "the record of its model" in err and err.count("\n") == 1
    assert complete(words(timm="test_resnet"), [], str(file))[0].size is None, "flags that name the model override it"


def test_a_network_of_grey_images_from_python(tmp_path, capsys):
    model, file = timm.create_model("test_resnet", num_classes=3, in_chans=1), tmp_path / "grey.safetensors"
    plan = sirfp.prune(model, torch.zeros(1, 1, 64, 64), "magnitude", keep_flops=0.6)
    data = resolve_data_config({}, model=model)
    kept = {key: data[key] for key in PREPROCESSING} | {"input_size": (1, 64, 64), "mean": (0.5,), "std": (0.2,)}
    origin = sirfp.Origin(timm="test_resnet", num_classes=3, size=(64, 64), preprocessing=kept)
    sirfp.save(file, model, plan, origin=origin)
    assert run(capsys, "verify", file)["equal"]
    assert run(capsys, "report", file, "--size", 64, 64)["networks"][0]["flops"] == plan.flops[0]


def test_what_a_later_version_adds_is_left_out():
    assert Origin.from_json('{"timm": "resnet18", "later": {"a": 1}}') == Origin(timm="resnet18")


def test_a_file_without_a_record_needs_flags(files, capsys):
    assert read_origin(files / "small.safetensors") is None
    assert main(["verify", str(files / "small.safetensors")]) == 2
    assert "name the dense model: --timm NAME" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "verify", "export", "prune"])
def test_a_file_for_another_model_is_answered_with_options(command, small, tmp_path, capsys):
    """Every command says what to leave out of its command line, not what to call in Python."""
    out = {"export": ["-o", str(tmp_path / "a.onnx")], "prune": [*MAGNITUDE, "-o", str(tmp_path / "a.safetensors")]}
    for flags, told in (
        (["--num-classes", "9"], "has 7 classes, the model built has 9: build it with 7; it records"),
        (["--timm", "test_efficientnet"], "is for another model"),
    ):
        assert main([command, str(small), *flags, *out.get(command, [])]) == 2
        said = capsys.readouterr().err
        assert told in said and said.endswith(f"records timm test_resnet, 7 classes: leave out {flags[0]}\n")


def test_keys_that_make_another_model_are_named(tmp_path, capsys):
    file = tmp_path / "small.safetensors"
    assert main(["prune", *SEGMENTOR, *SMALL, *MAGNITUDE, "-o", str(file)]) == 0
    capsys.readouterr()
    assert main(["verify", str(file), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "9"]) == 2
    said = capsys.readouterr().err
    assert "predictor" in said and "leave out MODEL.SEM_SEG_HEAD.NUM_CLASSES\n" in said and "sirfp.load" not in said
