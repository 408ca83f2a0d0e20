"""Untrusted files: no reader runs their code or allocates more memory than the file has bytes."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import timm
import torch
from torch import nn

import sirfp
from sirfp.checkpoint.dense import read_weights
from sirfp.cli import main
from sirfp.config import load_config
from sirfp.config.checks import validate
from sirfp.data.images import open_images
from sirfp.errors import InputError
from sirfp.files.pickles import read_arrays
from sirfp.files.yaml_files import read_yaml
from sirfp.models import timm_weights as timm_weights
from sirfp.models.timm_backbone import TimmBackbone
from sirfp.structure.plan import PruningPlan
from sirfp.study import markers, pictures
from sirfp.training.checkpointer import Checkpointer


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3))


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth", ".safetensors", ""])
def test_a_checkpoint_runs_nothing(tmp_path, suffix):
    file, mark = tmp_path / f"evil{suffix}", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"model": Bomb(mark), "__author__": "x", "model_state": Bomb(mark)}))
    with pytest.raises(InputError):
        Checkpointer(network()).load(str(file))
    assert not mark.exists()


def test_resume_runs_nothing_and_stays_in_its_folder(tmp_path):
    mark, out = tmp_path / "ran", tmp_path / "out"
    out.mkdir()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Bomb(mark)))
    (out / "evil.pkl").write_bytes(pickle.dumps(Bomb(mark)))
    for name in ("../evil.pth", str(tmp_path / "evil.pth"), "evil.pkl"):
        (out / "last_checkpoint").write_text(name)
        with pytest.raises(InputError):
            Checkpointer(network(), str(out)).resume_or_load("", resume=True)
    assert not mark.exists()


@pytest.mark.parametrize("author", [True, False])
def test_the_zoos_arrays_are_read(tmp_path, author):
    model = network()
    arrays = {name: np.full(t.shape, 2, np.float32) for name, t in model.state_dict().items()}
    content = {"model": arrays, "__author__": "someone"} if author else {"blobs": arrays | {"w_momentum": np.ones(1)}}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    Checkpointer(model).load(str(tmp_path / "zoo.pkl"))
    assert all(bool((t == 2).all()) for t in model.state_dict().values()), model.state_dict()


@pytest.mark.parametrize("base", [False, True])
def test_a_config_runs_nothing(tmp_path, base):
    mark, file = tmp_path / "ran", tmp_path / "evil.yaml"
    file.write_text(f'MODEL:\n  WEIGHTS: !!python/object/apply:builtins.open ["{mark}", "w"]\n')
    if base:
        (tmp_path / "child.yaml").write_text("_BASE_: evil.yaml\n")
        file = tmp_path / "child.yaml"
    with pytest.raises(InputError, match="no valid YAML"):
        load_config(file)
    assert not mark.exists()


def test_configs_that_name_each_other_end_in_one_line(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {other}.yaml\n")
    with pytest.raises(InputError):
        load_config(tmp_path / "a.yaml")


def test_tensors_are_read(tmp_path):
    model = network()
    torch.save({"model": {n: torch.ones_like(t) for n, t in model.state_dict().items()}}, tmp_path / "good.pth")
    Checkpointer(model).load(str(tmp_path / "good.pth"))
    assert all(bool((t == 1).all()) for t in model.state_dict().values())


PLACES = {
    "a dense model's weights": lambda file: read_weights(file),
    "MODEL.TIMM.WEIGHTS": lambda file: timm_weights.read_weights("test_resnet", str(file)),
    "MODEL.TIMM.OPTIONS": lambda file: TimmBackbone("test_resnet", ["stride8"], options={"checkpoint_path": str(file)}),
    "a pruned file": lambda file: sirfp.load(file, network()),
    "a class map": lambda file: open_images(file.parent / "images", class_map=str(file)),
    "proposals": lambda file: validate(
        load_config("", ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{file}',)"])
    ),
    "a config": lambda file: load_config(file),
}


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pt", ".safetensors", ".npz", ".yaml", ""])
@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_runs_nothing(tmp_path, place, suffix):
    (tmp_path / "images/a").mkdir(parents=True)
    file, mark = tmp_path / f"evil{suffix}", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"model": Bomb(mark), "boxes": [Bomb(mark)]}))
    with pytest.raises(InputError) as told:
        PLACES[place](file)
    assert not mark.exists() and "\n" not in str(told.value)


@pytest.mark.parametrize("packed", [True, False])
def test_a_checkpoint_with_a_bomb_among_its_statistics_runs_nothing(tmp_path, packed):
    mark = tmp_path / "ran"
    content = {"model": network().state_dict(), "trainer": {"hooks": {"Accumulate": {"statistics": Bomb(mark)}}}}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=packed)
    (tmp_path / "last_checkpoint").write_text("last.pth")
    with pytest.raises(InputError):
        Checkpointer(network(), str(tmp_path)).resume_or_load("", resume=True)
    assert not mark.exists()


COMMANDS = [
    ["report", "FILE"],
    ["report", "FILE", "--timm", "test_resnet"],
    ["verify", "FILE", "--timm", "test_resnet"],
    ["prune", "--timm", "test_resnet", "--weights", "FILE", "--criterion", "random", "-o", "OUT"],
    ["prune", "--timm", "test_resnet", "--criterion", "random", "--images", "FILE", "-o", "OUT"],
    ["report", "--config-file", "FILE"],
    ["study", "FILE"],
    ["data", "check", "--images", "FOLDER", "--coco", "FILE"],
]


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors", ".yaml", ".json"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_runs_nothing(tmp_path, capsys, command, suffix):
    file, mark = tmp_path / f"evil{suffix}", tmp_path / "ran"
    file.write_bytes(pickle.dumps({"model": Bomb(mark)}))
    filled = {"FILE": str(file), "OUT": str(tmp_path / "out.safetensors"), "FOLDER": str(tmp_path)}
    assert main([filled.get(word, word) for word in command]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not mark.exists() and not (tmp_path / "out.safetensors").exists()


def test_no_pickle_beside_a_tar_is_read(tmp_path):
    mark, picture = tmp_path / "ran", io.BytesIO()
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        entry = tarfile.TarInfo("a/0.png")
        entry.size = len(picture.getvalue())
        tar.addfile(entry, picture)
    for name in ("_set_tarinfos.pickle", f"_{tmp_path.name}_tarinfos.pickle"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    for root in (tmp_path, tmp_path / "set.tar"):
        assert len(open_images(root)) == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    ("reader", "root"), [("wds/", "pipe:touch RAN;"), ("WDS/", "pipe:touch RAN;"), ("torch/cifar10", "."), ("x/y", ".")]
)
def test_a_reader_runs_no_command_and_unpickles_nothing(tmp_path, reader, root):
    with pytest.raises(InputError):
        open_images(root.replace("RAN", str(tmp_path / "ran")), reader, split="train-{0..1}.tar")
    assert not (tmp_path / "ran").exists()


def test_a_study_passes_over_what_is_not_its_own(tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "done.json"
    whole = {"fingerprint": "f", "seconds": 1.0, "rows": {"dense": {"metrics": {"a": float("nan")}, "flops": 7}}}
    file.write_text(json.dumps(whole))
    assert markers.read_done(file) is not None
    for damaged in (
        pickle.dumps(Bomb(mark)), b"\xff", b"[" * 100_000, b"[]", b"{}",
        *(json.dumps(whole | {key: 3}).encode() for key in ("fingerprint", "rows", "flops", "params", "widths")),
        *(
            json.dumps(whole | other).encode()
            for other in (
                {"rows": {}}, {"rows": {"dense": {"metrics": {"a": []}}}}, {"flops": [0, 0]}, {"seconds": "x"},
            )
        ),
    ):  # fmt: skip
        file.write_bytes(damaged)
        assert markers.read_done(file) is None and markers.read_failed(file) is None, damaged
    np.savez(tmp_path / pictures.MATRICES, names=np.array([Bomb(mark)], dtype=object))
    assert pictures.matrices(tmp_path, "sirfp") == ""
    assert not mark.exists()


class Call:
    """Is unpickled as a call, a state set on what it returns."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


SHAPED = np.ndarray, (0,), b"b"
RECONSTRUCT = np.zeros(1).__reduce__()[0]
POINTERS = Call(np.dtype, ("V8",), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
"""A dtype of objects which says that it has none, so that NumPy takes eight bytes of a file for a pointer."""
LIES = {
    "objects": np.array([1, "a"], dtype=object),
    "fields": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "pointers": Call(RECONSTRUCT, SHAPED, (1, (1,), POINTERS, False, b"A" * 8)),
    "few bytes": Call(RECONSTRUCT, SHAPED, (1, (1 << 40,), np.dtype("f4"), False, b"1234")),
    "negative": Call(RECONSTRUCT, SHAPED, (1, (-1,), np.dtype("f4"), False, b"1234")),
    "no state": Call(RECONSTRUCT, SHAPED),
    "made at once": Call(np.ndarray, ((1 << 40,),)),
    "odd dtype": Call(RECONSTRUCT, SHAPED, (1, (1,), 7, False, b"1234")),
    "scalar": Call(np.float32(1).__reduce__()[0], (np.dtype("O"), "x")),
    "bool of text": Call(np.dtype, ("b" * 100_000,)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_array_that_lies_is_refused(tmp_path, lie):
    file = tmp_path / "lie.pkl"
    file.write_bytes(pickle.dumps({"model": {"a": LIES[lie]}}, protocol=2))
    with pytest.raises(InputError, match="cannot be read as weights"):
        read_arrays(file)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(tmp_path, protocol):
    arrays = {
        "a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "c": np.zeros((0, 3)), "d": np.float32(3), "e": np.array(True),
    }  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "n": [1, "x", None, (2.0,)]}, protocol=protocol))
    found = read_arrays(tmp_path / "a.pkl")
    assert found["n"] == [1, "x", None, [2.0]]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found["model"][name], array)


def test_containers_that_hold_each_other_end(tmp_path):
    nested = round_ = []
    for _ in range(100):
        nested = [nested] * 100
    round_.append(round_)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(nested))
    with pytest.raises(InputError, match="nests more than"):
        read_arrays(tmp_path / "a.pkl")


def test_a_file_takes_no_more_memory_than_it_has_bytes(tmp_path):
    torch.save({"model": {"a": torch.zeros(1).expand(1 << 40)}}, tmp_path / "wide.pth")
    with pytest.raises(InputError, match="the file stores fewer numbers"):
        read_weights(tmp_path / "wide.pth")
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "packed.pth", "w") as packed:
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "packed.pth").stat().st_size < 1 << 16
    with pytest.raises(InputError, match="is compressed"):
        read_weights(tmp_path / "packed.pth")


def test_a_training_checkpoint_of_timm_is_read(tmp_path):
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    other = {f"module.{name}": torch.ones_like(tensor) for name, tensor in state.items()}
    content = {"state_dict": state, "state_dict_ema": other, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save(content, tmp_path / "last.pth.tar")
    found = read_weights(tmp_path / "last.pth.tar")
    assert found.keys() == state.keys() and all(bool((tensor == 1).all()) for tensor in found.values())


def nine(i: int) -> str:
    return ", ".join([f"*k{i}"] * 9)


BOMBS = {
    "laughs": "k0: &k0 [x]\n" + "".join(f"k{i}: &k{i} [{nine(i - 1)}]\n" for i in range(1, 12)),
    "merges": "k0: &k0 {x: 1}\n" + "".join(f"k{i}: &k{i} {{<<: [{nine(i - 1)}]}}\n" for i in range(1, 12)),
    "a cycle": "a: &a [*a]\n",
    "deep": "a: " + "[" * 50 + "]" * 50,
    "deeper": "[" * 50_000,
    "many": "a: [" + "1," * 110_000 + "]",
    "large": "# " + "x" * 300_000,
    "long number": "a: " + "9" * 100_000,
    "month": "a: 2001-99-01",
    "no text": b"\xff\xfe\x00",
    "code": "a: !!python/object/apply:os.system ['true']",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_yaml_that_would_not_end_is_refused(tmp_path, bomb):
    file = tmp_path / "bomb.yaml"
    file.write_bytes(BOMBS[bomb].encode() if isinstance(BOMBS[bomb], str) else BOMBS[bomb])
    for read in (read_yaml, load_config):
        with pytest.raises(InputError) as told:
            read(file)
        assert "\n" not in str(told.value) and len(str(told.value)) < 1000


@pytest.mark.parametrize("base", ["[a.yaml, a.yaml]", "https://example.com/a.yaml", "7", "[[a.yaml]]", "/dev/zero"])
def test_a_base_is_a_local_file_and_not_its_own(tmp_path, base):
    (tmp_path / "a.yaml").write_text(f"_BASE_: {base}\n")
    with pytest.raises(InputError):
        load_config(tmp_path / "a.yaml")


PLANS = {
    "long": lambda: " " * (33 << 20),
    "no text": lambda: b"{}",
    "digits": lambda: '{"format": 1, "flops": [' + "9" * 10_000 + ", 1]}",
    "exponent": lambda: '{"format": 1, "flops": [1e999, 1]}',
    "deep": lambda: '{"format": 1, "kept": ' + '{"a":' * 50_000,
    "no dense": lambda: '{"format": 1, "flops": [0, 0], "params": [1, 1]}',
    "controls": lambda: '{"format": 1, "flops": [2, 1], "params": [2, 1], "criterion": "\\u001b[2J"}',
    "halves": lambda: '{"format": 1, "flops": [2, 1], "params": [2, 1], "frozen": {"\\ud800": "x"}}',
    "long name": lambda: json.dumps({"format": 1, "flops": [2, 1], "params": [2, 1], "criterion": "x" * 20_000}),
}


@pytest.mark.parametrize("plan", PLANS)
def test_an_absurd_plan_is_refused(plan):
    with pytest.raises(InputError) as told:
        PruningPlan.from_json(PLANS[plan]())
    assert str(told.value).isprintable() and len(str(told.value)) < 1000


HEADERS = {
    "endless header": (1 << 62, {}),
    "beyond the file": (None, {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}),
    "fewer bytes than numbers": (None, {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}}),
    "overflowing": (None, {"a": {"dtype": "F32", "shape": [1 << 33, 1 << 33], "data_offsets": [0, 16]}}),
    "backwards": (None, {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
    "twice": (None, {n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}),
    "negative": (None, {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}),
    "no type": (None, {"a": {"dtype": "F31", "shape": [4], "data_offsets": [0, 16]}}),
    "no header": (None, []),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, header):
    length, content = HEADERS[header]
    text = json.dumps(content).encode()
    file = tmp_path / "lie.safetensors"
    file.write_bytes((length or len(text)).to_bytes(8, "little") + text + bytes(16))
    for read in (read_weights, lambda path: sirfp.load(path, network())):
        with pytest.raises(InputError, match="not a complete safetensors file"):
            read(file)
