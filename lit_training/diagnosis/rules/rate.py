"""Rules about the size of the first update: rate and clipping against the weights that they move."""

import math
from collections.abc import Iterator
from statistics import median

from lit_training.diagnosis.evidence import Evidence, ParameterFacts
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import times_guessing

__all__ = ["clip_too_small", "kept", "lr_too_high", "lr_too_low"]

OVERWRITES = 1.0
OVERWRITES_ADAPTIVE = 2.0
LONG_RUN = 100
STANDS_STILL = 1e-2
GUESSING = (0.8, 3.0)
LONG_MEMORY = 0.99


@rule(explains=["loss_diverging", "nan_loss", "oscillating_loss", "exploding_gradient", "dead_relu", "saturation"])
def lr_too_high(evidence: Evidence) -> Iterator[Finding]:
    """The first update is larger than the weights that it moves.

    What it means: what was drawn with care is overwritten by noise at once; the loss jumps, units die or saturate.

    How it is measured: norm of the first update over norm of the weight, the median over all weight matrices: rate times
    gradient (after clipping) for SGD; for Adam and its like, whose first step moves each weight by the rate, rate over the
    weight's root mean square.

    Threshold: 1 for SGD, 2 for Adam and its like. Healthy updates are about a thousandth of the weights (Karpathy); fast recipes
    begin with a tenth. With SGD's momentum m above .99 updates add up to 1 / (1 - m) times the first one, over hundreds of steps
    that cannot take back what they overwrite; then this sum is what counts.

    Not an alarm: warm-up, whose first rate counts; weights that start at zero; targets or initialisation that make the gradient
    large (unnormalised_target, init_exploding); a single layer, which loses nothing when its first weights are overwritten.

    What to do: lower `lr` until the ratio is below .1, or warm up.
    """
    changes = [
        (change, f.name, f.descent is None) for f in _moved(evidence) if (change := _change(evidence, f.name)) is not None
    ]
    if len(changes) < 2:
        return
    typical = median(change for change, *_ in changes)
    adaptive = all(adaptive for *_, adaptive in changes)
    where = max(changes)[1]
    total = typical / (1 - evidence.momentum)
    if typical > (OVERWRITES_ADAPTIVE if adaptive else OVERWRITES):
        message = f"The first update is {typical:.2g} times as large as the weights (median of {len(changes)}), not .001 to .1."
        advice = f"Lower lr by a factor of {_round(typical / 0.01)} or so, or warm up."
        yield Finding("lr_too_high", "error", where, evidence.step, message, advice, {"ratio": typical})
    elif not adaptive and evidence.momentum > LONG_MEMORY and total > OVERWRITES:
        adds = f"momentum {evidence.momentum:g} adds up {1 / (1 - evidence.momentum):.0f} of them"
        message = (
            f"The first update is {typical:.2g} times as large as the weights, and {adds}: {total:.2g} times, not .01 to 1."
        )
        advice = "momentum=0.9, or lower lr by as much as the momentum adds up."
        yield Finding("lr_too_high", "error", where, evidence.step, message, advice, {"ratio": typical, "total": total})


@rule(explains=["slow_convergence", "constant_output"])
def lr_too_low(evidence: Evidence) -> Iterator[Finding]:
    """All planned updates together cannot move the weights by one per cent.

    What it means: training ends where it began.

    How it is measured: the first update over the weight's norm, the largest of all weight matrices, times the number of planned
    updates (with SGD's momentum m, over 1 - m).

    Threshold: .01, in a run of at least 100 updates without a schedule, while the loss is that of guessing.

    Not an alarm: schedules that warm up; fine-tuning of a network that is good already; runs of unknown length.

    What to do: raise `lr` until the first update is about a thousandth of the weights.
    """
    travel = _travel(evidence, clipped=False)
    if travel is not None and travel < STANDS_STILL:
        message = f"{evidence.planned} updates like the first one move no weight by more than {travel:.1g} of its size."
        advice = f"Raise lr by a factor of {_round(0.001 * (evidence.planned or 1) / max(travel, 1e-12))} or so."
        yield Finding("lr_too_low", "error", "", evidence.step, message, advice, {"travel": travel})


@rule(explains=["slow_convergence", "constant_output"])
def clip_too_small(evidence: Evidence) -> Iterator[Finding]:
    """Clipping leaves so little of the gradient that all planned updates together cannot move the weights by one per cent.

    What it means: the clipping threshold, not the learning rate, sets the step, and it is far too small.

    How it is measured: as lr_too_low, with the gradient's norm before clipping and after it (`gradient_clip_val`).

    Threshold: .01 with clipping, while it would be more without.

    Not an alarm: clipping under Adam and its like, which divide the gradient's size out; clipping of rare large gradients.

    What to do: log the gradient's norm and clip at about its 90th percentile; 1 is a common start.
    """
    before, after = _travel(evidence, clipped=False), _travel(evidence, clipped=True)
    if before is not None and after is not None and after < STANDS_STILL <= before:
        norm = _gradient_norm(evidence)
        clip = evidence.clip if evidence.clip is not None else evidence.clip_value
        move = f"{evidence.planned} updates move no weight by more than {after:.1g} of its size"
        message = f"The gradient, of norm {norm:.2g}, is clipped to {clip:.2g}, so that {move}."
        advice = f'Trainer(gradient_clip_val={_round(norm)}, gradient_clip_algorithm="norm") or so.'
        yield Finding("clip_too_small", "error", "", evidence.step, message, advice, {"norm": norm, "clip": clip or 0.0})


def _moved(evidence: Evidence) -> list[ParameterFacts]:
    return [
        f for f in evidence.parameters.values() if f.kind == "weight" and len(f.shape) > 1 and f.norm > 0 and f.requires_grad
    ]


def _change(evidence: Evidence, name: str, *, clipped: bool = True) -> float | None:
    """Return the first update of a weight over its norm, `None` where the optimiser's step is not known."""
    facts = evidence.parameters[name]
    if facts.gradient is None or facts.gradient == 0:
        return None
    if facts.fixed_step is not None:
        return facts.fixed_step * math.sqrt(math.prod(facts.shape)) / facts.norm
    change = facts.first_change
    return None if change is None else change * (kept(evidence, facts) if clipped else 1.0)


def _gradient_norm(evidence: Evidence) -> float:
    return math.sqrt(sum(f.gradient**2 for f in evidence.parameters.values() if f.gradient is not None))


def kept(evidence: Evidence, facts: ParameterFacts) -> float:
    """Return which part of a weight's gradient clipping leaves, by its norm over all weights or by value."""
    norm = _gradient_norm(evidence)
    if evidence.clip is not None and norm > 0:
        return min(1.0, evidence.clip / norm)
    if evidence.clip_value is not None and facts.gradient:
        return min(1.0, evidence.clip_value * math.sqrt(math.prod(facts.shape)) / facts.gradient)
    return 1.0


def _travel(evidence: Evidence, *, clipped: bool) -> float | None:
    """Return how far the planned updates move the weight that moves most, `None` where that cannot be told."""
    planned = evidence.planned
    if (
        planned is None
        or planned < LONG_RUN
        or evidence.scheduled
        or not evidence.stepping
        or not 0.8 < times_guessing(evidence)[0] < 3
    ):
        return None
    changes = [_change(evidence, f.name, clipped=clipped) for f in _moved(evidence)]
    known = [change for change in changes if change is not None]
    if not known or any(not f.stepping for f in _moved(evidence)):
        return None
    return max(known) * planned / (1 - evidence.momentum)


def _round(value: float) -> str:
    return f"{value:.0e}" if value >= 1e4 else f"{value:.1g}" if value < 10 else f"{value:.0f}"
