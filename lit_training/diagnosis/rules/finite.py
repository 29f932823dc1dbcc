"""The rule about losses and gradients that are not numbers any more."""

import math
from collections.abc import Iterator

import torch

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.updates import broken_at_once
from lit_training.tracing.graph import LOSSES
from lit_training.tracing.probe import Layer

__all__ = ["nan_loss"]

_ROOTS = frozenset("sqrt rsqrt linalg_vector_norm norm std var pow div".split())


@rule(explains=["nan_loss", "exploding_gradient", "loss_diverging"])
def nan_loss(evidence: Evidence) -> Iterator[Finding]:
    """The loss, a gradient or a layer's output is NaN or infinite.

    What it means: the next update makes every weight NaN, and from there on all is NaN. Typical causes: the logarithm of
    zero or of a negative number, 0 / 0, the slope of a square root or a norm at 0, exp of large numbers, half precision
    that overflows; while a run goes on, a learning rate that is too high, an exploding gradient, or a bad sample.

    How it is measured: at the first step, the loss and the gradient of every parameter; the first logarithm, root,
    quotient, power or loss in the forward whose result is not finite is named. Later, at sampled steps, all elements of
    each layer's output, in forward order; the first such layer is named, those before it were finite. In the first updates
    the loss: where it is not finite from one batch to the next, had not risen before and updates are small, that is no
    divergence.

    Threshold: a single value; a loss that has not doubled, and a first update below .2 of the weights (their median).

    Not an alarm: inputs that are not finite (bad_data); masks of minus infinity inside a layer, or in its output from the first
    step on while the loss is finite; gradients that overflow under mixed precision's loss scale, whose step is left out, unless
    24 in a row did; a loss that rises before it overflows (lr_too_high).

    What to do: losses on logits (`cross_entropy`, `binary_cross_entropy_with_logits`, `logsumexp`) instead of logarithms of
    probabilities; `(x + eps).sqrt()`, `log(x.clamp(min=eps))`; a lower rate, clipped gradients.
    """
    if evidence.loss is None or any(not stats.finite for stats in evidence.inputs.values()):
        return
    if not math.isfinite(evidence.loss):
        yield _first_loss(evidence)
        return
    broken = [f for f in evidence.parameters.values() if f.gradient is not None and not math.isfinite(f.gradient)]
    if broken and not evidence.plan.loss_scaled:
        roots = sorted({node.op for node in evidence.graph.nodes if node.op in _ROOTS and node.grad_mode})
        message = (
            f"The loss is {evidence.loss:.3g}, but the gradient of {broken[0].name} is not finite ({len(broken)} like this)."
        )
        culprit = f"Look at {', '.join(roots)}: " if roots else ""
        advice = f"{culprit}roots, norms and quotients have no finite slope at 0; add an epsilon inside: (x + 1e-8).sqrt()."
        yield Finding("nan_loss", "error", broken[0].name, evidence.step, message, advice)
        return
    updates = broken_at_once(evidence)
    if updates is not None and not evidence.samples.broken:
        message = f"After {updates} small update(s) the loss is not finite, from one batch to the next: there is a sample that"
        advice = "Look for a row that is empty or all masked, and for 0 / 0, log(0), the slope of a root at 0 in that batch."
        yield Finding("nan_loss", "error", "", evidence.step, f"{message} it cannot take.", advice, {"updates": updates})


def _first_loss(evidence: Evidence) -> Finding:
    layer = next((layer for layer in evidence.layers if not layer.output.finite), None)
    where = "" if layer is None else layer.name
    if layer is not None and _leaves_half(evidence, layer):
        what = f"what {where} gives is beyond 65504, where float16 ends"
        advice = 'precision="bf16-mixed" reaches as far as float32; standardise inputs, normalise between layers.'
    else:
        source = evidence.broken or where
        what = f"the first value that is not finite comes from {source}" if source else "the data are"
        advice = "Work on logits, or keep its argument away from 0: log(x.clamp(min=1e-6)), (x + 1e-8).sqrt()."
    message = f"The first loss is {evidence.loss}, although the inputs are finite: {what}."
    return Finding("nan_loss", "error", where, evidence.step, message, advice)


def _leaves_half(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether the first layer that is not finite gives float16, and no formula in front of it was at fault."""
    half = layer.node is not None and evidence.graph.nodes[layer.node].dtype == torch.float16
    return half and evidence.broken.partition(" ")[0] in {"", *LOSSES}
