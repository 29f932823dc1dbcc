"""The rule about biases that decide alone, whatever the sample."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden, is_drawn, regression, times_guessing
from lit_training.diagnosis.rules.units import ALONE, culprit, is_saturated
from lit_training.tracing.tensor_stats import TensorStats

__all__ = ["bad_bias_init"]

CLOSED = -1.5
OVERCONFIDENT = 5.0
OFF_TARGET = 30.0
LARGE, FAR_OUT = 8.0, 20.0
LARGE_ON_AVERAGE, EVENLY = 3.0, 0.95


@rule(
    explains=[
        "saturation",
        "init_vanishing",
        "init_exploding",
        "bad_gain",
        "slow_convergence",
        "lr_too_low",
        "lr_too_high",
        "nan_loss",
        "constant_output",
    ]
)
def bad_bias_init(evidence: Evidence) -> Iterator[Finding]:
    """Biases are so large that they decide alone, whatever the sample.

    What it means: a gate is shut or open for good; a head is certain of one class before it has seen any. Typical causes: a
    bias drawn with a weight's initialiser, a typo in a prior, `bias_ih` and `bias_hh` of an LSTM filled for another order of
    its gates.

    How it is measured:
    hidden layers: half of a sigmoid's or tanh's values lie within 1 % of their bounds, and every bias of the layer (or of the
    batch norm behind it) lies on one side of zero, further than 3 times the std that its samples give it (2 times for batch
    norm, whose std is 1); of rectifiers dead_relu names such a bias;
    heads: the first cross-entropy is above 5 times that of guessing, or a regression's loss above 30 times that of the targets'
    mean, and a bias is larger than 3 times the outputs' std over samples (and twice the largest target); under any loss a bias
    above 8 and above 20 times that std, where the gradient at the outputs has one sign in all samples, or above 3 where it pulls
    the bias back nearly alike everywhere (its mean is .95 of its root mean square);
    LSTMs and GRUs: the biases of the gates that keep the memory average below -1.5, so that sigmoid(-1.5) = 18 % of it survives
    a step, and .03 % five (Jozefowicz, Zaremba and Sutskever 2015 want an LSTM's at +1).

    Threshold: three standard deviations leave one sample of a thousand on the other side of zero.

    Not an alarm: a head at the logarithm of the class frequencies or the mean of the targets (Lin et al. 2017, Karpathy), which
    makes the first loss smaller, not larger; a highway's gates at -1 to -8 (Srivastava et al. 2015), which open slowly; small
    positive biases under ReLU.

    What to do: start biases at 0, a head's at the log of the class frequencies, an LSTM's forget gate at 1.
    """
    for layer in hidden(evidence):
        bias = culprit(evidence, layer) if is_saturated(layer) else None
        if bias is not None:
            value = bias.high if bias.high < 0 else bias.low
            message = (
                f"All biases of {bias.name} lie beyond {value:.3g}, so {layer.nonlinearity} behind {layer.name} is saturated."
            )
            yield _finding(evidence, bias.name, message, "Start biases at zero: torch.nn.init.zeros_(layer.bias).", value)
            return
    ratio, head = times_guessing(evidence)
    facts = evidence.parameters.get(f"{head.name}.bias") if head is not None else None
    if ratio > OVERCONFIDENT and head is not None and facts is not None:
        largest = max(abs(facts.low), abs(facts.high))
        if largest > ALONE * head.output.signal:
            message = (
                f"Biases up to {largest:.3g} decide alone (samples move the logits by {head.output.signal:.2g}): the first loss is"
                f" {ratio:.1f} times that of guessing."
            )
            advice = "Start the head's bias at 0, or at the log of the class frequencies."
            yield _finding(evidence, facts.name, message, advice, largest)
            return
    found = regression(evidence)
    facts = evidence.parameters.get(f"{found[2].name}.bias") if found is not None else None
    if found is not None and facts is not None and found[0] > OFF_TARGET:
        ratio, call, head = found
        largest = max(abs(facts.low), abs(facts.high))
        if largest > ALONE * head.output.signal and largest > 2 * max(map(abs, call.target_range)):
            message = (
                f"Biases up to {largest:.3g} lead outputs astray: the first loss is {ratio:.2g} times the targets' variance."
            )
            advice = "Start the head's bias at 0, or at the mean of the targets."
            yield _finding(evidence, facts.name, message, advice, largest)
            return
    pushed = _pushed_back(evidence)
    if pushed is not None:
        name, largest = pushed
        message = f"Biases up to {largest:.3g} decide alone, and every sample of the batch pushes them back."
        advice = "Start the head's bias at 0, or at the targets' mean on the scale of the outputs (their log, behind exp)."
        yield _finding(evidence, name, message, advice, largest)
        return
    for name, gate in evidence.forget_gates.items():
        if gate < CLOSED:
            kept = 1 / (1 + math.exp(-gate))
            message = f"The gates that keep the memory of {name} start closed (bias {gate:.2g}): {kept:.1%} survives a step."
            advice = "Set bias_ih + bias_hh of an LSTM's forget gate (a GRU's update gate), rows H to 2H, to 1."
            yield _finding(evidence, name, message, advice, gate)
            return


def _pushed_back(evidence: Evidence) -> tuple[str, float] | None:
    """Return the bias of an output that is large, and that all samples push into one direction, and its largest element."""
    for layer in evidence.layers:
        facts = evidence.parameters.get(f"{layer.name}.bias")
        last = layer.node is not None and not evidence.graph.reaches_layer(layer.node)
        if not last or facts is None or layer.gradient is None or layer.gradient.rows < 8:
            continue
        if not is_drawn(evidence, layer) and math.prod(facts.shape) > 1:  # of one unit that cannot be told
            continue
        largest = max(abs(facts.low), abs(facts.high))
        one_way = bool(((layer.gradient.low > 0) | (layer.gradient.high < 0)).all())
        least = LARGE if one_way else LARGE_ON_AVERAGE if _points_back(facts, layer.gradient) else math.inf
        if largest > max(least, FAR_OUT * layer.output.signal):
            return facts.name, largest
    return None


def _points_back(bias: ParameterFacts, gradient: TensorStats) -> bool:
    """Tell whether a bias of one sign is pulled to zero by nearly the same gradient everywhere."""
    sign = 1 if bias.low > 0 else -1 if bias.high < 0 else 0
    return sign * gradient.mean > EVENLY * gradient.rms


def _finding(evidence: Evidence, where: str, message: str, advice: str, value: float) -> Finding:
    return Finding("bad_bias_init", "error", where, evidence.step, message, advice, {"bias": value})
