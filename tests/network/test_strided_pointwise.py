"""Strided 1 x 1 convolutions of few inputs train correctly on processors, and nothing else about them changes."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.layers import Conv2d
from small_networks import Strided
from torch import nn
from torch.overrides import _get_current_function_mode

import sirfp
from sirfp.exporting import missing_packages
from sirfp.exporting.writing import write_fixed
from sirfp.network import strided_pointwise
from sirfp.network.strided_pointwise import guard, is_guarded
from sirfp.verify import mask

HERE = Path(__file__).resolve().parents[1]
TOLERANCE = 0.01
"""Relative error of a gradient in float32, next to float64; those that the fault makes wrong are off by 0.1 to 3."""
EXAMPLE = torch.zeros(1, 3, 16, 16)
needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")


@pytest.fixture(autouse=True)
def on_x86(monkeypatch):
    """Makes the guard act on any processor."""
    monkeypatch.setattr(strided_pointwise, "_X86", True)


def pruned(kind: type[nn.Module] = nn.Conv2d, seed: int = 0) -> tuple[nn.Module, sirfp.PruningPlan]:
    torch.manual_seed(seed)
    model = Strided(kind)
    plan = sirfp.prune(model, EXAMPLE, "magnitude", 0.3)
    return model, plan


def stride_of(output: torch.Tensor) -> tuple[int, ...]:
    """The stride of the convolution that made a tensor."""
    return tuple(output.grad_fn._saved_stride)


# ---- under glibc's checks of memory ---------------------------------------------------------------


def malloc_debug() -> str:
    """glibc's checking malloc; "" where there is none."""
    name = "libc_malloc_debug.so.0"
    places = [Path(at) for at in ("/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib")]
    return next((str(at / name) for at in places if (at / name).is_file()), "")


def has_avx512() -> bool:
    """Whether the processor has instructions beyond AVX2 for floats; without them, "ALL" runs the kernels of "AVX2"."""
    return "avx512f" in Path("/proc/cpuinfo").read_text().split()


def train(isa: str, threads: int, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs `strided_training.py`, and returns how it ended and what it said."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "LD_PRELOAD": malloc_debug(), "MALLOC_CHECK_": "3"}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that spin take minutes on cores that others use
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "strided_training.py"), str(threads), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)


def numbers(said: str, words: str) -> list[float]:
    """Returns the numbers behind some words, which begin a line."""
    return [float(number) for number in re.findall(rf"^{words} (\S+)$", said, re.MULTILINE)]


OTHERS = (("ALL", 1), ("AVX2", 2), ("ALL", 2))


@pytest.mark.skipif(not malloc_debug(), reason="the C library has no malloc_debug")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor has no such kernels")
@pytest.mark.parametrize(
    ("isa", "threads", "flags"),
    [
        ("AVX2", 1, []),
        pytest.param("AVX2", 1, ["--detectron2"], marks=pytest.mark.slow),  # below, its layers run as PyTorch's do
        *(pytest.param(*one, ["--detectron2"], marks=pytest.mark.slow) for one in OTHERS),
    ],
)
def test_guarded_networks_train_where_the_bare_layer_does_not(isa, threads, flags):
    if isa == "ALL" and not has_avx512():
        pytest.skip("the processor has no AVX-512: the kernels are those of AVX2, which are tried alone")
    ended = train(isa, threads, *flags)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    errors = numbers(ended.stdout, "error")
    assert len(errors) == 6 + len(flags) and max(errors) < TOLERANCE, said
    (status,), bare = numbers(ended.stdout, "bare ended"), numbers(ended.stdout, "bare error")
    if status == 0 and max(bare) < TOLERANCE:
        pytest.skip("a bare layer trains rightly with this processor and PyTorch: nothing was to be guarded against")
    assert status or not max(bare) <= 5 * TOLERANCE, said


# ---- what the guard does --------------------------------------------------------------------------

LAYERS = {
    "plain": (lambda: nn.Conv2d(4, 8, 1, 2), (2, 4, 9, 12)),
    "another stride by dimension": (lambda: nn.Conv2d(4, 8, 1, (1, 3)), (2, 4, 9, 12)),
    "with padding": (lambda: nn.Conv2d(4, 8, 1, 2, (1, 2)), (2, 4, 9, 12)),
    "padding by a word": (lambda: nn.Conv2d(4, 8, 1, 2, "valid"), (2, 4, 9, 12)),
    "15 inputs": (lambda: nn.Conv2d(15, 4, 1, 2), (2, 15, 8, 8)),
    "no batch": (lambda: nn.Conv2d(4, 8, 1, 2), (4, 9, 12)),
    "circular padding": (lambda: nn.Conv2d(4, 8, 1, 2, 1, padding_mode="circular"), (2, 4, 9, 12)),
    "Detectron2's": (lambda: Conv2d(4, 8, 1, 2, norm=nn.Identity(), activation=torch.tanh), (2, 4, 9, 12)),
    "timm's": (lambda: timm.layers.StdConv2dSame(4, 8, 1, 2), (2, 4, 9, 12)),
    "normed weights": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 1, 2)), (2, 4, 9, 12)),
}


@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_same_numbers_come_from_stride_one(build, shape):
    torch.manual_seed(0)
    plain = build().double()
    layer = guard(copy.deepcopy(plain))
    assert is_guarded(layer) and guard(layer) is layer and len(layer._forward_pre_hooks) == 1
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    strides = []
    with Recorder(strides):
        out = layer(x)
    assert set(strides) == {1} and _get_current_function_mode() is None
    wanted = plain(x)
    assert torch.allclose(out, wanted)
    grad = torch.randn_like(wanted)
    for mine, true in zip(
        torch.autograd.grad(out, [x, *layer.parameters()], grad),
        torch.autograd.grad(wanted, [x, *plain.parameters()], grad),
        strict=True,
    ):
        assert torch.allclose(mine, true)


class Recorder(torch.overrides.TorchFunctionMode):
    """Notes the strides of the convolutions that are run inside it."""

    def __init__(self, strides: list[int]):
        super().__init__()
        self.strides = strides

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            stride = args[3] if len(args) > 3 else (kwargs or {}).get("stride", 1)
            self.strides += [stride] if isinstance(stride, int) else stride
        return func(*args, **(kwargs or {}))


def test_no_other_layer_is_touched():
    others = nn.ModuleList(
        [
            nn.Conv2d(4, 8, 1),
            nn.Conv2d(16, 8, 1, 2),
            nn.Conv2d(4, 8, 3, 2),
            nn.Conv2d(4, 8, (1, 3), 2),
            nn.Conv2d(8, 8, 1, 2, groups=2),
            nn.Conv1d(4, 8, 1, 2),
            nn.Conv3d(4, 8, 1, 2),
            nn.ConvTranspose2d(4, 8, 1, 2),
            nn.Linear(4, 8),
            nn.MaxPool2d(1, 2),
            nn.LazyConv2d(8, 1, 2),
        ]
    )
    assert not any(map(is_guarded, guard(others).modules()))
    common = guard(timm.create_model("resnet18"))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in common.modules())


def test_it_acts_only_where_a_gradient_is_taken():
    layer, x, strides = guard(nn.Conv2d(4, 8, 1, 2)), torch.randn(1, 4, 8, 8), []
    with torch.no_grad(), Recorder(strides):
        layer(x)
    assert strides == [2, 2] and layer.stride == (2, 2)
    with Recorder(strides):
        layer(input=x)
        layer.to("meta")(x.to("meta"))
    assert strides == [2, 2, 1, 2, 2]


@pytest.mark.parametrize("first", [True, False])
def test_an_error_inside_leaves_no_trace(first):
    layer = nn.Conv2d(4, 8, 1, 2)

    def fail(module, inputs):
        raise RuntimeError("on purpose")

    if first:
        layer.register_forward_pre_hook(fail)
    guard(layer)
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 5, 8, 8))
    assert _get_current_function_mode() is None


# ---- a pruned network stays what it was -----------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2d])
def test_a_pruned_network_equals_the_masked_dense_one_in_training(kind):
    torch.manual_seed(0)
    dense = Strided(kind)
    model = copy.deepcopy(dense)
    plan = sirfp.prune(model, EXAMPLE, "magnitude", 0.3, bias_correction=False)
    assert is_guarded(model.short) and list(model.state_dict()) == list(dense.state_dict())
    mask(dense, plan)
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(model.train()(x), dense.train()(x), atol=1e-5)
    assert stride_of(model.short(model.stem(x))) == (1, 1)


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2d])
def test_files_and_copies_are_guarded_too(tmp_path, kind):
    model, plan = pruned(kind)
    sirfp.save(tmp_path / "small.safetensors", model, plan)
    fresh = Strided(kind).eval()
    sirfp.load(tmp_path / "small.safetensors", fresh)
    model.eval()
    x = torch.randn(2, 3, 16, 16)
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_guarded(other.short) and stride_of(other.short(other.stem(x))) == (1, 1)
        assert torch.equal(other(x), model(x))


def test_it_is_cut_again_as_it_would_be_without_the_guard():
    model, _ = pruned()
    bare = copy.deepcopy(model)
    for module in bare.modules():
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    options = {"criterion": "taylor", "keep_flops": 0.6, "loss": lambda m, batch: m(batch).square().mean()}
    batches = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    again, wanted = (sirfp.prune(m, EXAMPLE, calibration=batches, **options) for m in (model, bare))
    assert again == wanted and again.flops[1] < again.flops[0]
    assert is_guarded(model.short) and len(model.short._forward_pre_hooks) == 1


def test_it_compiles_and_scripts():
    model, _ = pruned()
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    strides = []

    def backend(graph, inputs):
        strides.extend((*n.args, 1)[3] for n in graph.graph.nodes if n.target is torch.conv2d)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert sorted(map(str, strides)) == ["(1, 1)"] * 3 + ["(2, 2)", "1"]
    scripted, traced = torch.jit.script(copy.deepcopy(model)), torch.jit.trace(model, x)
    assert torch.allclose(scripted(x), model(x), atol=1e-6) and torch.allclose(traced(x), model(x), atol=1e-6)


@needs_onnx
def test_it_is_exported(tmp_path):
    model, _ = pruned()
    assert is_guarded(model.short)
    file = tmp_path / "small.onnx"
    write_fixed(model, EXAMPLE, file)
    import onnx

    assert not {"Slice"} & {node.op_type for node in onnx.load(file).graph.node}, "the layer is exported as it is"


def test_the_sweep_knows_its_cases():
    spec = importlib.util.spec_from_file_location("sweep", HERE.parent / "benchmarks" / "strided_pointwise_sweep.py")
    sweep = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = sweep
    spec.loader.exec_module(sweep)
    assert sweep.spans([1, 2, 3, 24, 33], [1, 2, 3, 4, 24, 33]) == "1-3, 24-33"
    case = sweep.Case(4, size=4, x="contiguous", weight="contiguous")
    assert sweep.error(case, guarded=False) < 1e-5
    assert {(c.dims, c.transposed, c.dtype) for _, c in sweep.cases()} >= {(1, False, "float32"), (2, True, "float32")}
