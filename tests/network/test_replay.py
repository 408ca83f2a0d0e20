"""Replays equal full runs bit for bit, whatever modules do to their inputs, and call fewer modules."""

import copy
from collections import Counter
from dataclasses import dataclass
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from marks import slow_but
from small_segmentors import image, segmentor
from torch import nn

import sirfp
from sirfp.network.divergence import divergence_for
from sirfp.network.forward import call, inference, tensors
from sirfp.network.replay import Replay
from sirfp.sources.source import from_zoo
from sirfp.surgery.plan_and_cut import cut


def run(model, batch):
    with inference(model):
        return call(model, batch)


def changed(model, name):
    """A copy in which the parameters and buffers of one module differ."""
    other = copy.deepcopy(model)
    module = other.get_submodule(name)
    with torch.no_grad():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.mul_(1.5).add_(0.1)
    return other


def owners(model):
    return [name for name, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]


def same(a, b):
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return bool(pairs) and all(p == q and torch.equal(x, y) for (p, x), (q, y) in pairs)


def calls_of(model, work):
    """What work returns, and how often each leaf of a model computes."""
    counts: Counter[str] = Counter()
    leaves = [(name, m) for name, m in model.named_modules() if not list(m.children())]
    for name, module in leaves:

        def counted(*args, forward=module.forward, name=name, **kwargs):
            counts[name] += 1
            return forward(*args, **kwargs)

        module.forward = counted
    try:
        return work(), counts
    finally:
        for _, module in leaves:
            del module.forward


def check(model, batches, names=None, runner=run):
    """Replays of a change in each of the named modules equal full runs; returns (calls replayed, calls in full)."""
    replay, totals = Replay(model, batches, runner), [0, 0]
    assert all(same(output, runner(model, batch)) for output, batch in zip(replay.outputs, batches, strict=True))
    chosen = sorted(names or owners(model), key=lambda name: replay.moment([name]))
    for name in chosen:
        replay.prepare([name])
        other = changed(model, name)
        for number, batch in enumerate(batches):
            for _ in range(2):  # a replay must not change what is recorded
                output, counts = calls_of(other, partial(replay.run, other, number))
                wanted, all_counts = calls_of(other, partial(runner, other, batch))
                assert same(output, wanted), name
            totals[0] += sum(counts.values())
            totals[1] += sum(all_counts.values())
    assert not any("forward" in vars(module) for module in model.modules())
    return totals


def test_only_the_calls_from_the_first_change_on_run():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(5)))
    replay = Replay(model, [torch.randn(2, 4)], run)
    for block in range(5):
        assert replay.prepare([f"{block}.0"]) == (block > 0)
        _, counts = calls_of(model, lambda: replay.run(model, 0))
        assert counts == {f"{i}.{j}": 1 for i in range(block, 5) for j in range(2)}
    held = [t for _, t in tensors(replay._records[0]) if not t.is_meta]
    assert len(held) == 1  # the input of the last block alone
    assert replay.moment(["0.0"]) < replay.moment(["3.0", "1.0"]) < replay.moment(["2.0"])


def test_records_may_be_taken_in_any_order():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    batches = [torch.randn(2, 4), torch.randn(3, 4)]
    replay = Replay(model, batches, run)
    for name in ("4", "2", "5", "1", "0", "3"):
        replay.prepare([name])
        other = changed(model, name)
        assert all(same(replay.run(other, n), run(other, batch)) for n, batch in enumerate(batches))


class Shared(nn.Module):
    """A head and an activation called several times, some calls inside other modules."""

    def __init__(self):
        super().__init__()
        self.head, self.act = nn.Linear(4, 4), nn.ReLU(inplace=True)
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = nn.Sequential(self.head, self.act)

    def forward(self, x):
        x = self.inner(self.first(x))
        y = self.head(self.act(self.middle(x)))
        return self.last(self.act(y)) + self.head(x) + y


class Old(nn.Module):
    """Reads a tensor by its old name after an activation has changed it in place, and once a view of it."""

    def __init__(self, view: bool):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.act, self.view = nn.ReLU(inplace=True), view

    def forward(self, x):
        x = self.a(x)
        old = x.flatten(2).unflatten(2, x.shape[2:]) if self.view else x
        y = self.b(self.act(x))
        self.act(y)
        return self.c(y + old) + y + x


class Same(nn.Module):
    """Changes in place what a module returned unchanged."""

    def __init__(self, middle: nn.Module):
        super().__init__()
        self.a, self.b, self.c, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), middle

    def forward(self, x):
        x = self.a(x)
        y = self.middle(x)
        z = self.b(x)
        F.relu_(y)
        return self.c(x.reshape(z.shape) + z)


class PreActivated(nn.Module):
    """Blocks that change their input in place."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.act(x)) + x

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.blocks = nn.Sequential(*(self.Block() for _ in range(4)))

    def forward(self, x):
        x = self.stem(x)
        return self.blocks(x) + x


class Remembers(nn.Module):
    """A module whose state another part reads."""

    class Store(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kept, self.list = nn.Linear(4, 4), None, []

        def forward(self, x):
            self.kept = self.layer(x)
            self.list.append(self.kept)
            return self.kept * 2

    def __init__(self):
        super().__init__()
        self.store, self.outer, self.last = self.Store(), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.outer(nn.Sequential(self.store)(x))
        return self.last(y) + self.store.kept + self.store.list[-1]


@dataclass
class Pair:
    one: torch.Tensor
    more: dict


class Containers(nn.Module):
    """Modules that return and get containers, which the caller changes."""

    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, given):
            y = self.layer(given["x"] if isinstance(given, dict) else given)
            return Pair(y, {"list": [y, (y + 1, None)], "text": "a", "unused": y * 3})

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = self.Part(), self.Part(), self.Part()

    def forward(self, x):
        first = self.a({"x": x})
        first.more["list"].append(first.one)
        second = self.b(first.one + first.more["list"][1][0])
        second.more["x"] = second.one.relu_() + len(first.more["list"])
        return self.c(second.more), first, [second.more["list"][0]]


class Borrowed(nn.Module):
    """Uses weights of modules outside of their own calls: shared, read early, or never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.never = (nn.Linear(4, 4) for _ in range(4))
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.c.weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.a(x)
        x = self.tied(F.linear(x, self.b.weight))
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var)
        return self.c(self.b(self.attention(x, x, x)[0])) @ self.never.weight


class Features(nn.Module):
    """Returns early features too."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return {"first": found[0], "rest": [found[2], x[:1]]}


class Flat(nn.Sequential):
    """Activations in place on the outputs of the layers before them (VGG)."""

    def __init__(self):
        layers = [(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(inplace=True)) for _ in range(3)]
        super().__init__(*(layer for three in layers for layer in three))


TRICKY = {
    "shared": (Shared, (3, 4)),
    "old name": (lambda: Old(False), (2, 3, 4, 4)),
    "old view": (lambda: Old(True), (2, 3, 4, 4)),
    "identity": (lambda: Same(nn.Identity()), (3, 4)),
    "dropout": (lambda: Same(nn.Sequential(nn.Dropout(), nn.Identity())), (3, 4)),
    "flatten": (lambda: Same(nn.Flatten(0)), (3, 4)),
    "pre-activated": (PreActivated, (2, 3, 4, 4)),
    "remembers": (Remembers, (3, 4)),
    "containers": (Containers, (3, 4)),
    "borrowed": (Borrowed, (3, 4)),
    "features": (Features, (3, 4)),
    "flat": (Flat, (2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", TRICKY)
def test_whatever_modules_do_replays_equal_full_runs(name):
    torch.manual_seed(0)
    kind, shape = TRICKY[name]
    model = kind()
    if name == "remembers":
        model.store.list.clear()
    replayed, full = check(model, [torch.randn(shape), torch.randn(shape)])
    assert replayed < full
    for last in owners(model)[-2:]:  # what comes before it is recorded in one pass
        check(model, [torch.randn(shape)], [last])


def test_what_is_returned_at_the_end_is_recorded():
    model = Features()
    replay = Replay(model, [torch.randn(3, 4)], run)
    replay.prepare(["layers.3"])
    other = changed(model, "layers.3")
    output, counts = calls_of(other, lambda: replay.run(other, 0))
    assert counts == {"layers.3": 1} and same(output, run(other, replay.batches[0]))
    assert [t.is_meta for _, t in tensors(replay._records[0])] == [False, True, False]


def test_a_network_that_draws_random_numbers_runs_in_full():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x) + torch.randn(4))

    model = Noisy()
    replay = Replay(model, [torch.randn(2, 4)], run)
    assert not replay.prepare(["b"])
    _, counts = calls_of(model, lambda: replay.run(model, 0))
    assert counts == {"a": 1, "b": 1}


def test_a_network_that_changes_its_buffers_runs_in_full():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x):
            self.steps.add_(1)
            return self.b(self.a(x)) * self.steps

    replay = Replay(Counting(), [torch.randn(2, 4)], run)
    assert not replay.prepare(["b"])


def test_an_error_of_the_copy_is_raised():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    replay = Replay(model, [torch.randn(2, 4)], run)
    replay.prepare(["1"])
    other = copy.deepcopy(model)
    other[1] = nn.Linear(5, 4)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        replay.run(other, 0)
    assert "forward" not in vars(other[0])


@pytest.mark.parametrize("dtype", slow_but(["autocast", "bfloat16", "channels_last"], "autocast", "channels_last"))
def test_precision_and_memory_formats_are_kept(dtype):
    torch.manual_seed(0)
    model, batch = timm.create_model("test_resnet"), torch.randn(2, 3, 64, 64)
    if dtype == "channels_last":
        model, batch = (one.to(memory_format=torch.channels_last) for one in (model, batch))
    if dtype == "bfloat16":
        model, batch = model.bfloat16(), batch.bfloat16()

    def runner(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return run(model, batch)

    replayed, full = check(model, [batch], owners(model)[::4], runner)
    assert replayed < 0.8 * full


NAMES = ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "densenet121", "test_vit"]


@pytest.mark.parametrize("name", slow_but(NAMES, "mobilenetv3_small_050", "test_vit"))  # a ResNet is above
def test_networks_of_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7)
    size = 160 if name == "test_vit" else 64
    names = owners(model)
    replayed, full = check(model, [torch.randn(1, 3, size, size)], names[:: max(len(names) // 6, 1)])
    assert replayed < 0.75 * full


def test_segmentors():
    model = segmentor("DeepLabV3PlusHead", "timm", "BN")
    divergence = divergence_for(model)

    def runner(model, batch):
        with torch.no_grad():
            return divergence.outputs(model, batch)

    names = owners(model)
    replayed, full = check(model, [image(), image(96)], names[:: len(names) // 6], runner)
    assert replayed < 0.8 * full


SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 8 MODEL.RETINANET.SCORE_THRESH_TEST 0.0 "
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0"
).split()


MASKS = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"


@pytest.mark.parametrize("config", slow_but(["COCO-Detection/retinanet_R_50_FPN_1x", MASKS], MASKS))
def test_detectors(config):
    """Their heads are called once for each level, and their outputs are lists of `Instances`."""
    torch.manual_seed(0)
    source = from_zoo(config, SMALL, size=(64, 96))
    names = owners(source.model)
    replayed, full = check(source.model, [source.example()], names[:: len(names) // 6])
    assert replayed < 0.8 * full
    divergence = divergence_for(source.model)

    def runner(model, batch):
        with torch.no_grad():
            return divergence.outputs(model, batch)

    replayed, full = check(source.model, [source.example()], names[:: len(names) // 6], runner)
    assert replayed < 0.8 * full


def test_cut_copies():
    """Each group of a network is cut in a copy of its own, and what reads it is corrected."""
    torch.manual_seed(0)
    model, batch = timm.create_model("test_resnet").eval(), torch.randn(2, 3, 64, 64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
    found = sirfp.find_groups(model, batch)
    replay = Replay(model, [batch], run)
    names = {g.name: {s.tensor.rpartition(".")[0] for s in g.slices} for g in found}
    done = [0, 0]
    for name in sorted(names, key=lambda name: replay.moment(names[name])):
        replay.prepare(names[name])
        other, keep = copy.deepcopy(model), torch.ones(found.atoms, dtype=torch.bool).numpy()
        keep[found.spans[name]][::3] = False
        cut(other, found, keep)
        output, counts = calls_of(other, partial(replay.run, other, 0))
        wanted, full = calls_of(other, partial(run, other, batch))
        assert same(output, wanted) and not same(output, replay.outputs[0])
        done = [done[0] + sum(counts.values()), done[1] + sum(full.values())]
    assert done[0] < 0.7 * done[1]
