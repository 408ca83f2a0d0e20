"""Tests a cut on a copy of a model: the copy must run and must compute the same as the masked copy.

The masked copy has the removed channels zeroed, and takes each statistic over the kept channels only
(`sirfp.verify.kept`). It repeats the discrete choices of the cut copy (`sirfp.verify.choices`). Both copies must thus
give the same values and the same shapes, also where the number of results depends on values.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import first_line
from ..network.attention import sized_by_weights
from ..network.detectron import training_inputs
from ..network.even_noise import EvenNoise
from ..network.forward import call, inference, is_detectron_input, tensors, training_branches
from ..network.proposals import BOXES, fixed_proposals
from ..network.scales import may_scale
from ..network.untouched import SharedMemory, copied_model, own, replace_by_copies, seeded
from ..structure.atoms import state_tensors
from ..structure.groups import ChannelGroups, Group
from ..structure.plan import PruningPlan
from ..surgery.cut import cut_by
from ..surgery.plan_and_cut import cuts_only
from ..tracing.functions import FunctionWatch
from ..verify.choices import Choices, tolerance
from ..verify.detectors import continuous, is_detector, whole_layers
from ..verify.kept import KeptStatistics
from ..verify.proof import mask
from ..verify.rounding import shake
from .choice import numbers_kept, repeats, second_turns, some_of
from .double_precision import in_double
from .other_weights import constants, randomise_constants
from .results import Run, differences, is_comparable, misshapen, sizes

logger = logging.getLogger(__name__)

SUSPICIOUS = 0.05
"""A difference above this share of the tolerance is looked at in double precision."""
TRAINING = 2
"""Number of the trial that runs in training mode; those before it run in evaluation mode."""


class CutCopy:
    """Cuts copies of a model and runs them.

    Args:
        model: a copy of the model that shares its parameters. Its constants become random (`randomise_constants`).
        inputs: its inputs.
        output: its output for these inputs.
        found: its groups.
        shared: guards the parameters. Once the model has written into them, copies no longer share them.
        asks: True if the model's code asks for its mode, and the dense model runs the same code in both modes.

    Attributes:
        trains: True once a cut copy has run other code in training mode than in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        output: Any,
        found: ChannelGroups,
        shared: SharedMemory,
        asks: bool = False,
    ):
        if shared.written:
            model = copied_model(model)
        self.model, self.inputs, self.found, self.shared = model, inputs, found, shared
        self.asks, self.trains = asks, False
        self.output = dict(tensors(output))
        self.detector = is_detector(output)
        self.layers: list[str] | None = None  # layers whose outputs are compared, None: outputs of the model only
        self._doubtful: dict[bool, set[str]] = {}  # {in training mode: results that prove nothing}
        if self.detector or not all(map(is_comparable, self.output.values())):
            self._compare_layers()
        self._whole_code = True  # False if the model fails in training mode with its own dropouts and norms
        self._sound: set[int] = set()  # trials in which a masked copy has run
        self._unproven = False  # True once a masked copy has failed
        self._double: CutCopy | None = None  # for trials in double precision
        self._asked_double, self._hides = False, False  # whether it was asked for, and whether it has found a fault
        self._has_widths = self._replace_widths = False  # of masked copies, see `sirfp.verify.kept_widths`
        names = list(constants(model))
        self._constants = replace_by_copies(model, names)
        randomise_constants(model, names)

    def _compare_layers(self) -> None:
        self._doubtful.clear()
        self.layers = whole_layers(self.model, {(s.tensor, s.dim) for group in self.found for s in group.slices})

    def failure(self, groups: list[Group], turn: int = 0) -> str | None:
        """Cuts some channels of each group in a copy, runs it, and compares it with a masked copy.

        Args:
            groups: the groups to cut.
            turn: number of the trial; each cuts other numbers of channels. Trial 1 compares values only if shapes
                differ or trial 0 removes as many channels of several groups, to save a run; trial `TRAINING` runs in
                training mode.

        Returns:
            The reason why the copy fails or computes something else, or None.
        """
        if self._hides:
            return self._failure_in_double(groups, turn)
        plan = self._plan(groups, turn)
        if not plan.cuts:
            return None
        copied = self._copied()
        boxes: list[Any] = []
        try:
            cut_by(copied, plan)
            before = _shapes_of_state(copied)
            got = self._run(copied, turn, boxes, Choices(shared=self.shared))
        except Exception as error:  # the model's own code may raise anything
            return self._reason(groups, plan, turn, error)
        if self.asks and turn == second_turns(self.found)[0]:
            self.trains = self.trains or self._runs_other_code(copied, got)
        after = _shapes_of_state(copied)
        replaced = next((name for name, shape in before.items() if after.get(name) != shape), None)
        if replaced is not None:
            return f"cut, the model replaces {replaced} by a tensor of another shape"
        if turn == 1 and not repeats(self.found) and not any(misshapen(self.output, got.values)):
            return None
        del copied  # its memory is needed for the masked copy
        try:
            wanted = self._masked(plan, turn, boxes, got.choices)
        except Exception as error:  # e.g. the model checks its values for NaN
            if not self._unproven:
                self._unproven = True
                logger.warning("a cut cannot be compared, since the masked model fails: %s", first_line(error))
            reasons = (reason for _, reason in misshapen(self.output, got.values))
            return None if turn == TRAINING else next(reasons, None)
        odd = dict(differences(wanted, got, detector=self.detector))
        if odd and self._has_widths:
            other = self._masked(plan, turn, boxes, got.choices, replace_widths=not self._replace_widths)
            if not any(differences(other, got, detector=self.detector)):
                self._replace_widths, wanted, odd = not self._replace_widths, other, {}
        if odd:
            doubtful = self._doubt(plan, turn, boxes, wanted, got)
            odd = {path: reason for path, reason in odd.items() if path not in doubtful}
            if odd:
                return next(iter(odd.values())) + (" in training" if turn == TRAINING else "")
            logger.info("the model's results depend on rounding errors or random numbers: %s", ", ".join(doubtful))
        elif turn != TRAINING and self._is_suspicious(wanted, got):
            return self._failure_in_double(groups, turn)
        elif any(is_comparable(tensor) for tensor in wanted.values.values()):
            return None
        if self.layers is None:  # no output could be compared
            self._compare_layers()
            return self.failure(groups, turn)
        return None

    def operations(self, groups: list[Group], turn: int) -> list[tuple]:
        """Cuts some channels of each group in a copy, runs it, and returns its operations (`Choices.ran`).

        Args:
            groups: the groups to cut.
            turn: number of the trial.

        Raises:
            Exception: of any class, if the copy fails.
        """
        copied = self._copied()
        cut_by(copied, self._plan(groups, turn))
        return self._run(copied, turn, [], Choices(shared=self.shared)).choices.ran

    def kept(self, groups: list[Group], turn: int) -> dict[str, int]:
        """Returns how many atoms of each group a copy keeps, {group name: number}."""
        return numbers_kept(self.found, groups, turn)

    def _is_suspicious(self, wanted: Run, got: Run) -> bool:
        """True if two runs of single precision may hide a fault.

        They may where they differ by more than rounding errors mostly do, and where a cut sets sizes in a module
        that may compute a scale from them, as attention does.
        """
        single = tolerance(torch.float32)
        compared = [size for _, size, allowed in sizes(wanted, got, detector=self.detector) if allowed == single]
        scaled = any(may_scale(self.model.get_submodule(name), keys) for name, keys in self.found.widths.items())
        return bool(compared) and (scaled or max(compared) > SUSPICIOUS * single)

    def _failure_in_double(self, groups: list[Group], turn: int) -> str | None:
        """Repeats a trial in double precision, if the model computes in it; see `failure`.

        An untrained network can hide what is wrong: where scores of attention are small, a wrong scale changes the
        output by 1e-5 or less. Once something is found, all further trials take place in double precision.
        """
        if not self._asked_double:
            self._asked_double = True
            doubled = in_double(self.model, self.inputs)
            if doubled is not None:
                model, inputs, output = doubled
                self._double = CutCopy(model, inputs, output, self.found, SharedMemory(model), self.asks)
        if self._double is None:
            return None
        reason = self._double.failure(groups, turn)
        self._hides = self._hides or reason is not None
        self.trains = self.trains or self._double.trains
        return reason

    def _runs_other_code(self, cut: nn.Module, got: Run) -> bool:
        """True if a cut copy runs other operations in training mode than in evaluation mode, or fails in it."""
        try:
            return self._run(cut, TRAINING, [], Choices(shared=self.shared)).choices.ran != got.choices.ran
        except Exception as error:  # the model's own code may raise anything
            logger.debug("a cut copy fails in training mode: %s", error)
            return True

    def _reason(self, groups: list[Group], plan: PruningPlan, turn: int, error: Exception) -> str | None:
        """Returns the reason for the failure of a cut copy, or None if the cut is not to blame."""
        mode = " in training" if turn == TRAINING else ""
        if turn not in self._sound:
            try:
                self._masked(plan, turn, [], None)
            except Exception as masked:
                if turn == TRAINING and self._whole_code:
                    self._whole_code = False
                    return self.failure(groups, turn)
                if turn == TRAINING:  # it may want targets or larger batches, so nothing can be tried
                    logger.info("the model cannot be tried in training mode: %s", first_line(masked))
                    return None
                if self._constants:  # its code may check its constants, so they are tried as they are
                    self._restore_constants()
                    return self.failure(groups, turn)
                return (
                    f"with channels zeroed, the model fails: {first_line(masked)}; if its results depend on "
                    "thresholds, wrap it in a module that returns its tensors before them"
                )
        return f"cut, the model fails{mode}: {first_line(error)}"

    def _restore_constants(self) -> None:
        for table, name, tensor in self._constants:
            table[name] = tensor
        self._constants = []

    def _copied(self) -> nn.Module:
        return copied_model(self.model, share=not self.shared.written)

    def _plan(self, groups: list[Group], turn: int) -> PruningPlan:
        return cuts_only(self.found, some_of(self.found, groups, turn))

    def _run(
        self, model: nn.Module, turn: int, boxes: list[Any], choices: Choices, kept: Any = None, *, seed: int = 0
    ) -> Run:
        """Runs a copy.

        Args:
            model: the copy.
            turn: number of the trial.
            boxes: the boxes of a two-stage detector, filled by a cut copy and repeated by a masked one.
            choices: records or repeats the discrete choices.
            kept: for a masked copy, the context in which statistics are taken over the kept channels.
            seed: the seed of random numbers.
        """
        given, mode = self.inputs, inference
        functions: AbstractContextManager[Any] = nullcontext()
        noise: AbstractContextManager[Any] = nullcontext()
        if turn == TRAINING:
            given = training_inputs(model, given) if is_detectron_input(given) else given
            mode, functions = partial(training_branches, whole=self._whole_code), FunctionWatch(steady=True)
            noise = EvenNoise()
        # Heads that a cut leaves whole, too, count their statistics as those of the masked copy do.
        ways = kept or sized_by_weights(model)
        with fixed_proposals(model, BOXES), seeded(model, seed), noise, choices, ways, functions:
            layers: dict[str, torch.Tensor] = {}
            if self.layers is None:
                with mode(model):
                    output = call(model, given)
            else:
                record = kept is None or not boxes
                layers, output = continuous(model, given, self.layers, boxes, record=record, mode=mode)
        if kept is None:
            return Run(output, layers, choices.statistics, choices)
        return Run(output, layers, kept.shapes, choices)

    def _masked(
        self,
        plan: PruningPlan,
        turn: int,
        boxes: list[Any],
        choices: Choices | None,
        *,
        stir: bool = False,
        redraw: bool = False,
        replace_widths: bool | None = None,
    ) -> Run:
        """Runs a copy with its removed channels zeroed.

        Args:
            plan: the plan whose channels are removed.
            turn: number of the trial.
            boxes: the boxes of the cut copy.
            choices: the choices of the cut copy, or None.
            stir: True to change all weights by a few ulp.
            redraw: True to draw other random numbers.
            replace_widths: see `KeptStatistics`; None for what the last cut copies did.
        """
        if replace_widths is None:
            replace_widths = self._replace_widths
        alone = stir or self.shared.written
        model = copied_model(self.model) if alone else self.model
        if stir:
            shake(model)
        with own(model, () if alone else {name for cut in plan.cuts for name, _ in cut.tensors}):
            mask(model, plan)
            for clean in (False, True):
                kept = KeptStatistics(model, plan, clean=clean, replace_widths=replace_widths)
                run = self._run(model, turn, boxes, Choices(choices, self.shared), kept, seed=int(redraw))
                if not any(t.is_floating_point() and t.isnan().any() for t in run.values.values()):
                    break
        self._has_widths = kept.widths.found
        self._sound.add(turn)
        return run

    def _doubt(self, plan: PruningPlan, turn: int, boxes: list[Any], wanted: Run, got: Run) -> set[str]:
        """Returns the results that hang on rounding errors or random numbers, so that comparing them proves nothing.

        These are the results that change with the weights by a few ulp, and with other random numbers if both copies
        did not draw the same, and the shapes that change with weights that are ten percent smaller. They are found once
        for each mode of the model.

        Args:
            plan: the plan whose removed channels are zeroed.
            turn: number of the trial.
            boxes: the boxes of the cut copy.
            wanted: the masked copy's run.
            got: the cut copy's run.
        """
        mode = turn == TRAINING
        if mode not in self._doubtful:
            found: set[str] = set()
            other_numbers = wanted.choices.drawn != got.choices.drawn
            again = self._masked(plan, turn, boxes, got.choices, stir=True, redraw=other_numbers)
            found |= {path for path, _ in differences(wanted, again, detector=self.detector)}
            shapes = {path: tensor.shape for path, tensor in got.values.items()}
            if any(tensor.shape != shapes.get(path) for path, tensor in wanted.values.items()):
                found |= self._elastic(turn, wanted)
            self._doubtful[mode] = found
        return self._doubtful[mode]

    def _elastic(self, turn: int, wanted: Run) -> set[str]:
        """Returns the outputs whose number of results depends on values, e.g. of boxes above a threshold."""
        copied = copied_model(self.model)
        with torch.no_grad():
            for tensor in copied.parameters():
                tensor.mul_(0.9)
        try:
            other = self._run(copied, turn, [], Choices(shared=self.shared))
        except Exception as error:  # the model's own code may raise anything
            logger.debug("with other weights the model fails: %s", error)
            return set(wanted.values)
        return {p for p, t in wanted.values.items() if p not in other.values or other.values[p].shape != t.shape}


def _shapes_of_state(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_tensors(model).items()}
