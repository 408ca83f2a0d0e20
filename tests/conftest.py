"""Fixtures for all tests: real data sets, if they are installed, and clean catalogs."""

import functools
import gc
import logging
import os
import sys
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import hypothesis
import pytest
import torch
from data_folders import hide_folder_of_data
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map

from sirfp.network import kept_memory

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start: several tests run at a time
os.environ["SIRFP_PATIENCE"] = "inf"  # on a busy machine any command is a long one, which says its stages
torch.set_num_threads(1)  # networks this small only wait for each other's threads
# Autograd counts devices once, at the first backward. `torch.export` pretends to have a GPU: after it, autograd would
# start a thread for it, and tests that fork could no longer train in the child.
torch.ones(1, requires_grad=True).backward()
hide_folder_of_data()


def pytest_configure(config):
    """Has hypothesis draw the same cases in each `make test`, so that no change fails by chance."""
    hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
    hypothesis.settings.register_profile("drawn", derandomize=False, deadline=None)
    hypothesis.settings.load_profile("same" if config.option.markexpr == "not slow" else "drawn")


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """Restores logging: benchmarks disable it, runs add handlers that write into the output of their own test."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)
    for name in ("fvcore", "detectron2", "sirfp"):
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
            logger.removeHandler(handler)


@pytest.fixture(autouse=True, scope="session")
def memory():
    """Keeps freed memory in the process, also between prunings, instead of taking and clearing it anew."""
    with kept_memory.kept_memory(nn.Identity()):
        yield


@pytest.fixture(autouse=True, scope="session")
def operators():
    """Has PyTorch's exporter look up once what each operator becomes, which does not change.

    For every file it would read the source of 500 functions of onnxscript, in half a second.
    """

    def export(*args, **kwargs):
        from torch.onnx._internal.exporter._registration import onnxscript_apis

        build = getattr(onnxscript_apis, "get_torchlib_ops", None)
        if build is not None and not hasattr(build, "cache_info"):
            patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(build))
        return own(*args, **kwargs)

    own = torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export)
        yield


@pytest.fixture
def usual_memory(monkeypatch):
    """Ends the effect of `memory` for a test."""
    set_option = kept_memory._mallopt()
    if set_option is None:
        yield
        return
    monkeypatch.setattr(kept_memory, "_active", [])
    kept_memory._give_back(set_option)
    yield
    set_option(kept_memory._MMAP_THRESHOLD, kept_memory._LARGEST)
    set_option(kept_memory._TRIM_THRESHOLD, kept_memory._LARGEST)


@pytest.fixture(autouse=True, scope="module")
def collected():
    """Exempts what is alive between two modules of tests, mostly imported code, from later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def short_timing():
    """Times the latencies of a run's report by few calls; tests/network/test_latency.py tests the seconds."""
    report = sys.modules.get("sirfp.hooks.report")
    if report:
        report.TIMED = 0.0


@pytest.fixture
def undrawn(monkeypatch):
    """Composes the figures of a run's report and writes a blank one for each: to draw takes a fifth of a tiny run.

    Runs that draw are the whole ones of tests/hooks/test_hooks.py and test_curve_files.py, which modules share.
    """
    blank = Image.new("L", (1, 1))
    monkeypatch.setattr("sirfp.reporting.figures._write", lambda figure, path: blank.save(path, "PNG"))


@pytest.fixture(scope="session")
def groups_of_runs():
    """What `found_once` and `found_again` have found."""
    return {}


@pytest.fixture
def found_once(groups_of_runs, monkeypatch):
    """Finds the groups of networks of the same layers and sizes once, for training runs of tests of what comes after.

    To find them takes a third of a tiny run. What depends on weights, a training run finds again before each cut.
    """
    find_less(groups_of_runs, monkeypatch, lambda model, inputs, ignore, found: found)


@pytest.fixture
def found_again(groups_of_runs, monkeypatch):
    """Tries cuts on copies of networks of the same layers and sizes once, and has only the constants found again.

    For tests of what comes after, as a training run does after each interval of training.
    """
    from sirfp.channels import find_again

    find_less(groups_of_runs, monkeypatch, find_again)


@pytest.fixture
def untried(monkeypatch):
    """Finds groups without cutting copies on trial, half of the time or more: for tests of what comes after."""
    from sirfp import session

    monkeypatch.setattr(session, "find_groups", functools.partial(session.find_groups, trial=False))


def find_less(known, monkeypatch, again):
    """Has prunings ask `again` for groups of a network that is known."""
    from sirfp import session

    def find(model, inputs, ignore=(), **options):
        sizes = [(name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()]
        shapes = tree_map(lambda part: part.shape if isinstance(part, torch.Tensor) else part, inputs)
        key = f"{model} {sizes} {shapes} {ignore} {options}"
        if key in known:
            return again(model, inputs, ignore, known[key])
        known[key] = found = own(model, inputs, ignore, **options)
        return found

    own = session.find_groups
    monkeypatch.setattr(session, "find_groups", find)


@pytest.fixture
def known_groups(monkeypatch):
    """A function that has prunings of a network take groups found before; a network that is cut is searched again.

    To find them takes most of the time of a small pruning, and neither a criterion nor a correction changes them.
    """
    from sirfp.channels import find_groups

    def take(found, dense):
        def known(model, *given, **options):
            return found if parameters(model) == before else find_groups(model, *given, **options)

        before = parameters(dense)
        monkeypatch.setattr(sys.modules["sirfp.session"], "find_groups", known)

    def parameters(model):
        return sum(p.numel() for p in model.parameters())

    return take


@pytest.fixture
def clean_catalogs():
    """Gives each test empty catalogs of Detectron2, and restores them afterwards."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from sirfp.data import registration

    def forget():
        for known in list(registration._registered):
            registration._registered.pop(known)
            for catalog in (DatasetCatalog, MetadataCatalog):
                if known in catalog:
                    catalog.remove(known)

    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def forks():
    """A context in which the processes of a run are forked: they import nothing, which takes longer than a tiny run.

    What a new process would need is pickled nevertheless; slow tests in test_processes.py start new processes.
    """
    from sirfp.training import launch

    def start(function, args, *, start_method, **options):
        ForkingPickler.dumps((function, args))
        return spawn(function, args, start_method="fork", **options)

    @contextmanager
    def forked():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch.mp, "start_processes", start)
            yield

    spawn = launch.mp.start_processes
    return forked


@pytest.fixture
def forking(forks):
    """Forks the processes of the runs in a test."""
    with forks():
        yield


@pytest.fixture(scope="session")
def real_data():
    """A function from a data set's name to its folder; skips the test if the data set is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SIRFP_TEST_DATA", beside))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"real data {name!r} not found in {root} (set SIRFP_TEST_DATA to its folder)")
        return root / name

    return folder
