"""The rule about weight decay and penalties against the loss."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import guess, is_normalised
from lit_training.diagnosis.updates import drawn_size, tables
from lit_training.tracing.graph import Graph

__all__ = ["weight_decay_too_strong"]

SHRINKS = 2.0
STRONGER = 0.5
COUNTS = 0.3
ALONG, PARTLY_ALONG = 0.7, 0.5
FEW = 100
TWICE, STRONGER_INSIDE = 0.25, 0.3
OUTWEIGHS = 2.0
GOOD = 0.3
LARGEST = 3.0


@rule(explains=["weights_shrinking", "slow_convergence", "constant_output", "lr_too_low", "bad_initial_loss"])
def weight_decay_too_strong(evidence: Evidence) -> Iterator[Finding]:
    """Weight decay pulls harder at the weights than the loss does, so they shrink towards zero whatever the data say.

    What it means: the network underfits, or its output becomes constant. Typical causes: a decay that was meant as the
    rate, a penalty that is summed over all weights without a small factor, SGD's decay copied to AdamW or the other way
    round.

    How it is measured, at the first step, over all weight matrices together: through the gradient (SGD, Adam): decay times
    weights over the gradient; decoupled (AdamW): decay times the weights' root mean square (at most 3 times that of what torch
    draws: larger ones may well shrink to it) over the step's size, 1; a penalty inside the loss: the cosine between gradient
    and weights, which is 1 for an L2 penalty alone, .8 for L1, and near 0 for data. An L2 penalty also shows by its size: the
    product of gradient and weights, over all parameters, is twice what the loss holds beside the only one of torch's losses in
    it; its gradient over the rest of the gradient is then its pull (the median over weights that no normalisation follows,
    since a head that starts far off has a steep one). Decay through the gradient is a penalty too, of decay / 2 times the
    squared weights, and is compared with the loss.

    At the end of a run (`LossMonitor`): all weights of several columns have less than a tenth of their size at the start, and the
    loss is above .4 of that at the start.

    Threshold: a pull above .5 (through the gradient, if the penalty is .3 of the loss or more: faults have 1.2 and more; inputs
    of small numbers may give a first layer a small gradient, and .02), or a penalty of more than twice the loss (healthy set-ups
    have .4 at most), where the planned updates would shrink the weights by more than a factor e^2 (faults have e^4 and more,
    small nets that are ridge regressions on purpose e^1.8); a cosine above .7 (.5 where most of the loss is a penalty), over 100
    weights or more; for the penalty's size a product within a quarter of twice the rest of the loss, most of the loss, and a pull
    above .3, which grows as the loss falls. Healthy set-ups with a usual decay start below .1.

    Not an alarm: decay through the gradient of a network that is good already (a loss below .3 of what a guess costs), whose
    gradient and loss are small because there is little left to learn; a strong decay in a run too short for it to matter;
    weights that decay in front of a normalisation at usual strength; a penalty of usual strength over so many weights that it
    is most of the loss; a loss that is one of torch's and nothing else, whatever way its gradient points (in a linear model,
    whose first weights are larger than those to be found, along them); a penalty that draws a weight's product with itself to a
    constant (soft orthogonality, Bansal et al. 2018), which ends at a size and not at zero.

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
    if not decoupled and _is_good(evidence):
        shrink = 0.0
    pull = (
        max(f.decay * min(_rms(f), LARGEST * drawn_size(f)) for f in decayed if f.decoupled)
        if decoupled
        else math.hypot(*(f.decay * f.norm for f in decayed)) / gradient
    )
    at_stake = decoupled or sum(f.decay * f.norm**2 / 2 for f in decayed) > COUNTS * abs(evidence.loss or 0.0)
    if shrink > SHRINKS and pull > STRONGER and at_stake:
        against = "the step" if decoupled else "the loss"
        message = f"Decay pulls {pull:.2g} times as hard as {against}, and alone would divide the weights by e^{shrink:.2g}."
        advice = f"weight_decay={'0.01' if decoupled else '5e-4'} or so instead of {max(f.decay for f in decayed):g}."
        where = max(decayed, key=lambda f: f.decay).name
        yield Finding(
            "weight_decay_too_strong", "error", where, evidence.step, message, advice, {"pull": pull, "shrink": shrink}
        )
    elif shrink > SHRINKS and (cost := _cost_of_decay(evidence, decayed)) > OUTWEIGHS * _cost_of_data(evidence):
        message = f"Decay through the gradient costs {cost:.3g} at the start, the loss is {evidence.loss:.3g}: zero is cheaper."
        where = max(decayed, key=lambda f: f.decay).name
        advice = f"weight_decay=5e-4 or so instead of {max(f.decay for f in decayed):g}; SGD and Adam take less than AdamW."
        yield Finding(
            "weight_decay_too_strong", "error", where, evidence.step, message, advice, {"cost": cost, "shrink": shrink}
        )
    elif (
        not evidence.bare
        and not _is_orthogonality(evidence.graph)
        and (cosine > ALONG or (cosine > PARTLY_ALONG and _outweighed(evidence)))
    ):
        message = (
            f"The gradient points along the weights themselves (cosine {cosine:.2f}, not near 0): a penalty outweighs the data."
        )
        advice = "Lower the factor of the penalty in the loss, or use WeightDecay(...) with 5e-4."
        yield Finding("weight_decay_too_strong", "error", "", evidence.step, message, advice, {"cosine": cosine})
    elif (pull := _pull_inside(evidence)) > STRONGER_INSIDE:
        message = f"Most of the loss is an L2 penalty, which pulls {pull:.2g} times as hard as the rest of the loss."
        advice = "Lower the factor of the penalty in the loss, or use WeightDecay(...) with 5e-4."
        yield Finding("weight_decay_too_strong", "error", "", evidence.step, message, advice, {"pull": pull})


def _is_orthogonality(graph: Graph) -> bool:
    """Tell whether the product of a weight with itself is compared with a constant: it is drawn to a size, not to zero."""

    def owner(index: int) -> set[str]:
        return {graph.nodes[i].name for i in graph.ancestors(index) if graph.nodes[i].op == "parameter"}

    grams = (n.index for n in graph.nodes if n.op in ("mm", "bmm") and n.origin == "parameter" and len(n.parents) == 2)
    squares = {i for i in grams if len(owner(i)) == 1 and len({*map(frozenset, map(owner, graph.nodes[i].parents))}) == 1}
    differences = (node for node in graph.nodes if node.op in ("sub", "rsub") and not squares.isdisjoint(node.parents))
    return any(graph.nodes[p].origin == "constant" for node in differences for p in node.parents)


def _is_good(evidence: Evidence) -> bool:
    """Tell whether the first loss is far below that of a guess."""
    level = guess(evidence)
    return level is not None and evidence.loss is not None and evidence.loss < GOOD * level


def _cost_of_decay(evidence: Evidence, decayed: Sequence[ParameterFacts]) -> float:
    """Return what decay through the gradient adds to the loss, of weights whose scale no normalisation takes back."""
    normalised = {layer.weight for layer in evidence.layers if is_normalised(evidence, layer)}
    held = [f for f in decayed if not f.decoupled and f.name not in normalised]
    return sum(f.decay * f.norm**2 / 2 for f in held)


def _cost_of_data(evidence: Evidence) -> float:
    """Return the loss, or what is larger of its parts, infinity where they are not known: a likelihood may be 0 by chance."""
    values = [abs(call.value) for call in evidence.losses if call.value is not None]
    return max(abs(evidence.loss or math.inf), *values) if values else math.inf


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
