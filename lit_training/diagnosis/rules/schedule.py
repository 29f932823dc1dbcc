"""Rules about what the whole run will do: the learning rate's schedule, and weight decay against the gradient."""

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import is_normalised
from lit_training.diagnosis.updates import tables

__all__ = ["lr_schedule", "weight_decay_too_strong"]

LONG_RUN = 100
IDLE = 0.01
MOST_IDLE = 0.5
STARTED = 0.1
STARTED_NAMED = 0.5
GROWS = 10.0
STRONGER = 0.5
ALONG, PARTLY_ALONG = 0.7, 0.5
FEW = 100
TWICE, STRONGER_INSIDE = 0.25, 0.3


@rule(explains=["lr_too_low", "lr_too_high", "no_update", "slow_convergence", "loss_diverging", "nan_loss", "oscillating_loss"])
def lr_schedule(evidence: Evidence) -> Iterator[Finding]:
    """The schedule does not fit the run: ends early, warms up for longer than the run, raises, grows, or waits the wrong way.

    What it means: most of the run trains at a rate of nearly nothing, or at one that grows without end. Typical causes: a
    schedule that counts epochs and is stepped at every batch, or the other way round; a number of warm-up steps from a
    longer run; integer division; `ReduceLROnPlateau(mode="max")` on a loss.

    How it is measured: a copy of the scheduler runs ahead over all planned updates before the first one, so that the rate
    of each is known. `OneCycleLR`: its number of steps and highest rate. `ReduceLROnPlateau`: whether its `mode` fits the
    name of what it monitors.

    Threshold: in runs of 100 updates or more: the rate is below 1 % of its peak in more than half of the updates; it never
    gets to a tenth of the rate that the optimiser was made with (to half of `OneCycleLR`'s `max_lr`) and ends at its highest;
    it ends at more than 10 times both that rate and its own median. In all runs: `OneCycleLR` has fewer steps than it is to
    take, since it raises then.

    Not an alarm: cosine, linear, step and one-cycle schedules over the whole run, warm restarts, a decay by 10 three times;
    schedules that are longer than the run but already past their peak.

    What to do: `{"scheduler": s, "interval": "step"}` for a schedule in updates, `"epoch"` for one in epochs; take its
    length from `trainer.estimated_stepping_batches`.
    """
    rates = evidence.plan.rates
    advice = 'Take its length from trainer.estimated_stepping_batches and step it with "interval": "step".'
    if evidence.plan.backwards:
        message = f"The schedule waits for a plateau the wrong way round: {evidence.plan.backwards}."
        advice = 'ReduceLROnPlateau(mode="min") for a loss or an error, "max" for an accuracy.'
        yield Finding("lr_schedule", "warning", "", evidence.step, message, advice)
    if evidence.plan.overrun:
        message = f"The schedule is too short: {evidence.plan.overrun}."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice)
        return
    if len(rates) < LONG_RUN:
        return
    named, n = evidence.plan.peak, len(rates)
    peak = max(rates) / named
    idle = sum(rate < IDLE * max(rates) for rate in rates)
    if peak < (STARTED if named == 1 else STARTED_NAMED) and rates[-1] >= 0.99 * max(rates):
        own = "the optimiser's own" if named == 1 else "max_lr"
        message = f"In all {n} planned updates the rate stays below {peak:.2g} times {own}: the warm-up is too long."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice, {"peak": peak})
    elif idle > MOST_IDLE * n:
        message = f"The rate is below 1 % of its peak in {idle} of the {n} planned updates: the schedule is over too early."
        yield Finding("lr_schedule", "error", "", evidence.step, message, advice, {"idle": idle / n})
    elif rates[-1] > GROWS * max(named, median(rates)):
        message = f"The rate grows to {rates[-1]:.2g} times the optimiser's own over the {n} planned updates."
        yield Finding(
            "lr_schedule", "error", "", evidence.step, message, "Schedules lower the rate: gamma below 1.", {"last": rates[-1]}
        )


@rule(explains=["weights_shrinking", "slow_convergence", "constant_output", "lr_too_low", "bad_initial_loss"])
def weight_decay_too_strong(evidence: Evidence) -> Iterator[Finding]:
    """Weight decay pulls harder at the weights than the loss does, so they shrink towards zero whatever the data say.

    What it means: the network underfits, or its output becomes constant. Typical causes: a decay that was meant as the
    rate, a penalty that is summed over all weights without a small factor, SGD's decay copied to AdamW or the other way
    round.

    How it is measured, at the first step, over all weight matrices together: through the gradient (SGD, Adam): decay times
    weights over the gradient; decoupled (AdamW): decay times the weights' root mean square over the step's size, 1; a
    penalty inside the loss: the cosine between gradient and weights, which is 1 for an L2 penalty alone, .8 for L1, and
    near 0 for data. An L2 penalty also shows by its size: the product of gradient and weights, over all parameters, is
    twice what the loss holds beside the only one of torch's losses in it; its gradient over the rest of the gradient is
    then its pull (the median over weights that no normalisation follows, since a head that starts far off has a steep one).

    Threshold: a pull above .5, where the planned updates would shrink the weights by more than a factor e; a cosine above .7
    (.5 where most of the loss is a penalty), over 100 weights or more; for the penalty's size a product within a quarter of
    twice the rest of the loss, most of the loss, and a pull above .3, which grows as the loss falls. Healthy set-ups with a
    usual decay start below .1.

    Not an alarm: a strong decay in a run too short for it to matter; weights that decay in front of a normalisation at
    usual strength; a penalty of usual strength over so many weights that it is most of the loss.

    What to do: 5e-4 for SGD, .01 to .1 for AdamW; a penalty should be a small part of the loss.
    """
    weights = [f for f in tables(evidence) if f.gradient is not None and f.optimized]
    gradient = math.hypot(*(f.gradient or 0.0 for f in weights))
    norm = math.hypot(*(f.norm for f in weights))
    if not 0 < gradient < math.inf or sum(math.prod(f.shape) for f in weights) < FEW:
        return
    cosine = sum(f.along for f in weights) / (gradient * norm)
    decayed = [f for f in weights if f.decay > 0]
    shrink = max((_shrink(evidence, f) for f in decayed), default=0.0)
    decoupled = any(f.decoupled for f in decayed)
    pull = (
        max(f.decay * _rms(f) for f in decayed if f.decoupled)
        if decoupled
        else math.hypot(*(f.decay * f.norm for f in decayed)) / gradient
    )
    if shrink > 1 and pull > STRONGER:
        against = "the step" if decoupled else "the loss"
        message = f"Decay pulls {pull:.2g} times as hard as {against}, and alone would divide the weights by e^{shrink:.2g}."
        advice = f"weight_decay={'0.01' if decoupled else '5e-4'} or so instead of {max(f.decay for f in decayed):g}."
        where = max(decayed, key=lambda f: f.decay).name
        yield Finding(
            "weight_decay_too_strong", "error", where, evidence.step, message, advice, {"pull": pull, "shrink": shrink}
        )
    elif cosine > ALONG or (cosine > PARTLY_ALONG and _outweighed(evidence)):
        message = (
            f"The gradient points along the weights themselves (cosine {cosine:.2f}, not near 0): a penalty outweighs the data."
        )
        advice = "Lower the factor of the penalty in the loss, or use WeightDecay(...) with 5e-4."
        yield Finding("weight_decay_too_strong", "error", "", evidence.step, message, advice, {"cosine": cosine})
    elif (pull := _pull_inside(evidence)) > STRONGER_INSIDE:
        message = f"Most of the loss is an L2 penalty, which pulls {pull:.2g} times as hard as the rest of the loss."
        advice = "Lower the factor of the penalty in the loss, or use WeightDecay(...) with 5e-4."
        yield Finding("weight_decay_too_strong", "error", "", evidence.step, message, advice, {"pull": pull})


def _pull_inside(evidence: Evidence) -> float:
    """Return the gradient of an L2 penalty inside the loss over the rest's, 0 if there is none or the run cannot shrink by it."""
    if not _outweighed(evidence) or evidence.loss is None or evidence.losses[0].value is None:
        return 0.0
    penalty = evidence.loss - evidence.losses[0].value
    held = [f for f in evidence.parameters.values() if f.gradient is not None and f.optimized]
    along, squares = sum(f.along for f in held), sum(f.norm**2 for f in held)
    if not abs(along - 2 * penalty) < TWICE * 2 * penalty or squares == 0:
        return 0.0
    factor = 2 * penalty / squares
    normalised = {layer.weight for layer in evidence.layers if is_normalised(evidence, layer)}
    weights = [f for f in tables(evidence) if f in held and f.name not in normalised]
    if not weights or max(_shrink(evidence, replace(f, decay=factor, decoupled=False)) for f in weights) < 1:
        return 0.0
    others = ((f.gradient or 0.0) ** 2 - 2 * factor * f.along + (factor * f.norm) ** 2 for f in weights)
    return median(factor * f.norm / math.sqrt(max(other, 1e-12)) for f, other in zip(weights, others, strict=True))


def _outweighed(evidence: Evidence) -> bool:
    """Tell whether most of the loss is something else than the only one of torch's losses in it."""
    value = evidence.losses[0].value if len(evidence.losses) == 1 else None
    return value is not None and value > 0 and evidence.loss is not None and evidence.loss > 3 * value


def _shrink(evidence: Evidence, facts: ParameterFacts) -> float:
    """Return how many times the planned updates would divide a weight by e, by its decay alone."""
    rate = facts.made_with * (evidence.plan.updates or 0)
    if facts.decoupled:
        return rate * facts.decay
    if facts.fixed_step is not None:
        return rate / _rms(facts)
    return rate * facts.decay / max(1 - evidence.momentum, 1e-4)


def _rms(facts: ParameterFacts) -> float:
    return facts.norm / math.sqrt(math.prod(facts.shape))
