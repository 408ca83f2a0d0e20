"""Rows of a study beside its criteria: variants of every row, and pruned networks that are trained from scratch."""

from __future__ import annotations

import pytest

from sirfp.study import grid

REFITTED = {"refitted": {"overrides": {"SIRFP.RECONSTRUCTION_ITERS": 4}}}


@pytest.fixture
def small(bench):
    bench.content |= {"criteria": ["sirfp", {"name": "new", "scratch": "sirfp"}], "budgets": [0.5], "seeds": [1]}
    return bench


def test_a_pruned_network_is_trained_from_scratch_after_its_pruning(small):
    assert small.run("--jobs", "4") == 0
    dense, pruning, scratch = (call["options"] for call in small.calls())
    assert scratch["SIRFP.PLAN"] == f"{pruning['OUTPUT_DIR']}/plan.json" and "MODEL.WEIGHTS" not in scratch
    assert int(scratch["SOLVER.MAX_ITER"]) == int(dense["SOLVER.MAX_ITER"]) + int(pruning["SOLVER.MAX_ITER"]) == 22
    assert (scratch["SIRFP.KEEP_FLOPS"], scratch["SIRFP.HOOKS"], scratch["SEED"]) == ("1.0", "[]", "1")
    assert not list((small.root / "out/cells").glob("*/*.pth"))
    rows = {row["criterion"]: row for row in small.results()["rows"]}
    new, sirfp = rows["new"], rows["sirfp"]
    assert (new["budget"], new["mean"], new["change"], new["cut"]) == (0.5, 46.0, -15.0, None)  # of 61 dense
    assert all(new[key] == sirfp[key] for key in ("flops", "flops_kept", "params", "params_kept"))
    assert small.run() == 0 and small.calls() == [], "all is done"
    page = (small.root / "out/report.html").read_text()
    assert page.count("new: task/score 46.00 at 50.0% of the FLOPs") == 1, "a point of the chart"


def test_only_names_all_that_a_run_needs(small, capsys):
    assert small.run("--list", "--only", "/new/") == 0
    listed = capsys.readouterr().out
    assert all(f"task/net/{name}" in listed for name in ("dense/seed1", "sirfp/0.5/seed1", "new/0.5/seed1"))


def test_an_interrupted_run_from_scratch_goes_on(small):
    (small.root / "crash").write_text("-new-")
    assert small.run() == 1
    small.calls()
    (small.root / "crash").unlink()
    assert small.run("--retry") == 0
    (call,) = small.calls()
    assert call["from"] and "SIRFP.PLAN" in call["options"], "from its checkpoint, with the same plan"


@pytest.mark.parametrize(("fails", "calls"), [("dense", 1), ("-sirfp-", 2)])
def test_nothing_starts_whose_plan_or_weights_are_missing(small, fails, calls):
    (small.root / "fail").write_text(fails)
    assert small.run() == 1 and len(small.calls()) == calls
    (small.root / "fail").unlink()
    assert small.run("--retry") == 0 and {run["state"] for run in small.results()["runs"]} == {"done"}


def test_a_plan_of_other_settings_is_another_run(small):
    def fingerprints():
        return {job.criterion: job.fingerprint for job in grid.load(small.file).cells}

    before = fingerprints()
    small.content["pruning_overrides"] = {"SIRFP.MIN_KEEP": 0.2}
    after = fingerprints()
    assert before["sirfp"] != after["sirfp"] and before["new"] != after["new"]


def test_a_row_from_scratch_has_settings_of_its_own(small):
    small.content["criteria"][1] |= {"overrides": {"MODEL.TIMM.WEIGHTS": ""}, "hooks": ["AverageWeights"]}
    small.content |= {"overrides": {"SOLVER.BASE_LR": 0.2}, "dense_overrides": {"SOLVER.GAMMA": 0.5}}
    small.content["pruning_overrides"] = {"SIRFP.EMA": 0.5, "INPUT.FLIP": 0.1}
    options = dict(next(job for job in grid.load(small.file).cells if job.scratch).options)
    assert options["MODEL.TIMM.WEIGHTS"] == "" and options["SIRFP.HOOKS"] == "['AverageWeights']"
    assert options["SOLVER.BASE_LR"] == "0.2" and options["INPUT.FLIP"] == "0.1"
    assert not {"SIRFP.EMA", "SOLVER.GAMMA", "SIRFP.CRITERION"} & set(options)


def test_a_study_may_name_the_initial_weights_of_dense_runs_and_runs_from_scratch(small):
    small.content |= {"overrides": {"MODEL.WEIGHTS": "first.pth"}, "control": True}
    small.content["criteria"][1] |= {"overrides": {"MODEL.WEIGHTS": ""}}
    assert small.run() == 0
    weights = {call["out"]: call["options"]["MODEL.WEIGHTS"] for call in small.calls()}
    kinds = {kind: [w for out, w in weights.items() if f"-{kind}-" in out] for kind in ("dense", "new")}
    assert set(kinds["dense"]) == {"first.pth"} and set(kinds["new"]) == {""}
    others = [w for out, w in weights.items() if not ("-dense-" in out or "-new-" in out)]
    assert others and all("-dense-" in w for w in others), "prunings start from the dense network"
    said = {job.name: grid.settings(job)["options"].get("MODEL.WEIGHTS") for job in grid.load(small.file).cells}
    assert {name: w for name, w in said.items() if w is not None and "/new/" not in name} == {
        name: "first.pth" for name in said if "/dense/" in name
    }


def test_a_variant_is_a_row_of_every_criterion(bench):
    bench.content |= {"variants": REFITTED, "budgets": [0.5], "seeds": [1]}
    jobs = grid.load(bench.file).cells
    assert list(dict.fromkeys(job.criterion for job in jobs)) == [
        "sirfp", "sirfp-refitted", "magnitude", "magnitude-refitted",
    ]  # fmt: skip
    for job in jobs:
        options = dict(job.options)
        assert options["SIRFP.CRITERION"] == job.criterion.removesuffix("-refitted")
        assert options.get("SIRFP.RECONSTRUCTION_ITERS") == ("4" if "refitted" in job.criterion else None)
    assert bench.run() == 0
    assert len({row["criterion"] for row in bench.results()["rows"]}) == 5


def test_a_variant_may_be_of_some_rows_and_adds_to_their_settings(bench):
    row = {"name": "mine", "criterion": "magnitude", "hooks": ["A"], "overrides": {"SIRFP.MIN_KEEP": 0.1}, "seeds": [5]}
    uniform = {"of": ["mine"], "hooks": ["B"], "overrides": {"SIRFP.PARTITIONS": ["*"]}, "steps": 4}
    bench.content |= {"criteria": ["sirfp", row], "variants": {"uniform": uniform}, "budgets": [0.5]}
    study = grid.load(bench.file)
    assert {job.criterion for job in study.cells} == {"sirfp", "mine", "mine-uniform"}
    (job,) = (job for job in study.cells if job.criterion == "mine-uniform")
    options = dict(job.options)
    assert options["SIRFP.HOOKS"].startswith("['Accumulate', 'A', 'B', 'Report'") and job.seed == 5
    assert (options["SIRFP.MIN_KEEP"], options["SIRFP.PARTITIONS"], options["SIRFP.STEPS"]) == ("0.1", "['*']", "4")


def test_a_task_changes_single_variants(bench):
    bench.content |= {"variants": REFITTED, "budgets": [0.5], "criteria": ["sirfp"]}
    bench.content["tasks"]["task"]["variants"] = {"uniform": {"overrides": {"SIRFP.PARTITIONS": ["*"]}}}
    names = [job.criterion for job in grid.load(bench.file).cells if job.seed == 1]
    assert names == ["sirfp", "sirfp-refitted", "sirfp-uniform"]


def test_a_variant_s_pruned_network_may_be_trained_from_scratch(bench):
    scratch = {"name": "scratch", "scratch": "sirfp-refitted", "seeds": [3]}
    bench.content |= {"criteria": ["sirfp", scratch], "variants": REFITTED}
    jobs = [job for job in grid.load(bench.file).cells if job.scratch]
    assert [job.needs.name for job in jobs] == [f"task/net/sirfp-refitted/{b}/seed3" for b in (0.5, 0.75)]


def entry(**keys):
    return {"criteria": ["sirfp", {"name": "new", **keys}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (entry(scratch="sirpf"), "scratch: no row above it that prunes is named sirpf (did you mean sirfp?"),
        ({"criteria": [{"name": "new", "scratch": "sirfp"}, "sirfp"]}, "no row above it that prunes is named sirfp"),
        (entry(scratch="sirfp", steps=3), "steps is that of the row sirfp"),
        (entry(scratch="sirfp", criterion="sirfp"), "criterion is that of the row sirfp"),
        (entry(scratch="sirfp", seeds=[2]), "the row sirfp has no seed 2; it has [1, 3]"),
        (entry(scratch=""), "criteria[1].scratch must be a text"),
        ({"overrides": {"SIRFP.PLAN": "a.json"}}, "SIRFP.PLAN is set by the study's criteria"),
        ({"pruning_overrides": {"MODEL.WEIGHTS": ""}}, "prunings start from the dense network; name the initial"),
        ({"variants": {"a": {"overrides": {"MODEL.WEIGHTS": ""}}}}, "MODEL.WEIGHTS is set by the study"),
        ({"overrides": {"MODEL.WEIGHTS": None}}, 'overrides: MODEL.WEIGHTS must be a file or an address, or ""'),
        ({"variants": ["refitted"]}, "variants must be a block"),
        ({"variants": {"a": {"override": {}}}}, "variants.a has no key 'override' (did you mean overrides?"),
        ({"variants": {"a": {"of": ["sirpf"]}}}, "a.of: no row that prunes is named sirpf (did you mean sirfp"),
        ({"variants": {"a": {"overrides": {"SIRFP.MIN_KEP": 1}}}}, "did you mean SIRFP.MIN_KEEP"),
        ({"variants": {"a/b": {}}}, "write letters, digits"),
        ({"criteria": ["sirfp", {"name": "sirfp-a", "criterion": "dcfp"}], "variants": {"a": {}}}, "sirfp-a twice"),
        ({"variants": {"a": {"overrides": {"SIRFP.OPTIONS.EMA": 2}}}}, "row sirfp-a: SIRFP.OPTIONS.EMA must lie in"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(bench, capsys, change, says):
    bench.content |= change
    assert bench.run("--list") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and "study.yaml" in lines[0]
