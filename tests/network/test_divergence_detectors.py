"""Detectors are compared on the dense network's boxes, by terms with the weights of their losses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from marks import slow_but
from torch import nn

from sirfp.errors import InputError
from sirfp.network.divergence import divergence_for
from sirfp.network.divergence_detectors import LEAST_BETA, foreground
from sirfp.network.divergence_terms import Divergence, Huber
from sirfp.sources.source import from_zoo

SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.SEM_SEG_HEAD.NORM BN MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16) "
    "MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 8 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST 20"
).split()
TENSORS = {
    "COCO-Detection/retinanet_R_50_FPN_1x": 10,
    "COCO-Detection/fcos_R_50_FPN_1x.py": 15,
    "COCO-Detection/rpn_R_50_FPN_1x": 11,
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": 13,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": 14,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": 6,
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": 14,
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": 18,
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": 15,
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": 3,
}
"""Detectors and how many tensors of them are compared."""
PARTS = [
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
]
"""Those that the keypoint and the panoptic network, Cascade and Mask R-CNN of one level contain."""


@pytest.fixture(scope="module", params=slow_but(TENSORS, *(name for name in TENSORS if name not in PARTS)))
def detector(request):
    """A config, a small network with random norms, and a batch of two images."""
    torch.manual_seed(0)
    options = ("model.head.conv_dims", "[64]") if request.param.endswith(".py") else SMALL
    source = from_zoo(request.param, options, size=(64, 96))
    for module in source.model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.Conv2d) and module.out_channels < 10:  # RPN: objectness with a spread
            nn.init.normal_(module.weight, std=0.1)
    return request.param, source.model, [*source.example(seed=0), *source.example(seed=1)]


def moved(model, by):
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(by * p.std(correction=0) * torch.randn(p.shape, generator=generator))
    return other


def outputs_of(divergence, model, batch):
    with torch.no_grad():
        return divergence.outputs(model, batch)


def test_detectors_are_compared_on_the_dense_networks_boxes(detector):
    config, model, batch = detector
    divergence = divergence_for(model)
    dense = outputs_of(divergence, model, batch)
    assert len(dense) == TENSORS[config]
    again = outputs_of(divergence, model, batch)
    assert all(torch.equal(a, b) for a, b in zip(dense, again, strict=True))
    found = [float(divergence.compare(dense, outputs_of(divergence, moved(model, by), batch))) for by in (0, 0.01, 0.1)]
    assert found[0] == 0 < found[1] < found[2]
    assert divergence.images(dense) == 2
    first = divergence_for(model)  # the other network comes first: the dense one runs before it
    other = outputs_of(first, moved(model, 0.1), batch)
    assert float(first.compare(dense, other)) == pytest.approx(found[2], rel=1e-5)
    assert not any("forward_with_given_boxes" in vars(module) for module in model.modules())


def test_every_tensor_counts(detector):
    _, model, batch = detector
    divergence = divergence_for(model)
    dense = outputs_of(divergence, model, batch)
    for number, tensor in enumerate(dense):
        other = [z + 0.5 * (i == number) * torch.randn_like(z) for i, z in enumerate(dense)]
        assert (divergence.compare(dense, other) > 0) == (tensor.numel() > 0)


def test_probes_sample_the_hessian(detector):
    """Along a random direction v: the mean of (g v)^2 over draws, per image, against v' H v."""
    _, model, batch = detector
    divergence = divergence_for(model)
    dense = [z.double() for z in outputs_of(divergence, model, batch)]
    dense = [2 * z / z.abs().max() if z.numel() else z for z in dense]  # no probabilities so small that none is drawn
    draws, generator, curved = 300, torch.Generator().manual_seed(0), []
    terms = divergence.terms(dense)
    small: dict[tuple, int] = {}  # of levels that a head predicts, which differ in size alone, the largest small one
    for term in terms:
        z = dense[term.position]
        if 0 < z.numel() < 5000:
            small.setdefault((term.kind, z.shape[1]) if z.ndim == 4 else (term.position,), term.position)
    for number in small.values() or range(1, len(dense)):
        torch.manual_seed(number)
        z = dense[number]
        direction = torch.randn_like(z)
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value = divergence.compare(dense, [d + step * direction if i == number else d for i, d in enumerate(dense)])
        (slope,) = torch.autograd.grad(value, step, create_graph=True)
        (curve,) = torch.autograd.grad(slope, step)
        single = Single([t for t in terms if t.position == number], divergence.images(dense))
        leaf, total = z.clone().requires_grad_(), 0.0
        for _ in range(draws):
            (gradient,) = torch.autograd.grad(single.probe([leaf], generator), leaf)
            total += float((gradient * direction).sum() ** 2)
        assert total / draws / 2 == pytest.approx(float(curve), rel=0.3), number
        curved.append(bool(curve > 0))
    assert sum(curved) > len(curved) / 2  # a level without foreground has no curvature in its boxes


class Single(Divergence):
    """One tensor of a list of outputs, so that a test need not probe all of them."""

    def __init__(self, terms, images):
        super().__init__()
        self.given, self.count = [term._replace(position=0) for term in terms], images

    def terms(self, dense):
        return self.given

    def images(self, outputs):
        return self.count


def test_a_probe_of_the_network_has_gradients(detector):
    _, model, batch = detector
    divergence = divergence_for(model)
    outputs = divergence.outputs(model, batch)
    probe = divergence.probe(outputs, torch.Generator().manual_seed(0))
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(probe, weights, allow_unused=True)
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 0.8 * len(weights)


def test_retinanet_is_weighted_as_its_losses():
    """Class divergence over the number of foreground anchors; boxes of foreground anchors alone."""
    torch.manual_seed(0)
    model = from_zoo("COCO-Detection/retinanet_R_50_FPN_1x", [*SMALL, "MODEL.RETINANET.NUM_CLASSES", "3"]).model
    divergence = divergence_for(model)
    sides = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
    dense = [torch.randn(2, 9 * n, *side) for n in (3, 4) for side in sides]
    dense[:5] = [z - 3 for z in dense[:5]]
    other = [z + 0.05 * torch.randn_like(z) for z in dense]
    p, q, a, b = (torch.cat([permute_to_N_HWA_K(z, n).reshape(-1, n) for z in part], dim=0)
                  for part, n in ((dense[:5], 3), (other[:5], 3), (dense[5:], 4), (other[5:], 4)))  # fmt: skip
    score = p.sigmoid().amax(1)
    score = torch.where(score >= model.test_score_thresh, score, 0)
    yes = F.kl_div(F.logsigmoid(q), F.logsigmoid(p), log_target=True, reduction="sum")
    no = F.kl_div(F.logsigmoid(-q), F.logsigmoid(-p), log_target=True, reduction="sum")
    boxes = (F.smooth_l1_loss(b, a, beta=LEAST_BETA, reduction="none").sum(1) * score).sum()
    assert torch.isclose(divergence.compare(dense, other), (yes + no + boxes) / score.sum(), rtol=1e-4)


def test_the_huber_loss_is_that_of_pytorch():
    a, b = torch.randn(50), torch.randn(50)
    assert torch.allclose(Huber(0.3).value(a, b), F.smooth_l1_loss(b, a, beta=0.3, reduction="none"))


def test_without_any_foreground_all_anchors_count():
    scores = torch.tensor([0.1, 0.6, 0.3])
    assert torch.equal(foreground(scores, 0.5), torch.tensor([0, 0.6, 0]))
    assert torch.equal(foreground(scores, 0.7), scores)


def test_a_head_of_another_form_is_one_line():
    torch.manual_seed(0)
    source = from_zoo("COCO-Detection/rpn_R_50_FPN_1x", SMALL, size=(64, 96))
    source.model.proposal_generator.in_features = ("p2", "p3", "p4", "p5")
    head = source.model.proposal_generator.rpn_head
    head.register_forward_hook(lambda module, inputs, output: (output[0], [*output[1], output[1][0]]))
    with pytest.raises(InputError, match="region proposal network returns other outputs"):
        divergence_for(source.model).outputs(source.model, source.example())
