"""The command that runs all benchmarks: figures and bounds, stored results, tables."""

import json

import pytest
from scripts import loaded

SCORING = {"layers": 62, "greedy_s": 0.1, "ratio": 150.0, "greedy_4096_s": 0.5, "machine": {"cores": 2}}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the command in its own folder with fake benchmarks; returns the exit code and the output."""
    with loaded("benchmarks/run.py") as module:
        answers = {"scoring": SCORING}

        def run_benchmark(name, output, quick):
            answers.setdefault("asked", []).append(name)
            return {"command": f"python benchmarks/{name}.py", "seconds": 1.0, "result": answers[name]}

        def call(*words):
            monkeypatch.setattr("sys.argv", ["run.py", "--output", str(tmp_path), *words])
            return module.main(), capsys.readouterr().out

        monkeypatch.setattr(module, "run_benchmark", run_benchmark)
        call.answers = answers
        yield call


def test_figures_stand_beside_their_bounds_and_are_kept(run):
    code, said = run("--only", "scoring")
    assert code == 0 and "150 times as fast (bound 100 times: met)" in said
    assert run("--only", "scoring") == (0, "") and run.answers["asked"] == ["scoring"]  # kept, not measured again
    code, table = run("--table")
    assert code == 0 and "| scoring 4096 channels" in table and "Machine: cores 2." in table
    code, text = run("--json")
    assert [row["met"] for row in json.loads(text)["figures"]["scoring"]] == [True] * 3


def test_what_is_beyond_its_bound_ends_with_1(run):
    run.answers["scoring"] = SCORING | {"ratio": 99.0}
    code, said = run("--only", "scoring")
    assert code == 1 and "NOT MET" in said


@pytest.mark.parametrize("result", [{"failed": "ended with 1 and no JSON"}, {"layers": 62}])
def test_a_benchmark_that_failed_is_beyond_its_bound(run, result):
    run.answers["scoring"] = result
    assert run("--only", "scoring")[0] == 1
    assert run("--table")[0] == 1


def test_nothing_kept_is_not_success(run):
    assert run("--table")[0] == 1


def test_every_benchmark_s_name_has_a_reader():
    with loaded("benchmarks/run.py") as module:
        assert all(any(name.startswith(prefix) for prefix in sys_figures().READERS) for name in module.BENCHMARKS)


def sys_figures():
    import figures

    return figures


def test_what_takes_long_is_measured_only_where_it_is_named_and_shown_with_all(run):
    found = {"within_half_a_percent": 206, "worst": 0.001, "beyond": {}}
    run.answers["budgets-all"] = {"networks": 206, "round_to_1": found, "machine": {"cores": 2}}
    run.answers["scoring"] = SCORING
    assert run("--only", "budgets-all")[0] == 0
    assert "206 of 206 networks" in run("--table")[1]
    with loaded("benchmarks/run.py") as module:
        assert set(module.LONG) < set(module.BENCHMARKS)


def test_how_the_cost_of_an_update_grows_is_a_table():
    case = {"stride": 1, "images": 2, "extra_bytes": 0}
    rows = [
        case | {"channels": c, "size": size, "seconds": c**2 * size[0] * size[1] / 1e9}
        for c in (64, 128)
        for size in ((8, 16), (16, 32))
    ]
    with loaded("benchmarks/run.py"):
        text, table = sys_figures().kernel_tables({"rows": rows})
        values = [figure.value for figure in sys_figures().kernel({"rows": rows, "skipped": []})]
    assert "stride 1" in text and "| 128      |    2.1 |     8.4 |" in table
    assert values.count("4.0 times the time") == 2
