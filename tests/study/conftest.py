"""A study over the fake `train_net.py`, in a folder of its own."""

import contextlib
import io
from collections.abc import Iterator

import pytest
from study_bench import Bench

from sirfp.study import html_report, scheduler


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Looks at runs often, and has no report ask Git and the installed packages for their versions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "POLL_SECONDS", 0.02)
        patch.setattr(html_report, "versions", lambda: "sirfp")
        yield


@pytest.fixture
def bench(tmp_path):
    with quick():
        yield Bench(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished study, with its calls and what it printed; tests may start it again, and add files."""
    bench, said = Bench(tmp_path_factory.mktemp("finished")), io.StringIO()
    bench.content["overrides"] = {"TEST.NOTE": "<script>alert(1)</script>"}
    with quick(), contextlib.redirect_stderr(said):
        assert bench.run("--jobs", "4") == 0
    bench.started, bench.said = bench.calls(), said.getvalue()
    return bench
