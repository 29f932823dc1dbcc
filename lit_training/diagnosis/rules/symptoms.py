"""Symptoms: what a user sees first. They are alarms only while no cause has been found."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import hidden, is_drawn, times_guessing

__all__ = ["bad_initial_loss", "exploding_gradient", "vanishing_gradient"]

VANISHED = 1e-6
LONG = 1e3
SURE_AND_WRONG = 6.0


@rule(symptom=True)
def bad_initial_loss(evidence: Evidence) -> Iterator[Finding]:
    """The first loss is far above that of guessing.

    What it means: the network starts certain, and wrong. It first has to unlearn (Karpathy, "A Recipe for Training Neural
    Networks": verify loss at init).

    How it is measured: torch's cross-entropy, or BCE with logits, averaged, over log(C), or log(2).

    Threshold: 6. Healthy set-ups start between 0.6 and 1.6, wide-open sigmoid nets at 4, pre-trained heads on other data at 3.3,
    torchvision's MNASNet at 5.2.

    Not an alarm: losses below guessing (trained nets, focal loss, priors in the bias); sums over the batch; heads that do not
    look freshly drawn, which were trained on other labels; logits that are scaled on purpose behind the last layer.

    What to do: see whether inputs are standardised, then draw the head's weights smaller.
    """
    ratio, head = times_guessing(evidence)
    if ratio > SURE_AND_WRONG and head is not None and is_drawn(evidence, head):
        message = f"The first loss is {ratio:.1f} times that of guessing."
        advice = "Standardise the inputs; draw the last layer's weights smaller."
        yield Finding("bad_initial_loss", "warning", head.name, evidence.step, message, advice, {"times_guessing": ratio})


@rule(symptom=True)
def vanishing_gradient(evidence: Evidence) -> Iterator[Finding]:
    """The gradient that arrives at the first layer is a millionth of that at the last hidden one, or less.

    What it means: the first layers do not learn in the time that the last ones take (Hochreiter 1991; Glorot and Bengio 2010).

    How it is measured: root mean square of the loss's gradient with respect to the output of the first hidden layer, over the
    largest at any hidden layer. Exactly zero is left to the rules about dead and detached layers: zero-initialised heads have
    it too.

    Threshold: 1e-6; healthy set-ups stay above 1e-3.

    Not an alarm: zero gradients at the first step, layers without a gradient; networks that read their input in several places, as
    long as the gradient arrives at one of them (what modulates branches scaled by 1e-6 gets little at first).

    What to do: normalise between the layers, use skip connections, or initialise for the nonlinearity.
    """
    sizes = [(layer, layer.gradient.rms) for layer in hidden(evidence) if layer.gradient is not None]
    made = evidence.graph.made_by_layers()
    entrances = [
        size for layer, size in sizes if layer.node is not None and made.isdisjoint(evidence.graph.nodes[layer.node].parents)
    ]
    if len(sizes) > 1 and 0 < max([sizes[0][1], *entrances]) < VANISHED * max(size for _, size in sizes):
        ratio = sizes[0][1] / max(size for _, size in sizes)
        message = f"The gradient at {sizes[0][0].name} is 10^{math.log10(ratio):.1f} times that of the last hidden layers."
        advice = "Normalise between layers, add skip connections, or initialise for the nonlinearity."
        yield Finding("vanishing_gradient", "warning", sizes[0][0].name, evidence.step, message, advice, {"ratio": ratio})


@rule(symptom=True)
def exploding_gradient(evidence: Evidence) -> Iterator[Finding]:
    """Some gradient is a thousand times longer than its weight: only ever a note.

    What it means: with plain gradient descent and a usual rate, the first step throws this weight far away.

    How it is measured: norm of a weight's gradient over its norm.

    Threshold: 1000. It is a note, since Adam and its like divide the size out, and targets in physical units have such
    gradients too.

    What to do: standardise targets and inputs, take the mean as the loss, initialise for the nonlinearity, or clip.
    """
    ratios = [
        (f.gradient / f.norm, f.name)
        for f in evidence.parameters.values()
        if f.kind == "weight" and f.gradient is not None and f.norm > 0 and math.isfinite(f.gradient)
    ]
    if ratios and max(ratios)[0] > LONG:
        ratio, name = max(ratios)
        message = f"The gradient of {name} is {ratio:.2g} times as long as the weight itself."
        advice = "Standardise targets and inputs, or clip gradients."
        yield Finding("exploding_gradient", "note", name, evidence.step, message, advice, {"ratio": ratio})
