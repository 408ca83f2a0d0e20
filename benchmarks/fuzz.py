"""Fuzzes the readers of untrusted files: plans, pruned files, weights, configs, studies, annotations, class maps.

    python benchmarks/fuzz.py [--json] [--minutes 10] [--only NAME ...] [--seed 0]

Each target has valid files. Hypothesis edits them (flips bits, truncates, inserts and deletes pieces, replaces parts
of JSON and YAML by odd values) and shrinks each case that fails. A reader must succeed or raise InputError within 20
seconds of one core and 6 GiB, and must not run code. Anything else is a finding: another exception, a hang, a crash.
The targets take turns in rounds of 100 cases, each round in its own process, until the time is over. Findings are
printed and give exit code 1.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import logging
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import sirfp
from sirfp.checkpoint.dense import read_weights
from sirfp.checkpoint.pruned import PLAN_KEY
from sirfp.config import load_config
from sirfp.config.checks import validate
from sirfp.data.coco import check_coco
from sirfp.data.images import known_classes, open_images
from sirfp.data.registration import coco_records
from sirfp.errors import InputError
from sirfp.reporting.tables import Table, comparison, summary, widths
from sirfp.structure.plan import PruningPlan
from sirfp.study import markers, schema
from sirfp.training.checkpointer import Checkpointer

SECONDS, MEMORY, CASES = 20, 6 << 30, 100
ODD = [
    None, True, -1, 0, 1, 2, 3.5, 1 << 31, 1 << 63, 10**30, -(10**18), 1e308, float("nan"), float("inf"), "", "x", "0",
    "x" * 3000, "\x1b[2J", "[/red]", "[bold]", "../..", "\ud800", "\u202e", [], {}, [[]], [0], [1, 0], [0, 0], {"a": 1},
    list(range(300)), ["a", "b"], [["0.weight", 0]], [["0.weight", 9]], [None], {"": {}}, "!!python/name:os.system",
]  # fmt: skip
TOKENS = [b"\x00", b"\xff", b"[", b"]", b"{", b"}", b'"', b":", b",", b"-", b"&a ", b"*a ", b"<<: ", b"!!set ", b"\n",
          b"_BASE_: x", b"9" * 400, b"[" * 400, b"\x80\x04", b"cos\nsystem\n", b"0x", b"1e999",
          b"\xed\xa0\x80"]  # fmt: skip

EDITS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "delete", "copy", "part", "part", "part", "drop", "twice")),
        st.integers(0, 1 << 30),
        st.integers(0, 1 << 30),
    ),
    min_size=1,
    max_size=6,
)
Edits = list[tuple[str, int, int]]


def network() -> nn.Module:
    """The network to which pruned files and checkpoints belong."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ).eval()


def edited(data: bytes, edits: Edits, read: Callable | None, write: Callable | None) -> bytes:
    """Applies edits to bytes; `read` and `write` convert them to plain data and back, for edits of parts."""
    for kind, a, b in edits:
        if kind in ("part", "drop", "twice"):
            try:
                content = read(data) if read else None
            except Exception:
                content = None
            if isinstance(content, (dict, list)):
                data = write(edited_part(content, kind, a, b))
            continue
        if not data:
            continue
        at, size = a % len(data), b % 64 + 1
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ 1 << b % 8]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + TOKENS[b % len(TOKENS)] + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + size :]
        elif kind == "copy":
            data = data[:at] + data[at : at + size] * (b % 40 + 1) + data[at:]
    return data


def edited_part(content: Any, kind: str, a: int, b: int) -> Any:
    """Plain data with one part replaced by an odd value, removed, or doubled."""
    places = list(_places(content))
    if not places:
        return ODD[b % len(ODD)]
    owner, key = places[a % len(places)]
    if kind == "part":
        owner[key] = copy.deepcopy(ODD[b % len(ODD)])
    elif kind == "drop":
        del owner[key]
    elif isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[b % len(owner)]))
    else:
        owner[str(ODD[b % len(ODD)])[:2000]] = copy.deepcopy(owner[key])
    return content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(content.items() if isinstance(content, dict) else enumerate(content)):
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


class Target:
    """A reader and its valid files.

    Args:
        folder: where the files are written.
    """

    suffix = ""
    read: Callable | None = staticmethod(json.loads)
    write: Callable | None = staticmethod(lambda content: json.dumps(content).encode())

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / f"case{self.suffix}"
        self.good = self.make()

    def make(self) -> list[bytes]:
        """The valid files."""
        raise NotImplementedError

    def use(self, data: bytes) -> None:
        """Reads bytes as the content of a user's file."""
        raise NotImplementedError


def planned() -> tuple[nn.Module, PruningPlan]:
    torch.manual_seed(0)
    model = network()
    return model, sirfp.prune(model, torch.zeros(1, 3, 12, 12), "magnitude", 0.5)


class Plan(Target):
    """The text of a plan; a valid plan is also applied and printed."""

    def make(self) -> list[bytes]:
        return [planned()[1].to_json().encode()]

    def use(self, data: bytes) -> None:
        from rich.console import Console

        plan = PruningPlan.from_json(data.decode("utf-8", "surrogateescape"))
        assert PruningPlan.from_json(plan.to_json()) == plan
        found = summary(plan)
        console = Console(file=io.StringIO(), width=140)
        for table in (comparison(found.rows()), widths(found.widths)):
            console.print(table.rich() if isinstance(table, Table) else table)
        json.dumps(found.to_dict()).encode()
        sirfp.surgery.apply(network(), plan)


def read_header(data: bytes) -> Any:
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    plan = header.get("__metadata__", {}).get(PLAN_KEY)
    if plan:
        header["__metadata__"][PLAN_KEY] = json.loads(plan)
    return [header, data[8 + size :].hex()]


def write_header(content: Any) -> bytes:
    header, tensors = (content + [None, ""])[:2] if isinstance(content, list) else (content, "")
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(metadata, dict) and PLAN_KEY in metadata:
        header = {**header, "__metadata__": {**metadata, PLAN_KEY: json.dumps(metadata[PLAN_KEY])}}
    text = json.dumps(header).encode()
    try:
        rest = bytes.fromhex(tensors)
    except (TypeError, ValueError):  # an edit has replaced it by another type
        rest = b""
    return len(text).to_bytes(8, "little") + text + rest


class Pruned(Target):
    """A pruned file: header, plan and tensors."""

    suffix, read, write = ".safetensors", staticmethod(read_header), staticmethod(write_header)

    def make(self) -> list[bytes]:
        sirfp.save(self.file, *planned())
        return [self.file.read_bytes()]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        model = network()
        sirfp.load(self.file, model)
        model(torch.zeros(1, 3, 12, 12))


class Weights(Target):
    """Weights saved by PyTorch, and whole training checkpoints."""

    suffix, read, write = ".pth", None, None

    def make(self) -> list[bytes]:
        result = []
        for packed in (True, False):
            for content in (network().state_dict(), {"model": network().state_dict(), "plan": "", "iteration": 3}):
                torch.save(content, self.file, _use_new_zipfile_serialization=packed)
                result.append(self.file.read_bytes())
        return result

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        for read in (read_weights, Checkpointer(network()).load):
            try:
                read(str(self.file))
            except InputError:
                continue


class Arrays(Weights):
    """Pickles of arrays."""

    suffix = ".pkl"

    def make(self) -> list[bytes]:
        import pickle

        arrays = {name: tensor.numpy() for name, tensor in network().state_dict().items()}
        return [pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol) for protocol in (2, 4, 5)]


class Config(Target):
    """A config file of YAML."""

    suffix, read = ".yaml", staticmethod(yaml.safe_load)
    write = staticmethod(lambda content: yaml.safe_dump(content, allow_unicode=False).encode())
    text = """
MODEL: {META_ARCHITECTURE: RetinaNet, MASK_ON: false, TIMM: {NAME: resnet18, OPTIONS: {drop_path_rate: 0.1}}}
SIRFP: {KEEP_FLOPS: 0.5, STEPS: 2, START_ITER: 4, ACCUMULATE_ITERS: 2, RECOVER_ITERS: 3,
  HOOKS: [Accumulate, PruneSteps], IGNORE: [head], INPUT_SIZE: [64, 64], EMA: 0.9, SPARSITY: {WEIGHT: 0.1}}
SOLVER: {MAX_ITER: 30, BASE_LR: 0.1, STEPS: [10, 20]}
DATASETS: {TRAIN: [a, b], FOLDER: {CLASSES: [x, y], IGNORE: 9}}
"""

    def make(self) -> list[bytes]:
        return [self.text.encode()]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        validate(load_config(self.file))


class Study(Config):
    """A study's file."""

    text = """
folder: out
budgets: [0.5, 0.3]
tasks:
  segmentation:
    metric: sem_seg/mIoU
    models: {small: SCENES}
    iterations: {dense: 2, accumulate: 1, recover: 1, finetune: 1}
    criteria: [random, {name: own, criterion: slimming, hooks: [SlimmingPenalty], overrides: {SIRFP.EMA: 0.5}}]
    seeds: [0, 1]
    steps: 2
    control: true
    overrides: {SOLVER.BASE_LR: 0.1}
"""

    def make(self) -> list[bytes]:
        root = Path(__file__).resolve().parents[1] / "projects/segmentation"
        config = root / "configs/scenes/deeplab_v3_plus_r18.yaml"
        script = f"    script: {root}/train_net.py\n    metric"
        text = self.text.replace("SCENES", str(config)).replace("    metric", script)
        return [text.encode()]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        schema.read_study(self.file)


class Boxes(Target):
    """Annotations in COCO's format."""

    suffix = ".json"

    def make(self) -> list[bytes]:
        (self.folder / "images").mkdir()
        for name in "ab":
            Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(self.folder / f"images/{name}.png")
        images = [{"id": i, "file_name": f"{name}.png", "height": 8, "width": 9} for i, name in enumerate("ab")]
        categories = [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]
        polygon, runs = [[1, 1, 5, 1, 5, 5, 1, 5]], {"size": [8, 9], "counts": [10, 20, 42]}
        annotations = [
            {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": i // 2,
             "segmentation": runs if i > 1 else polygon, "keypoints": [1, 1, 2]}
            for i in range(4)
        ]  # fmt: skip
        return [json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        check_coco(self.file, self.folder / "images")
        coco_records(self.file, self.folder / "images", "fuzzed")


class ClassMap(Target):
    """A list of class names for folders of images."""

    suffix, read, write = ".txt", None, None

    def make(self) -> list[bytes]:
        for name in "ab":
            (self.folder / "set" / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(self.folder / f"set/{name}/0.png")
        return [b"a\nb\n"]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        images = open_images(self.folder / "set", class_map=str(self.file))
        known_classes(images)
        assert all(isinstance(label, int) for _, label in images.reader.samples)


class Marker(Target):
    """The marker files of a study's run."""

    suffix = ".json"

    def make(self) -> list[bytes]:
        rows = {"dense": {"metrics": {"a/b": 1.5}, "flops": 9, "params": 4, "latency": 0.1}}
        found = {"fingerprint": "f", "seconds": 3.0, "rows": rows, "flops": [9, 4], "widths": {"a": [1, 2]}}
        failed = {"cause": "x", "tail": ["a", "b"], "settings": {"a": 1}}
        return [json.dumps(found).encode(), json.dumps(failed).encode()]

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        markers.read_done(self.file)
        markers.read_failed(self.file)


TARGETS = {
    kind.__name__.lower(): kind
    for kind in (Plan, Pruned, Weights, Arrays, Config, Study, Boxes, ClassMap, Marker)
}


@contextmanager
def limited() -> Iterator[None]:
    """Raises TimeoutError if the block takes more than SECONDS of processor time."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attack(name: str, seed: int, cases: int = CASES) -> int:
    """Runs cases of a target; raises a finding with the smallest case in its notes. Returns the number accepted."""
    accepted = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = TARGETS[name](Path(folder))
        for data in target.good:
            target.use(data)

        @seeded(seed)
        @settings(
            max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
        )
        @given(st.integers(0, len(target.good) - 1), EDITS)
        def survives(which: int, edits: Edits) -> None:
            nonlocal accepted
            data = edited(target.good[which], edits, target.read, target.write)
            try:
                with limited():
                    target.use(data)
                accepted += 1
            except InputError as error:
                assert "\n" not in str(error) or name == "weights"
            except BaseException as error:
                error.add_note(f"{name}: {data[:600]!r}") if hasattr(error, "add_note") else None
                raise

        survives()
    return accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if args.round:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        torch.set_num_threads(1)
        print(json.dumps({"accepted": attack(args.only[0], args.seed)}))
        return 0
    end, turn = time.monotonic() + 60 * args.minutes, 0
    counts = {name: {"cases": 0, "accepted": 0, "findings": 0} for name in args.only}
    while time.monotonic() < end:
        name = args.only[turn % len(args.only)]
        words = ["--round", "--only", name, "--seed", f"{args.seed + turn}"]
        ended = subprocess.run([sys.executable, "-X", "faulthandler", __file__, *words], capture_output=True, text=True)
        turn += 1
        counts[name]["cases"] += CASES
        if ended.returncode:
            counts[name]["findings"] += 1
            print(f"{name}, --seed {args.seed + turn - 1}: ended with {ended.returncode}", file=sys.stderr)
            print("\n".join(ended.stderr.splitlines()[-30:]), file=sys.stderr)
        else:
            counts[name]["accepted"] += json.loads(ended.stdout.splitlines()[-1])["accepted"]
    if args.json:
        print(json.dumps(counts, indent=2))
    else:
        for name, count in counts.items():
            said = f"{count['cases']:7} cases, {count['accepted']:6} read, {count['findings']} rounds with a finding"
            print(f"{name:10} {said}")
    return int(any(count["findings"] for count in counts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
