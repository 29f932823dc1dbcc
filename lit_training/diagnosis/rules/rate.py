"""Rules about the size of the first update: rate and clipping against the weights that they move."""

import math
from collections.abc import Iterator
from statistics import median_low

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.freshness import can_tell, fills_its_bounds
from lit_training.diagnosis.parameters import BEHIND, ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import FLUNG, guesses, is_normalised, risen
from lit_training.diagnosis.rules.learning import is_meant
from lit_training.diagnosis.updates import (
    broken_at_once,
    change,
    drawn_size,
    goes_far,
    gradient_norm,
    kept,
    matrices,
    promised,
    travelled,
    ways,
)

__all__ = ["clip_too_small", "lr_too_high", "lr_too_low"]

OVERWRITES = 1.0
OVERWRITES_ADAPTIVE = 2.0
NEARLY_OVERWRITES, IN_ALL = 0.7, 4.0
HALF_OVERWRITES, IN_HALF, JUMPED = 0.4, 2.0, 1.5
STILL_FLUNG = 2.0
LONG_RUN = 100
FALLS = 0.1
BARELY, STAYS = 1.0, 0.2
MOST_CLIPPED, LITTLE = 0.05, 1.5
HARDLY, HARDLY_MOVED = 3.0, 0.25
LONG_MEMORY = 0.99
LEFT, LEFT_PLAIN = 0.03, 0.005


@rule(
    explains=["lr_too_high", "loss_diverging", "nan_loss", "oscillating_loss", "exploding_gradient", "dead_relu", "saturation"]
)
def lr_too_high(evidence: Evidence) -> Iterator[Finding]:
    """The first update is larger than the weights that it moves, or the first few fling the loss up.

    What it means: what was drawn with care is overwritten by noise at once; the loss jumps, units die or saturate.

    How it is measured: after the first three updates, the loss against that of guessing (all classes alike, or the targets' mean,
    on whichever of the first batches it costs most) and against the first one. At the first step, norm of the first update over
    norm of the weight, the median over all weight matrices: rate times gradient (after clipping) for SGD; for Adam and its like,
    whose first step moves each weight by the rate, rate over the weight's root mean square.

    While a run goes on (`ActivationMonitor`): all units of a rectifier that fired at the start fall silent, and stay so.

    At the end of a run (`LossMonitor`): the loss rose to several times its start, or is where saying the same for every sample has
    it, and the weights were thrown far; or a network that could do its task was made worse, and did not come back (`forgot`).

    Threshold: a loss 5 times as high, and one more twice as high (a VGG without normalisation jumps to 6, and is back two steps
    later); other healthy set-ups from scratch rise by up to 1.7. For updates 1 for SGD, 2 for Adam and its like. Healthy
    updates are about a thousandth of the weights (Karpathy); fast recipes begin with a tenth. With SGD's momentum m above .99
    updates add up to 1 / (1 - m) times the first one, over hundreds of steps that cannot take back what they overwrite; then
    this sum is what counts. What each layer changes the next ones multiply: for Adam and its like .7 is enough where the median
    times the number of matrices is above 4, at the highest planned rate, since their step does not shrink with the gradient;
    weights in front of a normalisation do not count there. What is small on purpose counts as if it had torch's default size, 1
    / sqrt(3 fan_in). Of 800 healthy set-ups the highest has .5, with three and more matrices .36. Where the first three updates
    raise the loss by half, .4 is enough, and 2 in all (of 450 healthy set-ups those that begin above .2 raise it by .3 at
    most).

    Not an alarm: Adagrad, whose first step is by far its largest, in front of a normalisation or in a single layer; warm-up,
    whose first rate counts for SGD; weights that start at zero; targets or initialisation that make the gradient large
    (unnormalised_target, init_exploding); a single layer, which loses nothing when its first weights are overwritten; a loss
    that is NaN or infinite at once (nan_loss).

    What to do: lower `lr` until the ratio is below .1, or warm up.
    """
    yield from _overwritten(evidence) or _overwritten_layer_by_layer(evidence) or _flung(evidence)


@rule(explains=["slow_convergence", "constant_output"])
def lr_too_low(evidence: Evidence) -> Iterator[Finding]:
    """All planned updates together cannot lower the loss by much, or hardly move the weights.

    What it means: training ends near where it began.

    How it is measured: what the first update lowers the loss by, to first order (rate times the gradient's square for SGD, over
    1 - m with momentum m; rate times the sum of the gradient's sizes for Adam and its like), times the number of planned
    updates and the mean of the planned rates, over the loss. And the length of the first update, times the same, over the
    norm of the weight. And the same of the weights in groups of parameters whose rate is 100 times or more below that of others.

    At the end of a run (`LossMonitor`): the loss is where saying the same for every sample has it, and weights have hardly moved.

    Threshold: in a run of 100 updates or more, while the loss is that of guessing (.95 of it or more): a fall of .1, unless
    some weight would go as far as its size, or as that of what torch draws; or, since a batch's noise makes the figure too
    large, of 1 by all weights together (biases alone can only learn to guess), where no weight moves by more than a fifth of
    its norm. From scratch, weights of healthy set-ups move by 3 times their norm or more, counted like this, and those whose
    loss promises to fall by less than 1.5 by 7 times. Where another weight goes as far as a fifth of its norm, those of the slow
    groups count if all of them look as they were drawn, and none goes further than .03 of its norm, as weights at the end of a
    run that never moved (.005 under SGD, whose first gradients may be the smallest). They also have to end where torch draws them,
    or their biases to be zero still: small weights look as drawn after hundreds of steps, but all of 144 pretrained bodies had
    left those bounds after 20.

    Not an alarm: fine-tuning of a network that is good already, were it only by a twentieth, or gently below a new head, which
    lowers the loss with little movement; weights that start at zero; two factors that both start near zero, whose gradients grow
    with them; runs of unknown length; groups at a low rate of weights that look trained, as discriminative fine-tuning has them
    (Howard and Ruder 2018), of random frequencies, or at a rate of 0, which is freezing.

    What to do: raise `lr`; a usual one makes the first update about a thousandth of the weights.
    """
    fall = promised(evidence, clipped=False) if _is_judged(evidence) else None
    if fall is None:
        return
    slow = _left_behind(evidence)
    if fall < FALLS and not goes_far(evidence):
        message = (
            f"{evidence.plan.updates} updates like the first one lower the loss by {fall:.1g} of itself, not by 1 or more."
        )
        advice = f"Raise lr by a factor of {_round(10 / fall)} or so." if fall > 0 else "Give the optimiser a rate above 0."
        yield Finding("lr_too_low", "error", "", evidence.step, message, advice, {"promised": fall})
    elif _stays(evidence, clipped=False):
        way = travelled(evidence, clipped=False) or 0.0
        message = f"{evidence.plan.updates} updates like the first one move no weight by more than {way:.2g} of its norm."
        advice = f"Raise lr by a factor of {_round(10 / way)} or so."
        yield Finding("lr_too_low", "error", "", evidence.step, message, advice, {"travelled": way})
    elif slow:
        way = max(slow.values())
        message = (
            f"{len(slow)} weight(s) look freshly drawn, and {evidence.plan.updates} updates at the rate of their group move none by"
            f" more than {way:.2g} of its norm."
        )
        advice = "Give them the rate of the others; a lower one is for weights that were trained before."
        yield Finding("lr_too_low", "error", next(iter(slow)), evidence.step, message, advice, {"travelled": way})


@rule(explains=["slow_convergence", "constant_output"])
def clip_too_small(evidence: Evidence) -> Iterator[Finding]:
    """Clipping leaves so little of the gradient that all planned updates together cannot lower the loss by much.

    What it means: the clipping threshold, not the learning rate, sets the step, and it is far too small.

    How it is measured: as lr_too_low, with the gradient as clipping leaves it: by `gradient_clip_val`, by the module's
    `configure_gradient_clipping`, or by a loop's own code between `manual_backward` and `step`, where each gradient's norm is
    taken after the one and before the other.

    Threshold: .1 with clipping, or weights that hardly move, as for lr_too_low, while it would be more without; where less than
    a twentieth of the gradient is left, 1.5, or 3 if no weight would move by more than a quarter of its norm (faults that cost 9 to
    40 points came to 1.25 at most; healthy set-ups keep two fifths of their gradients, and promise 17 and more; the fall is
    counted as if all that is left pointed down, which clipping by value does not leave).

    Not an alarm: clipping under Adam and its like, which divide the gradient's size out; clipping of rare large gradients; the
    scale of mixed precision that is taken back, a power of two.

    What to do: log the gradient's norm and clip at about its 90th percentile; 1 is a common start.
    """
    if not _is_judged(evidence):
        return
    before, after = promised(evidence, clipped=False), promised(evidence, clipped=True)
    if before is None or after is None or before < FALLS or _stays(evidence, clipped=False):
        return
    most = HARDLY if (travelled(evidence, clipped=True) or math.inf) < HARDLY_MOVED else LITTLE
    if after < FALLS or after < min(most, MOST_CLIPPED * before) or _stays(evidence, clipped=True):
        norm, plan = gradient_norm(evidence), evidence.plan
        own = math.hypot(*(f.gradient * kept(evidence, f) for f in evidence.parameters.values() if f.gradient is not None))
        clip = next((value for value in (plan.clip, plan.clip_value) if value is not None), own)
        fall = f"{plan.updates} updates lower the loss by {after:.1g} of itself"
        message = f"The gradient, of norm {norm:.2g}, is clipped to {clip:.2g}, so that {fall}."
        advice = f"Clip to a norm of {_round(norm)} or so: gradient_clip_val in Trainer, or clip_grad_norm_."
        yield Finding("clip_too_small", "error", "", evidence.step, message, advice, {"norm": norm, "clip": clip})


def _flung(evidence: Evidence) -> list[Finding]:
    """Say so if the loss after the first updates is far above that of guessing."""
    later, highest = evidence.later, sorted(risen(evidence))[-2:]
    if later is None or broken_at_once(evidence) is not None or not highest:
        return []
    if highest[-1] <= FLUNG or highest[0] <= STILL_FLUNG:
        return []
    message = f"After {later.steps} updates the loss is {highest[-1]:.2g} times that of guessing or of the start."
    advice = "Lower lr by a factor of 10 or so, or warm up."
    return [Finding("lr_too_high", "error", "", evidence.step, message, advice, {"times": highest[-1]})]


def _overwritten(evidence: Evidence) -> list[Finding]:
    """Say so if the first update is larger than the weights."""
    normalised = {layer.weight for layer in evidence.layers if is_normalised(evidence, layer)}
    counted = [f for f in matrices(evidence) if not (f.shrinks and f.name in normalised)]
    changes = [
        (moved * _smallness(f), f.name, f.descent is None) for f in counted if (moved := change(evidence, f)) is not None
    ]
    if len(changes) < 2:
        return []
    typical = median_low(moved for moved, *_ in changes)
    adaptive = all(adaptive for *_, adaptive in changes)
    where = max(changes)[1]
    total = typical / (1 - evidence.momentum)
    if typical > (OVERWRITES_ADAPTIVE if adaptive else OVERWRITES):
        message = f"The first update is {typical:.2g} times as large as the weights (median of {len(changes)}), not .001 to .1."
        advice = f"Lower lr by a factor of {_round(typical / 0.01)} or so, or warm up."
        return [Finding("lr_too_high", "error", where, evidence.step, message, advice, {"ratio": typical})]
    if not adaptive and evidence.momentum > LONG_MEMORY and total > OVERWRITES:
        adds = f"momentum {evidence.momentum:g} adds up {1 / (1 - evidence.momentum):.0f} of them"
        message = (
            f"The first update is {typical:.2g} times as large as the weights, and {adds}: {total:.2g} times, not .01 to 1."
        )
        advice = "momentum=0.9, or lower lr by as much as the momentum adds up."
        return [Finding("lr_too_high", "error", where, evidence.step, message, advice, {"ratio": typical, "total": total})]
    return []


def _overwritten_layer_by_layer(evidence: Evidence) -> list[Finding]:
    """Say so if at its highest rate Adam or its like nearly overwrites each of many layers at every step.

    Half of that is enough where the first few updates raise the loss.
    """
    normalised = {layer.weight for layer in evidence.layers if is_normalised(evidence, layer)}
    weights = [f for f in matrices(evidence) if f.fixed_step is not None and not f.shrinks and f.name not in normalised]
    if len(weights) < 2 or any(f.descent is not None for f in matrices(evidence)):
        return []
    peak = max(evidence.plan.rates, default=None)
    moved = [(f.fixed_step or 0.0 if peak is None else f.made_with * f.step_at_one * peak) / _scale(f) for f in weights]
    typical = median_low(moved)
    nearly = typical >= NEARLY_OVERWRITES and typical * len(moved) >= IN_ALL
    half = typical >= HALF_OVERWRITES and typical * len(moved) >= IN_HALF
    if not nearly and not (half and max(risen(evidence), default=0.0) > JUMPED):
        return []
    message = f"Updates are {typical:.2g} times as large as the weights (median of {len(moved)} layers), not .001 to .1."
    advice = f"Lower lr by a factor of {_round(typical / 0.01)} or so."
    return [Finding("lr_too_high", "error", weights[0].name, evidence.step, message, advice, {"ratio": typical})]


def _smallness(facts: ParameterFacts) -> float:
    """Return a weight's root mean square over that of torch's default where it is smaller: it is meant to grow."""
    return facts.norm / math.sqrt(math.prod(facts.shape)) / _scale(facts)


def _scale(facts: ParameterFacts) -> float:
    """Return the root mean square of a weight, at least that of torch's default."""
    return max(facts.norm / math.sqrt(math.prod(facts.shape)), drawn_size(facts))


def _stays(evidence: Evidence, *, clipped: bool) -> bool:
    """Tell whether all planned updates hardly move the weights, and could lower the loss by little if they did."""
    fall, way = promised(evidence, clipped=clipped, weights_only=True), travelled(evidence, clipped=clipped)
    return fall is not None and way is not None and fall < BARELY and 0 < way < STAYS


def _left_behind(evidence: Evidence) -> dict[str, float]:
    """Return how far each weight of the groups with far lower rates gets, if all are as drawn and stay so while others learn."""
    reached = ways(evidence)
    fastest = max((evidence.parameters[name].made_with for name, way in reached.items() if way > STAYS), default=0.0)
    group = [f for f in evidence.parameters.values() if f.requires_grad and 0 < BEHIND * f.made_with <= fastest]
    slow = [f for f in group if f.kind == "weight" and can_tell(f.shape)]
    stay = all(0 < reached.get(f.name, 0.0) < (LEFT_PLAIN if f.fixed_step is None else LEFT) for f in slow)
    return {f.name: reached[f.name] for f in slow} if stay and _are_drawn(evidence, group, slow) else {}


def _are_drawn(evidence: Evidence, group: list[ParameterFacts], weights: list[ParameterFacts]) -> bool:
    """Tell for sure whether weights are as they were drawn: by where they end, or by vectors beside them that are constant yet."""
    if not weights or not all(f.fresh and not is_meant(evidence, f) for f in weights):
        return False
    vectors = [f for f in group if len(f.shape) == 1 and math.prod(f.shape) > 1]
    constant = bool(vectors) and all(f.low == f.high for f in vectors)
    return constant or all(fills_its_bounds(f.shape, f.low, f.high) for f in weights)


def _is_judged(evidence: Evidence) -> bool:
    return (evidence.plan.updates or 0) >= LONG_RUN and guesses(evidence)


def _round(value: float) -> str:
    return f"{value:.0e}" if value >= 1e4 else f"{value:.1g}" if value < 10 else f"{value:.0f}"
