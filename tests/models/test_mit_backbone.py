"""Mix Transformers as backbones: their output shapes are true, and weights are those of the file."""

import copy

import pytest
import torch
from cut_proofs import half_of

from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.models.mit_backbone import CLASSIFIER, MiTBackbone
from sirfp.network.timm_attention import attention_kind
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")


def test_output_shapes_are_true():
    backbone = MiTBackbone("mit_b0").eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    said = backbone.output_shape()
    assert list(said) == list(maps) == ["stride4", "stride8", "stride16", "stride32"]
    for feature, shape in said.items():
        assert shape.stride == int(feature.removeprefix("stride"))
        assert maps[feature].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_weights_are_those_of_a_local_file(tmp_path):
    """Also of one that holds ImageNet's classifier."""
    torch.manual_seed(0)
    state = MiTBackbone("mit_b0").network.state_dict()
    file = tmp_path / "mit.pth"
    torch.save(state | {name: torch.zeros(1000) for name in CLASSIFIER}, file)
    filled = MiTBackbone("mit_b0", str(file)).network.state_dict()
    assert all(torch.equal(filled[name], state[name]) for name in state)
    with pytest.raises(InputError, match="mit.pth"):
        MiTBackbone("mit_b1", str(file))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mit_b9",), "MODEL.MIT.NAME must be one of mit_b0, .*, got 'mit_b9'"),
        (("mit_b0", "lost.pth"), "lost.pth"),
    ],
)
def test_mistakes_are_named(arguments, says):
    with pytest.raises(InputError, match=says):
        MiTBackbone(*arguments)


def test_heads_and_the_stream_are_cut_equal_to_the_masked_network():
    torch.manual_seed(0)
    model = MiTBackbone("mit_b0").eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(1, 3, 64, 64)
    found = find_groups(model, x)
    assert {part.reason for part in found.frozen} == {"it is the model's output"}
    assert all(group.features for group in found), "nothing is judged without looking"
    masked, pruned = copy.deepcopy(model), copy.deepcopy(model)
    plan = plan_for(found, half_of(found, 1, [group for group in found if not group.inexact]))  # no layer norms
    apply(pruned, plan)
    mask(masked, plan)
    assert compare(masked, pruned, x).relative < 1e-5
    counts = [[a.num_heads for a in m.modules() if attention_kind(a)] for m in (model, pruned)]
    assert sum(counts[1]) < sum(counts[0])
