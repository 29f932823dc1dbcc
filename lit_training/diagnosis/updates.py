"""How far the planned updates can go: what rate, clipping and gradient of the first step promise for the whole run."""

import math
from statistics import fmean

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.parameters import ParameterFacts

__all__ = ["change", "gradient_norm", "kept", "matrices", "promised", "tables"]


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


def gradient_norm(evidence: Evidence) -> float:
    """Return the norm over all gradients together, before clipping."""
    return math.sqrt(sum(f.gradient**2 for f in evidence.parameters.values() if f.gradient is not None))


def kept(evidence: Evidence, facts: ParameterFacts) -> float:
    """Return which part of a weight's gradient clipping leaves: by the norm of all, by value, or by the user's own code."""
    norm, plan = gradient_norm(evidence), evidence.plan
    if plan.clip is not None and norm > 0:
        return min(1.0, plan.clip / norm)
    if plan.clip_value is not None and facts.gradient:
        return min(1.0, plan.clip_value * math.sqrt(math.prod(facts.shape)) / facts.gradient)
    if plan.clip is None and evidence.later is not None and evidence.later.kept:
        return min(1.0, evidence.later.kept)
    return 1.0


def promised(evidence: Evidence, *, clipped: bool) -> float | None:
    """Return by which part of itself the loss would fall if all planned updates were like the first one, to first order.

    An update against the gradient g lowers the loss by rate * |g|^2 under SGD (times 1 / (1 - momentum)), by rate * sum(|g|) under
    Adam and its like. The noise in a batch's gradient makes this too large rather than too small.

    Returns:
        The fraction, `None` where rates or the number of updates are not known, or some optimiser's step is not.
    """
    plan, loss = evidence.plan, evidence.loss
    if plan.updates is None or (plan.scheduled and not plan.rates) or not evidence.stepping or not loss:
        return None
    learning = [f for f in evidence.parameters.values() if f.gradient is not None and f.requires_grad and f.optimized]
    if not learning or any(not f.stepping or (f.descent is None and f.fixed_step is None) for f in learning):
        return None
    total = sum(_per_update(evidence, f, clipped) for f in learning)
    return total * plan.updates * (fmean(plan.rates) if plan.rates else 1.0) / abs(loss)


def _per_update(evidence: Evidence, facts: ParameterFacts, clipped: bool) -> float:
    assert facts.gradient is not None
    if facts.fixed_step is not None:
        step = facts.fixed_step if not evidence.plan.rates else facts.made_with
        fade = 2 / math.sqrt(evidence.plan.updates or 1) if facts.shrinks else 1.0
        return facts.gradient_sum * step * fade
    left = kept(evidence, facts) if clipped else 1.0
    return facts.made_with * facts.gradient**2 * left / max(1 - evidence.momentum, 1e-4)
