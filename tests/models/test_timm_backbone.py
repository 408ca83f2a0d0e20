"""timm networks as backbones: their output shapes are true, and weights are those of the file."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from sirfp.config import load_config
from sirfp.errors import InputError
from sirfp.models.timm_backbone import TimmBackbone
from sirfp.models.timm_weights import PACKAGES, PYPI, create_timm


@pytest.mark.parametrize(
    ("name", "features", "output_stride"),
    [
        ("resnet18", ["stride4", "stride16"], 16),
        ("tf_efficientnet_lite0", ["stride4", "stride8"], 8),
        ("mobilenetv3_small_050", ["stride8", "stride32"], 32),
        ("regnety_002", ["stride2"], 32),
        pytest.param("vgg11_bn", ["stride1", "stride4"], 32, marks=pytest.mark.slow),  # 128 million weights
        ("swin_tiny_patch4_window7_224", ["stride4", "stride8"], 32),  # maps come as (N, H, W, C)
    ],
)
def test_output_shapes_are_true(name, features, output_stride):
    backbone = TimmBackbone(name, features, output_stride=output_stride).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 224, 224))
    said = backbone.output_shape()
    assert list(said) == features == list(maps)
    for feature, shape in said.items():
        assert shape.stride == int(feature.removeprefix("stride"))
        assert maps[feature].shape == (1, shape.channels, 224 // shape.stride, 224 // shape.stride)
    assert backbone.size_divisibility == max(shape.stride for shape in said.values())


def test_stages_are_told_apart_where_strides_are_alike():
    backbone = TimmBackbone("resnet18", ["stage4", "stage3", "stride16", "stride4"], output_stride=16).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 64))
    assert {name: one.shape[1] for name, one in maps.items()} == {
        "stride4": 64, "stage3": 256, "stage4": 512, "stride16": 512,
    }  # fmt: skip
    assert {name: shape.stride for name, shape in backbone.output_shape().items()}["stage3"] == 16
    assert maps["stage4"] is maps["stride16"]


def test_layers_after_the_last_feature_are_left_out():
    parameters = [sum(p.numel() for p in TimmBackbone("resnet18", [f]).parameters()) for f in ("stride8", "stride32")]
    assert parameters[0] < parameters[1] / 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "resnet81"}, "timm has no network 'resnet81' (did you mean"),
        ({"out_features": ["stride64"]}, "has no 'stride64'; it has stride2, stride4"),
        ({"norm": "GN"}, "got 'GN'"),
        ({"weights": "nowhere.pth"}, "there is no file of weights nowhere.pth"),
        ({"weights": "pypi://nothing"}, "known weights: pypi://efficientnet-lite0"),
        ({"weights": "pypi://efficientnet-lite0"}, "holds weights of 'tf_efficientnet_lite0'"),
        ({"name": "hgnetv2_b0", "output_stride": 8}, "output_stride=8: "),  # timm's words or ours
    ],
)
def test_mistakes(arguments, says):
    with pytest.raises(InputError) as caught:
        TimmBackbone(**{"name": "resnet18", "out_features": ["stride4"]} | arguments)
    assert says in str(caught.value)


def test_frozen_norms_keep_their_activation_and_have_no_parameters():
    backbone = TimmBackbone("tf_efficientnet_lite0", ["stride8"], norm="FrozenBN")
    assert not any("bn" in name for name, _ in backbone.named_parameters())
    assert isinstance(backbone.network.bn1.act, torch.nn.ReLU6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_those_of_the_file(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    state = create_timm("test_resnet").state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    loaded = TimmBackbone("test_resnet", ["stride32"], weights=str(file)).network.state_dict()
    assert len(loaded) > 40 and all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_the_weights_given_are_not_kept_beside_the_network(tmp_path):
    """timm keeps them in the network's config: every copy of the network would copy them too."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    for options in ({}, {"features_only": True}):
        network = create_timm("test_resnet", str(tmp_path / "weights.pth"), **options)
        assert network.pretrained_cfg["input_size"] == (3, 160, 160)
        own = sum(4 * value.numel() for value in network.state_dict().values())
        assert len(pickle.dumps(network)) < 1.01 * own + 2e5


def test_a_file_of_another_network_or_cut_short_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"some.weight": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"no weights of timm's 'resnet18'.*'some\.weight'"):
        create_timm("resnet18", str(file))
    torch.save(create_timm("resnet34").state_dict(), file)
    with pytest.raises(InputError, match="weights.pth"):
        create_timm("resnet18", str(file))
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be read as weights"):
        create_timm("resnet18", str(file))


def test_weights_of_the_package_on_pypi():
    package, name = PACKAGES["efficientnet-lite0"]
    pytest.importorskip(package.replace("-", "_"))
    state = create_timm(name, f"{PYPI}efficientnet-lite0").state_dict()
    fresh = timm.create_model(name).state_dict()
    assert all(state[key].shape == fresh[key].shape for key in fresh)
    assert all(state[key].min() >= 0 for key in state if key.endswith("running_var")), "variances where they belong"


def test_pyramids_for_detection():
    from detectron2.modeling import build_backbone

    opts = ["MODEL.FPN.IN_FEATURES", "['stride8', 'stride16', 'stride32']", "MODEL.FPN.OUT_CHANNELS", "16"]
    opts += ["MODEL.TIMM.NAME", "test_resnet"]
    for builder, levels in (
        ("build_timm_fpn_backbone", ["p3", "p4", "p5", "p6"]),
        ("build_retinanet_timm_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"]),
    ):
        pyramid = build_backbone(load_config("", [*opts, "MODEL.BACKBONE.NAME", builder]))
        maps = pyramid(torch.rand(1, 3, 128, 128))
        assert list(maps) == levels
        assert all(maps[level].shape[-1] == 128 // shape.stride for level, shape in pyramid.output_shape().items())


def test_weights_of_another_network_are_said_in_a_short_line(tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"faults in all\); are they of another network") as error:
        create_timm("resnet18", str(tmp_path / "other.pth"))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
