"""How far the planned updates can go: what rate, clipping and gradient of the first step promise for the whole run."""

import math
from statistics import fmean, median_low

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.parameters import ParameterFacts

__all__ = [
    "broken_at_once",
    "change",
    "drawn_size",
    "goes_far",
    "gradient_norm",
    "kept",
    "matrices",
    "promised",
    "tables",
    "travelled",
    "ways",
]


SMALL = 0.2


def matrices(evidence: Evidence) -> list[ParameterFacts]:
    """Return the weights of two or more dimensions that are trained and not zero."""
    return [f for f in tables(evidence) if f.kind == "weight"]


def tables(evidence: Evidence) -> list[ParameterFacts]:
    """Return weights as `matrices` does, and embeddings."""
    parameters = (f for f in evidence.parameters.values() if f.kind in ("weight", "embedding"))
    return [f for f in parameters if len(f.shape) > 1 and f.norm > 0 and f.requires_grad]


def change(evidence: Evidence, facts: ParameterFacts) -> float | None:
    """Return the first update of a weight over its norm, `None` where the optimiser's step is not known."""
    if facts.gradient is None or facts.gradient == 0:
        return None
    if facts.fixed_step is not None:
        return facts.fixed_step * math.sqrt(math.prod(facts.shape)) / facts.norm
    return None if facts.first_change is None else facts.first_change * kept(evidence, facts)


def broken_at_once(evidence: Evidence) -> int | None:
    """Return after how many updates the loss was not finite, if it had not risen before and the first update was small.

    Updates that diverge make the loss large before it overflows; what breaks from one batch to the next is a value, not a rate.
    """
    losses = () if evidence.later is None else evidence.later.losses
    broken = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    changes = [moved for f in matrices(evidence) if (moved := change(evidence, f)) is not None]
    if broken is None or evidence.loss is None or not math.isfinite(evidence.loss) or not changes:
        return None
    rose = any(abs(loss) > 2 * abs(evidence.loss) + 1 for loss in losses[:broken])
    return None if rose or not median_low(changes) < SMALL else broken + 1


def gradient_norm(evidence: Evidence) -> float:
    """Return the norm over all gradients together, before clipping."""
    return math.sqrt(sum(f.gradient**2 for f in evidence.parameters.values() if f.gradient is not None))


def kept(evidence: Evidence, facts: ParameterFacts) -> float:
    """Return which part of a weight's gradient clipping leaves: by the norm of all, by value, or by the user's own code."""
    plan = evidence.plan
    if plan.clip is not None and (norm := gradient_norm(evidence)) > 0:
        return min(facts.kept, plan.clip / norm)
    if plan.clip_value is not None and facts.gradient:
        return min(facts.kept, plan.clip_value * math.sqrt(math.prod(facts.shape)) / facts.gradient)
    if plan.clip is None and evidence.later is not None and evidence.later.kept:
        return facts.kept * min(1.0, evidence.later.kept)
    return facts.kept


def promised(evidence: Evidence, *, clipped: bool, weights_only: bool = False) -> float | None:
    """Return by which part of itself the loss would fall if all planned updates were like the first one, to first order.

    An update against the gradient g lowers the loss by rate * |g|^2 under SGD (times 1 / (1 - momentum)), by rate * sum(|g|) under
    Adam and its like. The noise in a batch's gradient makes this too large rather than too small.

    Args:
        evidence: of the first step.
        clipped: whether to count what clipping leaves of the gradient, or all of it.
        weights_only: whether to leave out biases and normalisation, which alone can only bring the loss to that of guessing.

    Returns:
        The fraction, `None` where rates or the number of updates are not known, or some optimiser's step is not.
    """
    learning = _learning(evidence)
    if learning is None or not evidence.loss:
        return None
    counted = [f for f in learning if not weights_only or _is_weight(f)]
    falls = (f.gradient_sum if f.fixed_step is not None else f.gradient**2 for f in counted if f.gradient is not None)
    return sum(fall * _rates(evidence, f, clipped) for fall, f in zip(falls, counted, strict=True)) / abs(evidence.loss)


def travelled(evidence: Evidence, *, clipped: bool) -> float | None:
    """Return how far the weight that moves most would get if all planned updates were like the first one, over its norm.

    Returns:
        The fraction, infinite where a weight starts at zero, `None` as for `promised`.
    """
    learning = _learning(evidence)
    if learning is None:
        return None
    return max((_way(evidence, f, clipped=clipped) for f in learning if _is_weight(f)), default=None)


def ways(evidence: Evidence) -> dict[str, float]:
    """Return of each weight how far planned updates like the first one would take it, over its norm; empty as for `promised`."""
    return {f.name: _way(evidence, f, clipped=False) for f in _learning(evidence) or () if _is_weight(f)}


def _way(evidence: Evidence, facts: ParameterFacts, *, clipped: bool) -> float:
    """Return how far a weight would get over its norm, infinite where it starts at zero."""
    return _length(facts) * _rates(evidence, facts, clipped) / facts.norm if facts.norm > 0 else math.inf


def goes_far(evidence: Evidence) -> bool:
    """Tell whether planned updates like the first one would take some weight as far as its size, or as that of what torch draws.

    Two factors that both start near zero get little gradient from each other at first, and more with every step.
    """
    goals = [(_length(f) * _rates(evidence, f, clipped=False), f) for f in _learning(evidence) or () if _is_weight(f)]
    return any(way > max(f.norm, math.sqrt(math.prod(f.shape)) * drawn_size(f)) for way, f in goals)


def drawn_size(facts: ParameterFacts) -> float:
    """Return the root mean square of a weight as torch draws it."""
    return 1 / math.sqrt(3 * math.prod(facts.shape[1:]))


def _learning(evidence: Evidence) -> list[ParameterFacts] | None:
    """Return what the planned updates move, `None` where that is not known of all."""
    plan = evidence.plan
    if plan.updates is None or (plan.scheduled and not plan.rates) or not evidence.stepping:
        return None
    learning = [f for f in evidence.parameters.values() if f.gradient is not None and f.requires_grad and f.optimized]
    if not learning or any(not f.stepping or (f.descent is None and f.fixed_step is None) for f in learning):
        return None
    return learning


def _is_weight(facts: ParameterFacts) -> bool:
    return facts.kind in ("weight", "embedding") and len(facts.shape) > 1 and facts.shape[-1] > 1


def _length(facts: ParameterFacts) -> float:
    """Return the length of an update at a rate of 1."""
    return math.sqrt(math.prod(facts.shape)) if facts.fixed_step is not None else facts.gradient or 0.0


def _rates(evidence: Evidence, facts: ParameterFacts, clipped: bool) -> float:
    """Return the sum of a parameter's planned rates, with what momentum adds and clipping takes."""
    updates = (evidence.plan.updates or 0) * (fmean(evidence.plan.rates) if evidence.plan.rates else 1.0)
    if facts.fixed_step is not None:
        step = facts.fixed_step if not evidence.plan.rates else facts.made_with * facts.step_at_one
        return updates * step * (2 / math.sqrt(evidence.plan.updates or 1) if facts.shrinks else 1.0)
    return updates * facts.made_with * (kept(evidence, facts) if clipped else 1.0) / max(1 - evidence.momentum, 1e-4)
