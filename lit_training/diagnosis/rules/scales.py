"""The rule about the scale of a regression's targets."""

import math
from collections.abc import Iterator, Sequence

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import classes_of, guesses, overshoots
from lit_training.diagnosis.updates import promised
from lit_training.tracing.loss_calls import LossCall, from_loader

__all__ = ["unnormalised_target"]

OUT_OF_REACH = 100.0
FAR = 50.0
LARGE, USUAL, LONG, HARDLY = 100.0, 5e-4, 100, 0.1
UNEQUAL, PLAIN = 50.0, 1e-3
_REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


@rule(
    explains=[
        "init_exploding",
        "exploding_gradient",
        "nan_loss",
        "lr_too_high",
        "lr_too_low",
        "bad_initial_loss",
        "loss_diverging",
        "slow_convergence",
        "loss_reduction",
        "dead_relu",
    ]
)
def unnormalised_target(evidence: Evidence) -> Iterator[Finding]:
    """The targets of a regression are so large, or so small, that neither the rate nor the outputs fit them.

    What it means: large errors make the first updates of gradient descent larger than the weights, and lie out of reach for
    optimisers whose steps have the size of the rate. Beside tiny targets all that a network says at first is noise, and one step
    of a usual rate is larger than what is to be told apart.

    How it is measured: the largest target of a squared, absolute or Huber loss against the first outputs, and the first update.

    Threshold: targets above 30 and above 30 times the largest output, and a first update of SGD that exceeds a weight
    matrix; or, for other optimisers and absolute errors, targets above 100 times what all planned updates can add up to
    (rate times updates times the width of the last layer); or targets above 100 under such an optimiser, at a rate of 5e-4 or
    more, with which 100 or more updates lower the loss by less than a tenth of itself (lr_too_low). All targets more than 50 of
    their standard deviations from zero count too. Tiny ones: outputs that scatter more than 3 times as far as any target
    reaches, so that the first loss is 30 times that of the targets' mean or more, where the targets' std is further from 1, as a
    factor, than that of the outputs (else init_exploding).

    Unequal ones: a squared error of 2 to 8 columns of numbers, or a plain sum of squared errors, is all of the loss, and the
    targets' standard deviations differ by more than 50 times. The smaller then has a 2500th of the loss, and nothing pulls at it
    before the larger is explained to as much: with Adam and SGD, columns of 1 and 30 left the smaller at an R2 of .08 or less in
    350 steps, where it has .88 if both are 1. A squared error that is 2500 times a cross-entropy, where the loss is the sum of both
    and nothing else, leaves that one as little of what their networks share.

    At the end of a run (`LossMonitor`): the first loss was above 5 times that of the targets' mean, a quarter of the run went into
    coming down to that, and it came no further.

    Not an alarm: large targets that a low enough or a high enough rate can reach, as in physical units under Adam; columns of
    different size under an absolute error, under weights, or scaled on the way to the loss.

    What to do: standardise the targets, each column for itself, and scale predictions back.
    """
    yield from [*_tiny(evidence), *_out_of_reach(evidence)] or _unequal(evidence)


def _out_of_reach(evidence: Evidence) -> Iterator[Finding]:
    for call in evidence.losses:
        if call.op not in _REGRESSION:
            continue
        size = max(map(abs, call.target_range))
        offset = _offset(call)
        if offset > FAR and size > 30 and size > 30 * max(map(abs, call.prediction_range)):
            message = f"The targets lie {offset:.0f} of their standard deviations from zero, and the outputs start there."
            advice = "Standardise the targets with the training data's mean and std; scale predictions back."
            yield Finding("unnormalised_target", "error", "", evidence.step, message, advice, {"offset": offset})
            return
        outputs = max(map(abs, call.prediction_range))
        if not math.isfinite(size) or size <= 30 * max(outputs, 1.0):
            continue
        change = max((f.first_change or 0.0 for f in evidence.parameters.values() if f.kind == "weight"), default=0.0)
        bounded = call.op != "mse_loss"
        reach = _reach(evidence, bounded)
        if change > 1 and not bounded:
            why = f"the first update is {change:.2g} times a weight"
        elif size > OUT_OF_REACH * reach:
            why = f"all planned updates together can move an output by about {reach:.2g}"
        elif size > LARGE and math.isfinite(reach) and _hardly_falls(evidence):
            why = f"{evidence.plan.updates} updates at a usual rate hardly lower the loss"
        else:
            continue
        low, high = call.target_range
        message = f"The targets go from {low:.4g} to {high:.4g}, the outputs start within {outputs:.2g}, and {why}."
        advice = "Standardise the targets with the training data's mean and std; scale predictions back."
        yield Finding("unnormalised_target", "error", "", evidence.step, message, advice, {"size": size, "outputs": outputs})
        return


def _tiny(evidence: Evidence) -> Iterator[Finding]:
    found = overshoots(evidence)
    if found is None or found[1].spread is None:
        return
    _, _, head = found
    std = math.sqrt(found[1].spread[0])
    if abs(math.log(head.output.signal)) < abs(math.log(std)):
        message = f"The targets have std {std:.2g}, the outputs start with {head.output.signal:.2g}."
        advice = "Standardise the targets with the training data's mean and std; scale predictions back."
        yield Finding("unnormalised_target", "error", "", evidence.step, message, advice, {"std": std})


def _unequal(evidence: Evidence) -> Iterator[Finding]:
    """Say so if of several targets one has next to nothing of a loss that is their squared errors and nothing else."""
    times = _times_apart(evidence)
    if times > UNEQUAL:
        share = f"the smaller has {times**-2:.1g} of the loss"
        message = f"Under one squared error the targets' std differ by {times:.3g} times: {share}."
        advice = "Standardise each target with the training data's mean and std; scale predictions back."
        yield Finding("unnormalised_target", "warning", "", evidence.step, message, advice, {"times": times})
    times = _times_drowned(evidence)
    if times > UNEQUAL**2:
        message = f"The squared error is {times:.2g} times the cross-entropy that it is added to."
        advice = "Standardise the numbers with the training data's mean and std, or weigh the losses; scale predictions back."
        yield Finding("unnormalised_target", "warning", "", evidence.step, message, advice, {"times": times})


def _times_apart(evidence: Evidence) -> float:
    """Return how many times the standard deviations of the targets differ, 0 where the loss weighs them, or has other parts."""
    calls = [call for call in evidence.losses if from_loader(evidence.graph, evidence.graph.nodes[call.target])]
    if len(calls) < len(evidence.losses) or any(call.op != "mse_loss" or call.summed for call in calls):
        return 0.0
    if len(calls) == 1:
        return calls[0].unequal or 0.0 if evidence.bare else 0.0
    variances, values = [call.constant or 0.0 for call in calls], [call.value or 0.0 for call in calls]
    plain = _is_plain_sum(evidence, values)
    return math.sqrt(max(variances) / min(variances)) if plain and min(variances, default=0.0) > 0 else 0.0


def _times_drowned(evidence: Evidence) -> float:
    """Return how many times a squared error exceeds a cross-entropy, 0 unless the loss is their plain sum."""
    errors = [call.value or 0.0 for call in evidence.losses if call.op == "mse_loss" and not call.summed]
    classes = [call.value or 0.0 for call in evidence.losses if classes_of(evidence, call) and not call.summed]
    alone = len(errors) + len(classes) == len(evidence.losses) and min(classes, default=0.0) > 0
    return max(errors) / min(classes) if errors and alone and _is_plain_sum(evidence, errors + classes) else 0.0


def _is_plain_sum(evidence: Evidence, values: Sequence[float]) -> bool:
    return evidence.loss is not None and math.isclose(sum(values), evidence.loss, rel_tol=PLAIN)


def _hardly_falls(evidence: Evidence) -> bool:
    """Tell whether a long run at a usual rate is to lower a loss that is a guess by less than a tenth."""
    rate = evidence.later.rate if evidence.later is not None else 0.0
    fall = promised(evidence, clipped=False)
    return fall is not None and fall < HARDLY and rate >= USUAL and (evidence.plan.updates or 0) >= LONG and guesses(evidence)


def _offset(call: LossCall) -> float:
    """Return how many standard deviations the nearest target lies from zero, 0 if zero lies among them."""
    low, high = call.target_range
    if call.spread is None or call.spread[0] <= 0 or low <= 0 <= high:
        return 0.0
    return min(abs(low), abs(high)) / math.sqrt(call.spread[0])


def _reach(evidence: Evidence, bounded: bool) -> float:
    """Return about how far all planned updates can move an output, infinite where they grow with the error or are not known."""
    rate = evidence.later.rate if evidence.later is not None else 0.0
    facts = evidence.parameters.values()
    if not evidence.plan.updates or rate == 0 or (not bounded and any(f.descent is not None for f in facts)):
        return math.inf
    heads = [f.shape[1] for layer in evidence.layers[-1:] if (f := evidence.parameters.get(layer.weight)) and len(f.shape) == 2]
    path = rate * evidence.plan.updates
    return path * (1 + max(heads, default=1) * (1 + path))
