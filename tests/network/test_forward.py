"""Runs set the mode of a model's modules and restore it."""

from __future__ import annotations

from torch import nn

from sirfp.network.forward import evaluation


class Merging(nn.Linear):
    """Notes that it is set to evaluation mode, in which other code would merge weights."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_code_that_sets_the_mode_runs_in_a_model_that_is_in_evaluation_mode():
    model = nn.Sequential(Merging(2, 2), nn.BatchNorm1d(2)).eval()
    model[0].merged = False
    with evaluation(model):
        assert model[0].merged


def test_each_module_gets_its_mode_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).eval()
    with evaluation(model):
        model[1].train()  # as the model's own code may do
    assert [module.training for module in model] == [False, False, False]
    model[2].train()
    with evaluation(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [False, False, True]
