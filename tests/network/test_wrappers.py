"""Wrapped models: pruned, written and read with the plain network's names; the wrapper works on."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.network.wrappers import plain, unwrapped
from sirfp.surgery.cut import apply
from sirfp.verify import compare, expand, mask

X = torch.randn(2, 3, 12, 12)


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory):
    file = tmp_path_factory.mktemp("group") / "file"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class LightningModule(nn.Module):
    """Stands in for Lightning's class, which is known by its name."""


class Classifier(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network, self.loss, self.metric = network, nn.CrossEntropyLoss(), nn.Identity()


class ModelEma:
    """Stands in for timm's first moving average, which is no module."""

    def __init__(self, model):
        self.ema = copy.deepcopy(model)


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def timm_average(model):
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model)


DDP = nn.parallel.DistributedDataParallel
WRAPPERS = {
    "DDP": DDP,
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled under DDP": lambda model: DDP(torch.compile(model, backend="eager")),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "timm's ModelEmaV3": timm_average,
    "timm's ModelEma": ModelEma,
    "Lightning": Classifier,
    "Lightning under DDP": lambda model: DDP(Classifier(model)),
}


def pruned(model):
    """The names of a model's groups, and the plan by which it was then cut."""
    names = [g.name for g in find_groups(model, X, trial=False)]
    return names, sirfp.prune(model, X, "sirfp", keep_flops=0.5, calibration=[X])


@pytest.fixture(scope="module")
def plain_one():
    """A pruned network, and its names and plan."""
    network = build()
    return network, pruned(network)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_files_of_wrapped_models_hold_the_plain_names(kind, plain_one, tmp_path):
    wrapper, (network, wanted) = WRAPPERS[kind](build()), plain_one
    found = pruned(wrapper)
    assert found == wanted
    plan = found[1]
    sirfp.save(tmp_path / "p.safetensors", wrapper, plan)
    fresh, again = build(), WRAPPERS[kind](build())
    assert sirfp.load(tmp_path / "p.safetensors", fresh) == plan
    sirfp.load(tmp_path / "p.safetensors", again)
    other = WRAPPERS[kind](build())
    apply(other, plan)
    for model in (fresh, again, wrapper):
        assert torch.equal(unwrapped(model).eval()(X), network.eval()(X))
    assert unwrapped(other)[0].weight.shape == network[0].weight.shape


def test_parts_of_a_model_may_be_wrapped(tmp_path):
    model, network = nn.Sequential(build()[:6], build()[6:]), nn.Sequential(build()[:6], build()[6:])
    model[0] = torch.compile(model[0], backend="eager")
    inside = model[0]
    plan = sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    assert model[0] is inside and plan == sirfp.prune(network, X, "magnitude", keep_flops=0.5)
    sirfp.save(tmp_path / "p.safetensors", model, plan)
    fresh = nn.Sequential(build()[:6], build()[6:])
    sirfp.load(tmp_path / "p.safetensors", fresh)
    assert torch.equal(fresh.eval()(X), model.eval()(X))


@pytest.mark.parametrize("change", ["prune", "load"])
def test_ddp_goes_on_training_what_is_left(change, tmp_path):
    wrapper = WRAPPERS["DDP"](build())
    if change == "prune":
        sirfp.prune(wrapper, X, "magnitude", keep_flops=0.5)
    else:
        network = build()
        sirfp.save(tmp_path / "p.safetensors", network, sirfp.prune(network, X, "magnitude", keep_flops=0.5))
        sirfp.load(tmp_path / "p.safetensors", wrapper)
    assert wrapper.training
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    for _ in range(3):  # the second step fails if DDP still waits for the parameters that were cut
        before = [p.detach().clone() for p in wrapper.parameters()]
        optimizer.zero_grad()
        wrapper(X)[:, 0].sum().backward()
        optimizer.step()
        assert not torch.equal(before[0], wrapper.module[0].weight)
    assert len(list(wrapper.parameters())) == len(list(build().parameters()))


def test_compiled_code_runs_as_plain_python_meanwhile():
    model, seen = build(), []
    compiled = torch.compile(model, backend=lambda graph, inputs: seen.append(graph) or graph)
    sirfp.prune(compiled, X, "magnitude", keep_flops=0.5)
    assert not seen
    assert compiled(X).shape == (2, 4) and seen


def test_the_wrappers_come_back_after_an_error():
    model = nn.Sequential(torch.compile(build(), backend="eager"))
    inside = model[0]
    with pytest.raises(InputError), plain(model) as network:
        assert network[0] is inside._orig_mod
        raise InputError("stop")
    assert model[0] is inside


class Dictionary(nn.Module):
    """A user's own module around another is a model of its own: its call does more."""

    def __init__(self):
        super().__init__()
        self.module = build()

    def forward(self, x):
        return {"out": self.module(x)}


def test_a_module_that_holds_another_is_no_wrapper(tmp_path):
    model = Dictionary()
    plan = sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    assert unwrapped(model) is model and all(name.startswith("module.") for name in plan.kept)
    both = Classifier(build())
    both.teacher = build()
    assert unwrapped(both) is both


class Late(nn.Module):
    """Makes a layer in its first call."""

    def forward(self, x):
        if not hasattr(self, "layer"):
            self.layer = nn.Conv2d(x.shape[1], 4, 3)
        return self.layer(x)


class FSDPModule(nn.Linear):
    """Stands in for a module that is sharded over processes."""


def test_what_is_no_plain_network_is_refused():
    traced = torch.jit.trace(build().eval(), X)
    for model, words in (
        (build().state_dict(), "load these weights into it"),
        ("resnet18", r"timm.create_model\('resnet18'\)"),
        (lambda x: x, "give the torch.nn.Module that it calls"),
        (None, "no torch.nn.Module, but NoneType"),
        (traced, "TorchScript"),
        (torch.export.export(build().eval(), (X,)).module(), "exported program"),
        (nn.Sequential(nn.LazyConv2d(4, 3)), "'0.weight' has no shape yet"),
        (nn.Sequential(Late()), "makes '0.layer.weight' during its first call; call the model once before"),
        (build().to("meta"), "'0.weight' is on the device 'meta'"),
        (FSDPModule(3, 3), "sharded"),
    ):
        for function in (lambda m: sirfp.prune(m, X, "magnitude", keep_flops=0.5), lambda m: find_groups(m, X)):
            with pytest.raises(InputError, match=words) as error:
                function(model)
            assert "\n" not in str(error.value)


def test_a_compiled_part_is_masked_filled_and_compared():
    model = build()
    model[3] = torch.compile(model[3], backend="eager")
    model.eval()
    small, masked, filled = (copy.deepcopy(model) for _ in range(3))
    plan = sirfp.prune(small, X, "random", keep_flops=0.5, bias_correction=False)
    mask(masked, plan)
    expand(filled, plan, small.state_dict())
    gone = torch.tensor([i for i in range(16) if i not in plan.kept["3"]])
    assert len(gone) and not plain_weight(masked)[gone].any()
    assert torch.equal(plain_weight(masked), plain_weight(filled))
    for other in (masked, filled):
        assert compare(other, small, X, plan).relative < 1e-5 < compare(model, small, X).relative


def plain_weight(model):
    return model[3]._orig_mod.weight
