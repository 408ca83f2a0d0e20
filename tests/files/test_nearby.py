"""Messages on missing files suggest the names that are there."""

from __future__ import annotations

import pytest

from sirfp.cli import main
from sirfp.files.nearby import nearby


def test_similar_names_are_suggested(tmp_path):
    for name in ("small.safetensors", "small.yaml", "other.txt"):
        (tmp_path / name).touch()
    assert nearby(tmp_path / "smal.safetensors") == " (did you mean small.safetensors?)"
    assert nearby(tmp_path / "small.yml", [".yaml"]) == " (did you mean small.yaml?)"
    assert nearby(tmp_path / "small.safetensors.bak", [".yaml"]) == nearby(tmp_path / "xyz") == ""
    assert nearby(tmp_path / "none" / "a") == f"; the folder {tmp_path / 'none'} does not exist either"


@pytest.mark.parametrize(
    "words",
    [
        ("report", "smal.safetensors"),
        ("verify", "smal.safetensors"),
        ("export", "smal.safetensors", "-o", "small.onnx"),
        ("prune", "smal.safetensors", "-o", "x.safetensors"),
        ("prune", "--timm", "test_resnet", "--weights", "smal.safetensors", "--images", ".", "-o", "x.safetensors"),
    ],
)
def test_every_command_suggests_them(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.safetensors").touch()
    assert main(words) == 2
    assert "did you mean small.safetensors?" in capsys.readouterr().err
