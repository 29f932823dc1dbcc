"""Errors between outputs and the number of a class, which has no order: parts of the rule `wrong_loss`."""

import math

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.reading import producer

__all__ = ["each_the_class_number", "the_class_number"]

FEWEST_NUMBERS, PER_CLASS, UNEQUAL = 4, 8, 0.03

Verdict = tuple[str, str, str] | None
"""Where, what, and what to do instead."""


def each_the_class_number(evidence: Evidence) -> Verdict:
    """Recognise a squared or absolute error of several outputs of a layer, all against one and the same class number.

    Outputs of several networks are an ensemble's, each of which may be asked for a number.
    """
    graph = evidence.graph
    for call in evidence.losses:
        outputs, target = graph.nodes[call.prediction].shape, graph.nodes[call.target]
        spread = False
        while target.parents and len(target.parents) == 1:
            spread = spread or (target.op == "expand" and target.shape[-1:] == outputs[-1:])
            target = graph.nodes[target.parents[0]]
        integers = target.name == "batch" and not target.dtype.is_floating_point and target.shape != outputs
        integers = integers and producer(graph, graph.nodes[call.prediction]).op not in ("cat", "stack", "bmm", "baddbmm")
        if call.op in ("mse_loss", "l1_loss") and spread and integers and len(outputs) == 2 and outputs[1] > 1:
            message = f"{call.op} compares each of {outputs[1]} outputs with the number of the class."
            return "", message, "Use cross_entropy(output, target), or one_hot(target, classes).float() as the target."
    return None


def the_class_number(evidence: Evidence) -> Verdict:
    """Recognise one output that is to be the number of the class: integers from 0 on that are all about equally common."""
    targets, graph = evidence.samples.targets, evidence.graph
    if targets is None or not evidence.samples.labels or len(evidence.losses) != 1:
        return None
    call = evidence.losses[0]
    values, counts = evidence.samples.counts
    classes = len(values)
    numbered = classes >= FEWEST_NUMBERS and values.tolist() == list(range(classes)) and len(targets) >= PER_CLASS * classes
    one = graph.nodes[call.prediction].shape in ((evidence.batch_size,), (evidence.batch_size, 1))
    if call.op not in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss") or not numbered or not one:
        return None
    shares = counts.double() / len(targets)
    entropy = -float((shares * shares.log()).sum())
    chance = 1.5 * classes / len(targets)  # on average a third of that
    if entropy < (1 - UNEQUAL) * math.log(classes) - chance:
        return None
    message = f"{call.op} compares an output with labels 0 to {classes - 1}, all about equally common: numbers of classes."
    return "", message, f"Use cross_entropy with {classes} outputs. If they are amounts, ignore this rule."
