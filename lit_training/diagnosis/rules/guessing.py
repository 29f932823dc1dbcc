"""What several rules ask of the evidence: which layers are hidden, and how the first loss compares with guessing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import logits_of, producer, smoothing
from lit_training.diagnosis.updates import matrices
from lit_training.tracing.graph import Node
from lit_training.tracing.loss_calls import LossCall, from_loader, spread
from lit_training.tracing.probe import Layer

__all__ = [
    "FLUNG",
    "ROUNDING",
    "Guess",
    "classes_of",
    "classes_told",
    "cost_of_guessing",
    "flat_behind",
    "guess",
    "guesses",
    "hidden",
    "is_drawn",
    "is_normalised",
    "overshoots",
    "regression",
    "risen",
    "times_guessing",
]

ROUNDING = frozenset(["round", "floor", "ceil", "trunc"])
FLUNG = 5.0
FAR_OFF = 30.0
UNEVEN = 0.7
GUESSED = 0.95
NORMALISED = 0.01  # log(sum(exp)) of what counts as log-probabilities


def is_drawn(evidence: Evidence, layer: Layer | None) -> bool:
    """Tell whether a head's weight is as it was drawn, so that a bad guess is not what it was taught elsewhere."""
    facts = evidence.parameters.get(layer.weight) if layer is not None else None
    return facts is None or facts.fresh


def hidden(evidence: Evidence) -> list[Layer]:
    """Return the layers whose output another layer reads."""
    return [layer for layer in evidence.layers if layer.node is None or evidence.graph.reaches_layer(layer.node)]


def flat_behind(evidence: Evidence, ops: frozenset[str], layers: Sequence[Layer]) -> tuple[str, str] | None:
    """Return the first of some layers that gets a gradient of exactly zero and has one of some operations behind it, and which.

    A gradient that arrives within the first few steps, as through a straight-through step in front of a head that started at zero,
    counts too.
    """
    graph, readers = evidence.graph, evidence.graph.consumers()
    for layer in layers:
        if layer.node is None or layer.gradient is None or layer.gradient.largest != 0:
            continue
        if evidence.later is not None and evidence.later.gradients.get(layer.weight):
            continue  # what follows it started at zero
        seen, stack = {layer.node}, [layer.node]
        while stack:
            for reader in (graph.nodes[r] for r in readers[stack.pop()] if r not in seen):
                if reader.op in ops:
                    return layer.name, reader.op
                seen.add(reader.index)
                stack += [] if reader.weight else [reader.index]
    return None


def is_normalised(evidence: Evidence, layer: Layer) -> bool:
    """Tell whether a normalisation takes back the scale of a layer's output."""
    graph = evidence.graph
    return layer.node is not None and "normalisation" in graph.follows(layer.node, through_normalisation=False)


def times_guessing(evidence: Evidence) -> tuple[float, Layer | None]:
    """Return the largest cross-entropy of the step over that of guessing all classes alike, and the layer that made its logits.

    Guessing costs log(C) for C classes, log(2) for a yes or no. 0 without a cross-entropy that was averaged.
    """
    best: tuple[float, Layer | None] = (0.0, None)
    graph = evidence.graph
    for call in evidence.losses:
        logits, classes = logits_of(graph, call), classes_of(evidence, call)
        if logits is None or call.value is None or call.summed or classes < 2 or not math.isfinite(call.value):
            continue
        head = producer(graph, logits)
        ratio = call.value / math.log(classes)
        if ratio > best[0]:
            makers = (*evidence.layers, *evidence.readouts)
            best = ratio, next((layer for layer in makers if layer.node == head.index), None)
    return best


def regression(evidence: Evidence) -> tuple[float, LossCall, Layer] | None:
    """Return a squared or absolute error over that of the targets' mean, its loss, and the layer that made the prediction."""
    for call in evidence.losses:
        head = producer(evidence.graph, evidence.graph.nodes[call.prediction]).index
        layer = next((layer for layer in evidence.layers if layer.node == head), None)
        if layer is not None and call.value is not None and call.constant and math.isfinite(call.value):
            return call.value / call.constant, call, layer
    return None


def overshoots(evidence: Evidence) -> tuple[float, LossCall, Layer] | None:
    """Return what `regression` does, if outputs scatter further than any target reaches, at 30 times the cost of their mean."""
    found = regression(evidence)
    if found is None or found[0] <= FAR_OFF or not (found[2].shape[-1] == 1 or is_drawn(evidence, found[2])):
        return None
    _, call, head = found
    return found if head.output.signal > 3 * max(map(abs, call.target_range)) else None


def guesses(evidence: Evidence) -> bool:
    """Tell whether the first loss is what a guess costs, or more: all classes alike, or the mean of a regression's targets.

    Weights as they are drawn cost that, or more. A network that was taught elsewhere may cost little less: what is left is noise.
    """
    ratio = times_guessing(evidence)[0] or max((_summed_over_guessing(evidence, call) for call in evidence.losses), default=0.0)
    if ratio > 0:
        return ratio > GUESSED
    return any(call.value > GUESSED * call.constant for call in evidence.losses if call.value and call.constant)


def _summed_over_guessing(evidence: Evidence, call: LossCall) -> float:
    """Return a cross-entropy that was summed over that of guessing all classes alike as often, 0 for other losses."""
    classes = classes_of(evidence, call)
    if not call.summed or not call.value or classes < 2 or logits_of(evidence.graph, call) is None:
        return 0.0
    judged = evidence.graph.nodes[call.target if "nll" in call.op else call.prediction]
    return call.value / (math.prod(judged.shape) * math.log(classes))


def guess(evidence: Evidence) -> float | None:
    """Return the loss of saying the same for every sample, `None` where that is not known or the loss has other parts.

    Of classes it is the entropy of the labels seen so far, where those are known, else that of classes alike.
    """
    if len(evidence.losses) != 1 or evidence.losses[0].summed or abs(evidence.losses[0].scale) > NORMALISED:
        return None
    call = evidence.losses[0]
    classes = classes_of(evidence, call)
    cost = _cost(call, _bent(evidence, call), classes, evidence.samples.targets)
    return cost if cost is not None else math.log(classes) if classes > 1 else call.constant


def _bent(evidence: Evidence, call: LossCall) -> Node | None:
    """Return the node of a loss whose targets are as the loader gave them, which tells how it bends."""
    given = call.node >= 0 and from_loader(evidence.graph, evidence.graph.nodes[call.target])
    return evidence.graph.nodes[call.node] if given else None


def _entropy(shares: Tensor, smoothed: float = 0.0) -> float:
    """Return the entropy of labels of some shares, when they are smoothed."""
    return float(torch.special.entr((1 - smoothed) * shares.double() + smoothed / len(shares)).sum())


def _cost(call: LossCall, node: Node | None, classes: int, targets: Tensor | None, smoothed: float = 0.0) -> float | None:
    """Return what the best guess costs on some targets: the entropy of labels, or the spread of numbers; `None` for too few."""
    if targets is None:
        return None
    if classes < 2:
        found = None if node is None else spread(targets, node)
        return None if found is None else replace(call, spread=found).constant
    if len(targets) < 8 * classes or bool((targets < 0).any()):
        return None
    if targets.is_floating_point():
        shares = targets.double().mean(0)
        if classes == 2:
            return float(torch.special.entr(torch.stack([shares, 1 - shares])).sum(0).mean()) if targets.max() <= 1 else None
        return float(torch.special.entr(shares).sum()) if targets.ndim == 2 and shares.numel() == classes else None
    counts = torch.bincount(targets.long(), minlength=classes)
    return _entropy(counts.double() / len(targets), smoothed) if len(counts) == classes else None


def _costs_of_batches(evidence: Evidence) -> list[float]:
    """Return what a guess costs on each of the first batches of numbers, of which one may hold far larger ones than the first."""
    call = evidence.losses[0]
    bent = _bent(evidence, call)
    costs = (_cost(call, bent, 0, targets) for targets in evidence.samples.numbers) if classes_of(evidence, call) < 2 else ()
    return [cost for cost in costs if cost is not None and math.isfinite(cost)]


def risen(evidence: Evidence) -> tuple[float, ...]:
    """Return each loss after the first updates over that of guessing on any batch, or over the first one if that is higher.

    Infinite where it is NaN; nothing where that is not known, for a single layer that begins anew, or where a batch is taken in
    several updates, each of which may be judged by another loss, as the pieces of a sequence are.
    """
    later, level = evidence.later, guess(evidence)
    if later is None or level is None or evidence.loss is None or later.steps == 0 or later.steps > later.batches:
        return ()
    if len(evidence.layers) == 1 and all(f.shrinks for f in matrices(evidence)):
        return ()
    start = max(evidence.loss, level, *_costs_of_batches(evidence))
    return tuple(math.inf if math.isnan(loss) else loss / start for loss in later.losses) if 0 < start < math.inf else ()


@dataclass(frozen=True)
class Guess:
    """What it costs to say the same for every sample, under the loss of a run.

    `sampled` tells that it is the spread of some targets, known to a tenth or so, and not the entropy of labels; `uneven` that
    it is little because some labels are far more common than others; `place` is where in a batch the targets are; `smoothing` is
    that of the labels, which leaves a `floor` that no loss can fall below: costs are what is above it.
    """

    cost: float
    sampled: bool = False
    uneven: bool = False
    place: int | None = None
    call: LossCall | None = None
    node: Node | None = None
    classes: int = 0
    smoothing: float = 0.0

    @property
    def floor(self) -> float:
        """What certainty costs."""
        return _entropy(torch.tensor([1.0] + [0.0] * (self.classes - 1)), self.smoothing) if self.smoothing else 0.0

    def on(self, targets: Tensor | None) -> float | None:
        """Return what it costs on other targets of the same kind, `None` where that cannot be told."""
        cost = None if self.call is None else _cost(self.call, self.node, self.classes, targets, self.smoothing)
        return cost - self.floor if cost is not None and math.isfinite(cost) and cost > self.floor else None


def cost_of_guessing(evidence: Evidence) -> Guess | None:
    """Return what a guess costs, `None` where the loss has other parts than one of torch's losses of targets that are given."""
    smoothed = _smoothing(evidence)
    cost = guess(evidence) if evidence.bare or smoothed else None
    if cost is None:
        return None
    call = evidence.losses[0]
    classes = classes_of(evidence, call)
    uneven = classes > 1 and cost < UNEVEN * math.log(classes)
    found = Guess(cost, classes < 2, uneven, evidence.samples.target, call, _bent(evidence, call), classes, smoothed)
    if not smoothed:
        return found
    above = found.on(evidence.samples.targets) or math.log(classes) - found.floor
    return replace(found, cost=above, uneven=above < UNEVEN * (math.log(classes) - found.floor))


def _smoothing(evidence: Evidence) -> float:
    """Return the label smoothing of the only loss, 0 where there is none, or where weights tell classes apart."""
    one = len(evidence.losses) == 1 and len(evidence.differentiated) == 1 and not evidence.losses[0].weighted
    return smoothing(evidence.graph, evidence.losses[0], evidence.differentiated[0]) if one else 0.0


def classes_of(evidence: Evidence, call: LossCall) -> int:
    """Return how many classes a loss tells apart, 0 if it is no classification."""
    shape = evidence.graph.nodes[call.prediction].shape
    if "nll" in call.op and len(shape) > 1:
        return shape[1]
    return 2 if "binary_cross_entropy" in call.op else 0


def classes_told(evidence: Evidence) -> int:
    """Return how many classes the first loss that is a classification tells apart, 0 where there is none."""
    return next((n for call in evidence.losses if (n := classes_of(evidence, call))), 0)
