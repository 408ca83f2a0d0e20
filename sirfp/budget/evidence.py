"""Batches that a cut looks at: some to learn and to refit from, others held out to measure loss curves on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from ..criteria import CRITERIA, Criterion
from ..criteria.calibration import Loss, calibrate, learn
from ..criteria.setwise import Setwise
from ..errors import InputError, near
from ..moments import Moments, take_moments
from ..network.batches import Run, attempted, check_batches, finite, runner
from ..network.divergence import Divergence, divergence_for
from ..network.forward import call, inference
from ..network.held_out import count_images, hold_out, regrouped, thinned
from ..processes import decide_once
from ..reporting.progress import stage, with_progress
from ..structure.groups import ChannelGroups
from .curve_store import CurveStore
from .curves import LEVELS, CurveMeter

CURVES, RANKING = "curves", "ranking"
WIDTHS = (CURVES, RANKING)
"""How the number of channels that each group keeps is decided: by measured loss curves, or by ranking scores."""
FEWEST = 8
"""With fewer calibration images, widths come from a ranking if curves are not asked for by name: curves measured on one
or two images say little."""
GRADIENTS = 4
"""Gradients for the set-wise order are taken on at most so many times the images of loss curves: they take two to four
times as long as the moments of inputs."""
PIXELS = 16 * 224 * 224
"""Maximum number of pixels of a call on a processor. Feature maps of larger calls do not fit into caches: with one
thread, 32 images of 240 x 320 took DeepLabV3+ on EfficientNet-Lite0 9.4 s in one call, 7.6 s in calls of eight and
6.1 s in calls of two. In smaller calls layers of many weights take longer: the loss curves of EfficientNet-Lite0 took
34 s in calls of 16 images of 224 x 224 and of all 32, and 49 s in calls of six."""


def call_pixels(model: nn.Module) -> int | None:
    """Returns the maximum number of pixels of a call of a model; None if it is not on a processor."""
    return PIXELS if all(parameter.device.type == "cpu" for parameter in model.parameters()) else None


def default_widths(criterion: str, batches: Sequence[Any]) -> str:
    """Returns how widths are decided if the user does not say: the criterion's own way, where there are enough images.

    Args:
        criterion: a name in the registry.
        batches: the calibration batches.
    """
    own = CRITERIA.find(criterion).widths
    return RANKING if sum(map(count_images, batches)) < FEWEST else own


def check_widths(widths: str, called: str = "widths") -> None:
    """Raises InputError if there is no such way to decide widths; the message calls the setting `called`."""
    if widths not in WIDTHS:
        raise InputError(f"{called} must be one of {', '.join(WIDTHS)}, got {widths!r}{near(widths, WIDTHS)}")


def check_compared(widths: str, criterion: str) -> None:
    """Raises InputError if nothing compares outputs, so that a divergence of the user's own has no effect."""
    if widths == RANKING and CRITERIA.find(criterion).needs != "moments":
        raise InputError(
            "a divergence compares outputs for loss curves, but a ranking decides the widths: give widths='curves', "
            "with calibration batches, or leave out the divergence"
        )


@dataclass
class Evidence:
    """Batches for one cut or several, and how to run them.

    Attributes:
        fit: batches that orders and refits are learned from.
        held: batches of other images, on which loss curves are measured; empty if widths come from a ranking.
        divergence: compares outputs with the dense network's.
        dense: the dense network's outputs for each batch of `held`; None until the first cut.
        run: `run(model, batch)` runs a network for the moments of its layers' inputs.
        mode: the context that sets a network's mode for these moments.
        context: the context of every forward pass, e.g. autocast.
        statistics: gives a criterion the features or gradients of batches; None in a training run, in which they come
            from the iterations before the cut.
        levels: shares of a group's channels at which its loss curve is measured.
        store: keeps the loss curves of an interrupted measurement; or None.
    """

    fit: Sequence[Any]
    held: Sequence[Any]
    divergence: Divergence
    dense: list[Any] | None = None
    run: Callable[[nn.Module, Any], Any] = call
    mode: Callable[[nn.Module], AbstractContextManager] = inference
    context: Callable[[], AbstractContextManager] = nullcontext
    statistics: Callable[[Criterion], None] | None = None
    levels: Sequence[float] = LEVELS
    store: CurveStore | None = None

    @staticmethod
    def of(
        batches: Sequence[Any],
        widths: str,
        divergence: Divergence,
        images: int = 0,
        pixels: int | None = None,
        **how: Any,
    ) -> Evidence:
        """Divides batches as a way to decide widths needs them.

        Args:
            batches: the batches.
            widths: one of `WIDTHS`.
            divergence: compares outputs.
            images: the maximum number of images that are held out; 0 for that of the divergence.
            pixels: the maximum number of pixels of a call (`call_pixels`).
            **how: `run` and `context`.

        Raises:
            InputError: the way has no such name, or curves are wanted and there are fewer than two images.
        """
        check_widths(widths)
        if widths == RANKING:
            return Evidence(batches, [], divergence, **how)
        fit, held = hold_out(batches, images or divergence.curve_images)
        if not held:
            raise InputError(
                f"loss curves need images that the refit has not seen: give at least two calibration images, not "
                f"{sum(map(count_images, batches))}, or decide widths by ranking"
            )
        return Evidence(regrouped(fit, pixels=pixels), regrouped(held, pixels=pixels), divergence, **how)

    @staticmethod
    def of_calibration(
        model: nn.Module,
        example_inputs: Any,
        criterion: str,
        calibration: Iterable[Any] | None,
        widths: str | None,
        batches: int,
        *,
        loss: Loss | None = None,
        forward: Run | None = None,
        divergence: Callable[[Any, Any], torch.Tensor] | None = None,
    ) -> Evidence:
        """Takes the evidence of a pruning outside a training run from calibration batches.

        Args:
            model: the dense model.
            criterion: a name in the registry.
            widths: one of `WIDTHS`; None for `default_widths`.
            batches: the number of batches for refits and loss curves; the criterion looks at all.
            example_inputs, calibration, loss, forward, divergence: as in `sirfp.prune`.

        Raises:
            InputError: as in `of`.
        """
        check_batches(calibration, example_inputs)
        every = finite(() if calibration is None else calibration)
        first = list(islice(every, batches))
        run = runner(example_inputs, forward, loss)
        measure = divergence_for(model, divergence, runner(example_inputs, forward))
        widths = default_widths(criterion, first) if widths is None else widths
        if divergence is not None:
            check_compared(widths, criterion)
        divided = "images of the calibration batches, divided and joined anew (widths='ranking' leaves batches whole)"
        once = partial(attempted, run, what="a calibration batch" if widths == RANKING else divided)
        evidence = Evidence.of(first, widths, measure, pixels=call_pixels(model), run=once)
        rest: list[Any] = []

        def statistics(scorer: Criterion) -> None:
            rest.extend(every)
            calibrate(model, scorer, None if calibration is None else chain(first, rest), loss, run)

        evidence.statistics = statistics
        return evidence

    def moments(self, model: nn.Module, found: ChannelGroups, held: bool = False) -> Moments | None:
        """Takes the moments of the layers' inputs over the batches to fit on; None if there are none.

        Args:
            model: the model.
            found: its groups.
            held: True to take them over the images that are held out too, once the curves are measured.
        """
        if not self.fit:
            return None
        batches = [*self.fit, *self.held] if held else self.fit
        shown = with_progress(batches, "taking second moments of the layers' inputs", len(batches))
        with self.mode(model), self.context():
            return take_moments(model, found, shown, self.run)

    def learn(self, model: nn.Module, found: ChannelGroups, criterion: Criterion, moments: Moments | None) -> None:
        """Gives a criterion all it needs: features or gradients of batches, or moments of layers' inputs.

        Raises:
            InputError: the criterion needs batches, and there are none.
        """
        if criterion.needs in ("features", "gradients") and self.statistics is not None:
            stage("showing the criterion its batches")
            self.statistics(criterion)
        if isinstance(criterion, Setwise):
            if moments is None:
                raise InputError(f"criterion {criterion.name!r} looks at images: give calibration batches")
            some = thinned(self.fit, GRADIENTS * self.divergence.curve_images)
            shown = with_progress(some, "taking gradients at the layers' outputs", len(some))
            learn(model, found, criterion, moments, shown, self.divergence, self.context)

    def meter(
        self, model: nn.Module, found: ChannelGroups, criterion: Criterion, moments: Moments | None
    ) -> CurveMeter | None:
        """Returns what measures the loss curves of a model's groups; None if widths come from a ranking.

        The divergence is that from the dense network also where `model` was cut before with the same evidence.
        """
        if not self.held:
            return None
        if self.dense is None:
            with inference(model), self.context():
                self.dense = [self.divergence.outputs(model, batch) for batch in self.held]
        return CurveMeter(
            model,
            found,
            decide_once(criterion.orders),
            moments,
            self.held,
            self.divergence,
            dense=self.dense,
            context=self.context,
            store=self.store,
        )
