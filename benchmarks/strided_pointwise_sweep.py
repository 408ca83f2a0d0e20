"""Which convolutions corrupt memory, or have wrong gradients, when trained on a processor (oneDNN issue 6035).

    python benchmarks/strided_pointwise_sweep.py [--isa AVX2 ALL] [--threads 1 2] [--guarded] [--markdown FILE]

Every case is one layer, run forward and backward in its own process with glibc's memory checks (Linux only). If it does
not crash, its gradients are compared with those in float64. `--isa` lists values of ONEDNN_MAX_CPU_ISA, with which
oneDNN uses the kernels of an older processor. `--guarded` runs the layers with `sirfp.network.strided_pointwise.guard`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

MALLOC_DEBUG = "libc_malloc_debug.so.0"
LIMIT = 15
"""Seconds after which a case counts as hanging."""
REPEATS = 6
"""Backward passes of a case; a single one may corrupt memory that is never read."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
FORMATS = {
    2: {"last": torch.channels_last, "contiguous": torch.contiguous_format},
    3: {"last": torch.channels_last_3d, "contiguous": torch.contiguous_format},
}


@dataclass(frozen=True)
class Case:
    """One layer and its input.

    Attributes:
        inputs: input channels of a group.
        outputs: output channels of a group.
        size: height and width (and depth, or length) of the input.
        kernel: its size in every dimension.
        stride: by dimension.
        batch: images.
        groups: of the convolution.
        dims: 1, 2 or 3.
        transposed: a transposed convolution.
        dtype: "float32" or "bfloat16", in which all tensors are.
        x: memory format of the input, "last" or "contiguous".
        weight: memory format of the weight.
    """

    inputs: int
    outputs: int = 8
    size: int = 64
    kernel: int = 1
    stride: tuple[int, ...] = (2, 2)
    batch: int = 4
    groups: int = 1
    dims: int = 2
    transposed: bool = False
    dtype: str = "float32"
    x: str = "last"
    weight: str = "last"


EVERY = (*range(1, 18), 24, 33)
SOME = (1, 2, 4, 7, 8, 12, 15, 16, 24)
"""Numbers of channels to try on maps of each size, and in all other settings."""


def cases() -> Iterator[tuple[str, Case]]:
    """The cases to try: numbers of channels in each of the named settings."""
    base = Case(1)
    settings: list[tuple[str, Case]] = []
    for size in (8, 16, 32, 64, 128):
        for outputs in (8, 102):
            settings.append((f"{size} x {size} map, {outputs} outputs", replace(base, size=size, outputs=outputs)))
    wide = replace(base, size=64)
    settings += [
        ("stride 1", replace(wide, stride=(1, 1))),
        ("stride 3", replace(wide, stride=(3, 3))),
        ("stride 3, size 63", replace(wide, stride=(3, 3), size=63)),
        ("stride 3, size 126", replace(wide, stride=(3, 3), size=126)),
        ("stride 4, size 128", replace(wide, stride=(4, 4), size=128)),
        ("stride 2, size 63", replace(wide, size=63)),
        ("one image", replace(wide, batch=1)),
        ("stride (1, 2)", replace(wide, stride=(1, 2))),
        ("stride (2, 1)", replace(wide, stride=(2, 1))),
        ("3 x 3, stride 1", replace(wide, kernel=3, stride=(1, 1))),
        ("3 x 3, stride 2", replace(wide, kernel=3)),
        ("bfloat16", replace(wide, dtype="bfloat16")),
        ("contiguous input and weight", replace(wide, x="contiguous", weight="contiguous")),
        ("contiguous input alone", replace(wide, x="contiguous")),
        ("contiguous weight alone", replace(wide, weight="contiguous")),
        ("2 groups", replace(wide, groups=2)),
        ("8 groups of 8 outputs", replace(wide, groups=8, batch=1)),
        ("16 groups of 1 output", replace(wide, groups=16, outputs=1, batch=1)),
        ("transposed, its inputs counted", replace(wide, size=32, transposed=True)),
        ("transposed, its outputs counted", replace(wide, size=32, transposed=True)),
        ("transposed, its outputs counted, 102 inputs", replace(wide, size=32, transposed=True, inputs=102)),
        ("3-D", replace(base, dims=3, size=32, stride=(2, 2, 2))),
        ("3-D, contiguous", replace(base, dims=3, size=32, stride=(2, 2, 2), x="contiguous", weight="contiguous")),
        ("1-D", replace(base, dims=1, size=4096, stride=(2,), x="contiguous", weight="contiguous")),
        ("1-D, input channels last", replace(base, dims=1, size=4096, stride=(2,), weight="contiguous")),
    ]
    for name, setting in settings:
        counted = "outputs" if "its outputs" in name else "inputs"
        for count in EVERY if " map, " in name else SOME:
            yield name, replace(setting, **{"inputs": max(8, setting.inputs), counted: count})


def build(case: Case) -> tuple[nn.Module, torch.Tensor]:
    """The layer and its input, which requires a gradient, both with fixed random values."""
    torch.manual_seed(0)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    layer = kinds[case.transposed][case.dims - 1](
        case.inputs * case.groups, case.outputs * case.groups, case.kernel, case.stride, groups=case.groups
    )
    x = torch.randn(case.batch, case.inputs * case.groups, *[case.size] * case.dims)
    dtype = getattr(torch, case.dtype)
    layer, x = layer.to(dtype), x.to(dtype)
    if case.dims > 1:
        layer = layer.to(memory_format=FORMATS[case.dims][case.weight])
        x = x.contiguous(memory_format=FORMATS[case.dims][case.x])
    elif case.x == "last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return layer, x.requires_grad_()


def error(case: Case, guarded: bool) -> float:
    """The largest relative distance of a gradient (weight, bias, input) from float64's, over several passes."""
    layer, x = build(case)
    if guarded:
        from sirfp.network.strided_pointwise import guard

        guard(layer)
    exact, exact_x = build(case)
    exact, exact_x = exact.double(), exact_x.detach().double().requires_grad_()
    out = exact(exact_x)
    grad = torch.randn(out.shape, dtype=torch.float64).to(x.dtype)
    wanted = torch.autograd.grad(out, [exact_x, *exact.parameters()], grad.double())
    if case.x == "last" and case.dims > 1:
        grad = grad.contiguous(memory_format=FORMATS[case.dims]["last"])
    worst = 0.0
    for _ in range(REPEATS):
        found = torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)
        for mine, true in zip(found, wanted, strict=True):
            distance = float((mine.double() - true).norm() / true.norm())
            worst = max(worst, distance if distance == distance else float("inf"))
    return worst


def judge(case: Case, threads: int, guarded: bool) -> str:
    """Runs a case in a child process: "right", "wrong ...", "hangs" or the signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(LIMIT)
        torch.set_num_threads(threads)
        try:
            text = f"{error(case, guarded):.1e}"
        except RuntimeError as problem:
            text = f"error {problem}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGALRM:
        return "hangs"
    if status:
        return "crashes"
    if said.startswith("error"):
        return said
    return "right" if float(said) <= TOLERANCE[case.dtype] else f"wrong by {said}"


def spans(numbers: Sequence[int], tried: Sequence[int]) -> str:
    """Numbers as ranges, e.g. "1-7, 9", where neighbours in `tried` are joined."""
    parts = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: tried.index(pair[1]) - pair[0]):
        run = [number for _, number in run]
        parts.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)


def sweep(isa: str, threads: int, guarded: bool) -> list[dict]:
    """Runs all cases in this process, which was started with an ISA and with glibc's checks."""
    found = []
    torch.set_num_threads(1)
    importlib.import_module("torch.fx.experimental.symbolic_shapes")  # imported by the first gradient
    for name, case in cases():
        outcome = judge(case, threads, guarded)
        print(f"\r{isa}, {threads}: {name}, {case.inputs}: {outcome}".ljust(90), end="", file=sys.stderr, flush=True)
        counted = case.outputs if "its outputs" in name else case.inputs
        found.append({"setting": name, "isa": isa, "threads": threads, "count": counted, "outcome": outcome})
    return found


def started(isa: str, threads: int, guarded: bool) -> list[dict]:
    """Runs all cases in a new process with an ISA and with glibc's checks."""
    folder = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    library = next((line.split()[-1] for line in folder.splitlines() if MALLOC_DEBUG in line), None)
    if library is None:
        raise SystemExit(f"{MALLOC_DEBUG} is not installed: it comes with glibc 2.34 and later")
    environment = {**os.environ, "LD_PRELOAD": library, "MALLOC_CHECK_": "3", "ONEDNN_MAX_CPU_ISA": isa}
    environment.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads look like a hang on busy cores
    with tempfile.TemporaryDirectory() as at:
        path = Path(at) / "found.json"
        command = [sys.executable, __file__, "--child", str(path), "--isa", isa, "--threads", str(threads)]
        subprocess.run(command + ["--guarded"] * guarded, env=environment, check=True)
        return json.loads(path.read_text())


def table(found: Sequence[dict]) -> str:
    """The affected numbers of inputs, with a row per setting and a column per ISA and number of threads."""
    columns = list(dict.fromkeys((f["isa"], f["threads"]) for f in found))
    settings = list(dict.fromkeys(f["setting"] for f in found))
    lines = ["| setting | " + " | ".join(f"{isa}, {n} thread{'s' * (n > 1)}" for isa, n in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for setting in settings:
        row = []
        for column in columns:
            here = [f for f in found if f["setting"] == setting and (f["isa"], f["threads"]) == column]
            tried = [f["count"] for f in here]
            kinds: dict[str, list[int]] = {}
            for f in here:
                kinds.setdefault(f["outcome"].partition(" ")[0], []).append(f["count"])
            bad = [f"{kind} {spans(numbers, tried)}" for kind, numbers in kinds.items() if kind != "right"]
            row.append("; ".join(bad) or "right")
        lines.append(f"| {setting} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name and its vector instructions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), name)
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), PyTorch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", default=["AVX2", "ALL"], help="values of ONEDNN_MAX_CPU_ISA")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--guarded", action="store_true", help="with sirfp.network.strided_pointwise")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.child.write_text(json.dumps(sweep(args.isa[0], args.threads[0], args.guarded)))
        return 0
    found: list[dict] = []
    for isa in args.isa:
        for threads in args.threads:
            found += started(isa, threads, args.guarded)
    text = f"{processor()}\n\n{table(found)}\n"
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    return int(args.guarded and any(f["outcome"] != "right" for f in found))


if __name__ == "__main__":
    raise SystemExit(main())
