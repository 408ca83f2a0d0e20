"""Plans and pruned files: saving and loading, plans joined over steps, and invalid ones refused in one line."""

from __future__ import annotations

import copy
import functools
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import drawn
from small_networks import INPUT, NETWORKS, Chain, Depthwise, Residual, Shared, Unsaved, build, random_keep
from torch import nn

from sirfp.channels import find_groups
from sirfp.checkpoint import load, save
from sirfp.errors import InputError
from sirfp.files.whole import whole_file
from sirfp.prune import cut, plan_for, prune
from sirfp.structure.plan import PruningPlan
from sirfp.surgery import apply
from sirfp.verify import compare, expand

X = torch.randn(INPUT)


def pruned(kind=Residual):
    """A pruned network, which the caller may change, and its plan."""
    return copy.deepcopy(pruned_once(kind))


@functools.cache
def pruned_once(kind):
    model = build(kind)
    found = find_groups(model, X)
    return model, cut(model, found, random_keep(found, 0), "random")


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_a_plan_survives_json(kind):
    _, plan = pruned(kind)
    again = PruningPlan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert again.kept == plan.kept and again.cuts == plan.cuts and again.flops == plan.flops


@pytest.mark.parametrize("kind", [Residual, Depthwise, Shared])
def test_a_file_restores_the_pruned_network(kind, tmp_path):
    model, plan = pruned(kind)
    save(tmp_path / "small.safetensors", model, plan)
    fresh = build(kind, seed=9)
    assert load(tmp_path / "small.safetensors", fresh) == plan
    assert compare(model, fresh, X).relative == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "small.safetensors"]


def test_a_bias_that_was_added_is_restored(tmp_path):
    torch.manual_seed(0)
    model = Chain(normed=False, bias=False).eval()
    nn.init.normal_(model.norm.bias)
    plan = prune(model, X, "magnitude", 0.6)
    assert plan.new_biases == ("b",)
    save(tmp_path / "a.safetensors", model, plan)
    fresh = Chain(normed=False, bias=False).eval()
    load(tmp_path / "a.safetensors", fresh)
    assert compare(model, fresh, X).relative == 0
    dense = Chain(normed=False, bias=False).eval()
    expand(dense, plan, model.state_dict())
    assert compare(dense, model, X).relative < 1e-5


def test_a_buffer_that_is_not_saved_is_cut_when_a_file_is_read(tmp_path):
    model, plan = pruned(Unsaved)
    assert "ramp" in {name for c in plan.cuts for name, _ in c.tensors}
    save(tmp_path / "small.safetensors", model, plan)
    fresh = build(Unsaved, seed=9)
    load(tmp_path / "small.safetensors", fresh)
    assert compare(model, fresh, X).relative == 0


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_two_steps_join_into_one_plan_for_the_dense_model(kind):
    model, first = pruned(kind)
    found = find_groups(model, X)
    second = cut(model, found, random_keep(found, 5), "random")
    joined = first.then(second)
    dense = build(kind)
    expand(dense, joined, model.state_dict())
    difference = compare(dense, model, X)
    assert not difference.problem and difference.relative < 1e-5
    again = build(kind)
    apply(again, PruningPlan.from_json(joined.to_json()))
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert joined.flops == (first.flops[0], second.flops[1])
    for name, kept in joined.kept.items():
        assert set(kept) <= set(first.kept.get(name, kept))


def bare(linear=False) -> nn.Sequential:
    """A norm, then layers that have no bias; what the norm's channels emit is the same at every position."""
    torch.manual_seed(0)
    layer = (lambda *sizes, **how: nn.Linear(*sizes, **how)) if linear else (lambda *s, **how: nn.Conv2d(*s, 1, **how))
    norm = nn.BatchNorm1d(8) if linear else nn.BatchNorm2d(8)
    nn.init.uniform_(norm.bias, 0.5, 1)
    parts = [layer(3, 8), norm, nn.ReLU(), layer(8, 7, bias=False), nn.Sigmoid(), layer(7, 6, bias=False)]
    return nn.Sequential(*parts, nn.ReLU(), layer(6, 2)).eval()


def one_less(model, x, groups, channel, bias_correction):
    """Cuts a channel of each group of some names."""
    found = find_groups(model, x)
    keep = np.ones(found.atoms, dtype=bool)
    for name in groups:
        keep[found.spans[name].start + channel] = False
    return cut(model, found, keep, "random", bias_correction=bias_correction)


@functools.cache
def bare_after_a_step(linear, groups):
    model = bare(linear)
    return model, one_less(model, X.mean((2, 3)) if linear else X, groups, 1, bias_correction=False)


@pytest.mark.parametrize("linear", [False, True], ids=["convolutions", "linear layers"])
@pytest.mark.parametrize("first", [("0", "3", "5"), ("3",), ("3", "5"), ("0",)])
@pytest.mark.parametrize("second", [("0", "3", "5"), ("0",), ("0", "3")])
def test_a_bias_that_the_second_step_gives_has_the_size_of_the_dense_layer(linear, first, second, tmp_path):
    x = X.mean((2, 3)) if linear else X
    model, plan = copy.deepcopy(bare_after_a_step(linear, first))
    plans = [plan, one_less(model, x, second, 2, bias_correction=True)]
    assert "3" in plans[1].new_biases and not plans[0].new_biases
    joined = PruningPlan.from_json(plans[0].then(plans[1]).to_json())
    again, dense = bare(linear), bare(linear)
    apply(again, joined)
    again.load_state_dict(model.state_dict())
    save(tmp_path / "a.safetensors", model)
    assert load(tmp_path / "a.safetensors", fresh := bare(linear)) == joined
    expand(dense, joined, model.state_dict())
    for other in (again, fresh, dense):
        assert compare(other, model, x).relative < 1e-5


def _damage(text: str, change) -> str:
    data = json.loads(text)
    change(data)
    return json.dumps(data)


DAMAGES = {
    "no json": lambda t: t[:-5],
    "not a mapping": lambda t: "[1, 2]",
    "another format": lambda t: _damage(t, lambda d: d.update(format=99)),
    "flops of three": lambda t: _damage(t, lambda d: d.update(flops=[1, 2, 3])),
    "negative": lambda t: _damage(t, lambda d: d.update(params=[-1, 2])),
    "kept is text": lambda t: _damage(t, lambda d: d["kept"].update({"a.0": "all"})),
    "kept twice": lambda t: _damage(t, lambda d: d["kept"].update({"a.0": [1, 1]})),
    "kept nothing": lambda t: _damage(t, lambda d: d["kept"].update({"a.0": []})),
    "kept a fraction": lambda t: _damage(t, lambda d: d["kept"].update({"a.0": [0.5]})),
    "cut beyond": lambda t: _damage(t, lambda d: d["cuts"][0].update(keep=[10**9])),
    "cut without tensors": lambda t: _damage(t, lambda d: d["cuts"][0].update(tensors=3)),
    "cut place": lambda t: _damage(t, lambda d: d["cuts"][0].update(tensors=[["a", "b"]])),
    "biases": lambda t: _damage(t, lambda d: d.update(new_biases=[7])),
    "widths": lambda t: _damage(t, lambda d: d.update(widths={"backbone": 3})),
    "kept beyond": lambda t: _damage(t, lambda d: d["kept"].update({"a.0": [10**9]})),
    "deep": lambda t: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused_in_one_line(damage):
    _, plan = pruned()
    with pytest.raises(InputError) as error:
        PruningPlan.from_json(DAMAGES[damage](plan.to_json()))
    assert "\n" not in str(error.value)


TWICE = {
    "a cut": lambda d: d["cuts"].append(d["cuts"][0]),
    "a place": lambda d: d["cuts"][0].update(tensors=d["cuts"][0]["tensors"] * 2),
    "two names": lambda d: d["cuts"].append(
        {"tensors": [["alias.0.0.weight", 0]], "size": 10, "keep": [0]},
    ),
}


@pytest.mark.parametrize("damage", TWICE)
def test_a_plan_that_cuts_a_place_twice_is_refused_and_changes_nothing(damage):
    _, plan = pruned(Shared)
    broken = PruningPlan.from_json(_damage(plan.to_json(), TWICE[damage]))
    model = build(Shared)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="twice"):
        apply(model, broken)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_plan_of_another_model_does_not_join():
    _, plan = pruned()
    for kind in (Depthwise, Shared):
        _, other = pruned(kind)
        assert {place for c in other.cuts for place in c.tensors} & {place for c in plan.cuts for place in c.tensors}
        with pytest.raises(InputError, match="another model"):
            plan.then(other)


def test_a_plan_of_the_dense_model_that_goes_on_from_another_is_the_joined_plan():
    model, first = pruned()
    second = cut(model, find_groups(model, X), random_keep(find_groups(model, X), 5), "random")
    joined = first.then(second)
    assert first.then(joined) == joined and first.then(first) == first != joined
    with pytest.raises(InputError, match="another model"):
        joined.then(second)
    with pytest.raises(InputError, match="another model"):
        joined.then(first)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@drawn(150)
@given(st.sampled_from(sorted(json.loads(pruned()[1].to_json()))), JSON)
def test_no_value_of_any_key_does_more_than_be_refused(key, value):
    data = json.loads(TEXT)
    data[key] = value
    try:
        plan = PruningPlan.from_json(json.dumps(data))
        apply(build(Residual), plan)
    except InputError:
        pass


TEXT = pruned()[1].to_json()


@pytest.mark.parametrize("where", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused_and_the_model_left_alone(where, tmp_path):
    model, plan = pruned()
    path = tmp_path / "small.safetensors"
    save(path, model, plan)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * where)])
    fresh = build(Residual)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(InputError, match="not a complete safetensors file"):
        load(path, fresh)
    assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())


def test_a_file_for_another_model_is_refused_and_the_model_left_alone(tmp_path):
    model, plan = pruned()
    save(tmp_path / "small.safetensors", model, plan)
    for kind in (Depthwise, Shared):
        fresh = build(kind)
        before = copy.deepcopy(fresh.state_dict())
        with pytest.raises(InputError, match="another model"):
            load(tmp_path / "small.safetensors", fresh)
        assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError):
        load(tmp_path / "evil.safetensors", build(Residual))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_fails_while_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    model, plan = pruned()
    with pytest.raises(InputError, match="cannot write"):
        save(tmp_path / "file" / "x.safetensors", model, plan)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep_flops": 1.4}, r"keep_flops must lie in \(0, 1\], got 1.4"),
        ({"keep_flops": 0}, "keep_flops must lie"),
        ({"criterion": "magnitud"}, "did you mean magnitude"),
        ({"round_to": 0}, "round_to"),
        ({"min_keep": -1}, "min_keep"),
        ({"colour": 1}, "takes no option 'colour'"),
        ({"ignore": ["nothing.here"]}, "matches"),
        ({"keep_flops": 0.0001}, "cannot be reached"),
        ({"criterion": "sirfp"}, "give calibration batches"),
        ({"criterion": "sirfp", "calibration": []}, "no calibration batches"),
    ],
)
def test_wrong_arguments_are_said_and_change_nothing(change, said):
    model = build(Residual)
    before = copy.deepcopy(model.state_dict())
    arguments = {"criterion": "magnitude", "keep_flops": 0.5} | change
    with pytest.raises(InputError, match=said):
        prune(model, X, **arguments)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_plan_without_cuts_is_the_dense_model():
    model = build(Residual)
    found = find_groups(model, X)
    plan = plan_for(found, torch.ones(found.atoms, dtype=torch.bool).numpy())
    assert plan.cuts == () and plan.flops[0] == plan.flops[1] and plan.params[0] == plan.params[1]
