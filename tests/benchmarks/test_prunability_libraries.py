"""A part of the table of other libraries: tiny models of torchvision, and of transformers where it is installed."""

import copy
import json
import sys

import pytest
import torch
from scripts import loaded
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, detection, segmentation


@pytest.fixture(scope="module")
def benchmark():
    with loaded("benchmarks/prunability_libraries.py") as module:
        import prunability_libraries_table

        yield module, prunability_libraries_table


def vision_transformer():
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5)


def swin():
    return SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4], num_classes=5)


def segmentor():
    return segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)


def detector():
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    model.transform.fixed_size = (96, 96)
    return model


@pytest.mark.parametrize("build", [vision_transformer, swin, segmentor], ids=lambda build: build.__name__)
def test_a_model_of_torchvision_is_halved_equal_loaded_and_trained(benchmark, build):
    from library_models.subject import Subject, image

    assert_passes(benchmark, lambda: Subject(build(), image(32, 32)))


def test_a_detector_of_torchvision_trains_with_its_own_losses(benchmark):
    from library_models.subject import Subject

    target = {"boxes": torch.tensor([[5.0, 5.0, 50.0, 60.0]]), "labels": torch.tensor([1])}
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    given = (images, [target, target])
    assert_passes(benchmark, lambda: Subject(detector(), images[:1], given, lambda losses: sum(losses.values())))


@pytest.mark.parametrize(
    "name",
    ["ViTForImageClassification", "CLIPForImageClassification", "SwinForImageClassification", "YolosForObjectDetection",
     "Dinov2ForImageClassification", "SiglipForImageClassification"],
)  # fmt: skip
def test_a_model_of_transformers_is_halved_equal_loaded_and_trained(benchmark, name):
    pytest.importorskip("transformers", reason="the extra zoo is not installed")
    assert_passes(benchmark, benchmark[0].models("transformers")[name])


def assert_passes(benchmark, build):
    torch.manual_seed(0)
    row = {"library": "torchvision", "model": "tiny", **benchmark[0].measure(build)}
    assert benchmark[1].good(row) and row["stage"] == "", row
    assert 0.35 < row["kept"] <= 0.5005 and abs(row["counted"] - row["kept"]) < 0.02, row
    text = benchmark[1].table({("torchvision", "tiny"): row})
    assert "1 of 1 models (100.0%)" in text and text.endswith("None.\n")


class Odd(nn.Module):
    """Changes its weights when it is loaded, or gives gradients that are not finite."""

    def __init__(self, *, grows: bool = False, steep: bool = False):
        super().__init__()
        self.first, self.last, self.grows, self.steep = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 3), grows, steep
        self.scale = torch.rand(()) + 1.0

    def forward(self, x):
        x = self.last(self.first(x).relu())
        if self.steep and self.training:
            x = (x - x.detach()).sqrt()
        return x * self.scale if self.grows else x


@pytest.mark.parametrize(
    ("options", "stage", "says"),
    [
        ({"grows": True}, "load", "loaded, output differs by"),
        ({"steep": True}, "train", "gradients are not finite"),
    ],
)
def test_a_model_that_fails_after_its_cut_is_a_row_with_the_stage(benchmark, options, stage, says):
    from library_models.subject import Subject, image

    row = benchmark[0].measure(lambda: Subject(Odd(**options), image(16, 16)))
    assert row["stage"] == stage and says in row["error"], row
    row |= {"library": "monai", "model": "odd"}
    assert not benchmark[1].good(row)
    text = benchmark[1].table({("monai", "odd"): row})
    assert "0 of 1 models" in text and f"{stage}: RuntimeError: {says}"[:60] in text


def test_a_model_that_keeps_more_than_half_is_listed_with_what_stays_whole(benchmark):
    row = {
        "library": "monai", "model": "stiff", "params": 10, "flops": 10, "groups": 1, "channels": 4, "kept": 0.7,
        "counted": 0.7, "least": 0.7, "difference": 0.0, "equal": True, "rounding": None, "double": None, "effect": 0.3,
        "inexact": None, "processor_seconds": 0.1, "all_seconds": 1.0,
        "frozen": [["it is the model's output", 3], ["aten::odd", 8]],
    }  # fmt: skip
    text = benchmark[1].table({("monai", "stiff"): row})
    assert "- **stiff** (4 can be removed): 8: aten::odd" in text and "see below" in text
    text = benchmark[1].table({("monai", "stiff"): row | {"frozen": row["frozen"][:1]}}, "Measured here.")
    assert "what stays whole is returned" in text and "see below" not in text
    assert "in seconds. Measured here." in " ".join(text.split())
    assert not benchmark[1].good(row) and benchmark[1].good(row | {"kept": 0.5})
    assert not benchmark[1].good(row | {"kept": 0.5, "equal": False})
    assert not benchmark[1].good(row | {"kept": 0.5, "effect": 0.0})
    assert not benchmark[1].good(row | {"kept": 0.5, "double": 1e-8})
    assert benchmark[1].good(row | {"kept": 0.5, "double": 1e-15})


def test_double_precision_shows_what_single_precision_hides(benchmark):
    from prunability import difference_in_double

    from sirfp.verify import compare

    masked = nn.Conv2d(3, 4, 3)
    other = copy.deepcopy(masked)
    with torch.no_grad():
        other.weight[0, 0, 0, 0] += 3e-8
    given = torch.rand(1, 3, 8, 8)
    assert difference_in_double(masked, copy.deepcopy(masked), given, None, compare) == 0
    assert 1e-9 < difference_in_double(masked, other, given, None, compare) < 1e-6
    narrow = nn.Sequential(masked, Narrow()), nn.Sequential(other, Narrow())
    assert difference_in_double(*narrow, given, None, compare) is None


class Narrow(nn.Module):
    """Computes in single precision, whatever its input has."""

    def forward(self, x):
        return x.float() * 2


def test_an_interrupted_table_goes_on(benchmark, monkeypatch, tmp_path, capsys):
    module, results, page = benchmark[0], tmp_path / "rows.jsonl", tmp_path / "page.md"
    known = {"a1": None, "a2": None, "b": None}
    monkeypatch.setattr(module, "models", lambda library: known)
    ran = []

    def in_process(library, name, args):
        ran.append(name)
        if name == "a2" and len(ran) == 2:
            raise KeyboardInterrupt
        return {"library": library, "model": name, "stage": "prune", "error": f"run {len(ran)}"}

    monkeypatch.setattr(module, "in_process", in_process)
    command = ["x", "--results", str(results), "--table", str(page), "--libraries", "monai"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert not page.exists() and module.main() == 0 and ran == ["a1", "a2", "a2", "b"]
    monkeypatch.setattr(sys, "argv", [*command, "--models", "a*", "--again"])
    assert module.main() == 0 and ran[4:] == ["a1", "a2"]
    assert [json.loads(line)["model"] for line in results.read_text().splitlines()] == ["a1", "a2", "b", "a1", "a2"]
    assert (
        "run 5" in page.read_text() and "run 1 " not in page.read_text() and "0 of 3 models" in capsys.readouterr().out
    )


def test_a_library_that_is_not_installed_is_left_out_with_a_word(benchmark, monkeypatch, capsys):
    def models(library):
        raise ModuleNotFoundError("No module named 'odd'", name="odd")

    monkeypatch.setattr(benchmark[0], "models", models)
    assert benchmark[0].chosen("monai", ["*"]) == []
    assert "monai: left out, odd is not installed" in capsys.readouterr().out


def test_a_batch_of_two_holds_the_mirror_image(benchmark):
    from library_models.subject import twice

    x, number = torch.arange(6.0).view(1, 2, 3), torch.tensor(4)
    assert twice(x).tolist() == [[[0, 1, 2], [3, 4, 5]], [[2, 1, 0], [5, 4, 3]]]
    assert twice({"x": x, "n": 3, "t": (x, number)})["t"][1] is number and twice((x,))[0].shape == (2, 2, 3)
