"""The rule about cuts: parts of a network that the loss uses and its gradient does not reach."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from lit_training.diagnosis.draws import untaught_choice, untaught_draw
from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding, is_alarm
from lit_training.diagnosis.flow import cut_after, reached_by_gradient, used_by
from lit_training.diagnosis.parameters import ParameterFacts
from lit_training.diagnosis.rule import rule
from lit_training.diagnosis.rules.guessing import ROUNDING, flat_behind
from lit_training.diagnosis.unrolled import forgotten
from lit_training.tracing.graph import Node

__all__ = ["detached_subgraph", "joined_later"]

COPIED = 1e-3
TEACHERS = "target teacher momentum ema key slow old prior random fixed frozen anchor reference ghost shadow average".split()


@rule(
    explains=[
        "overfit_no_regularisation",
        "no_update",
        "slow_convergence",
        "lr_too_low",
        "vanishing_gradient",
        "not_in_optimizer",
    ]
)
def detached_subgraph(evidence: Evidence) -> Iterator[Finding]:
    """The loss uses a layer, but its gradient cannot get back to it.

    What it means: everything before the cut stays as it was drawn, and what follows learns from random features. Typical
    causes: a `.detach()` or `torch.no_grad()` left in from debugging, a trip through numpy, an argmax or one-hot in the middle
    of the network, a loss wrapped in `torch.tensor(loss, requires_grad=True)`.

    How it is measured: on the traced operations of the real step. A trainable weight that the stepping optimiser holds has no
    gradient although the differentiated loss was computed from its layer, or, as behind `.data`, from the weight itself; the
    first operation on the way at which values go on and gradients do not is named. A number that `.item()` took from the
    network and that an operation of the loss takes is such a way. If the loss itself has no parameter behind it, the whole
    network is cut off. Besides, a normal sample whose mean or spread layers gave and that other layers read: no gradient comes
    back through it, and what else teaches those layers is a penalty without data (`.sample()` in place of `.rsample()`). Entries
    of a table that layers chose by an argmin, and other layers read: the way back round the choice is missing. And a
    layer whose gradient is exactly zero because its output is rounded. And one of torch's losses of a layer's output that is no
    part of the loss, as where `.item()` is summed up, if that layer has no gradient in the first few steps. And a recurrence (a
    weight that is called step after step, on the state of the step before and on another part of the batch) whose last call
    alone gets a gradient, because the state is detached before each: nothing learns what to remember. Truncation (Williams and
    Peng 1990) goes back several steps.

    Threshold: none; four steps for recurrences. What the first step cannot tell from a teacher or from a codebook that is moved by
    hand waits for the first few steps: it is told if it has neither moved nor got a gradient by then.

    Where the optimiser is the only one, and the first of these layers gets a gradient at the end of an epoch, the cut was for a
    while (a head that is warmed up first), and the alarm becomes a note.

    Not an alarm: layers whose outputs the loss does not use (stochastic depth, unused heads, experts without samples); teachers
    and target networks (a trained twin of the same names and shapes exists that is equal at the start, reads the same input,
    or is called a teacher, target and the like); weights that look trained, as a frozen encoder under `no_grad` has; the other
    network's turn in GAN-like loops; weights that also have a way without the cut; samples that the loss compares with their own
    distribution (REINFORCE) or that go back into the layers they come from (contrastive divergence, wake-sleep); truncation
    every k > 1 steps, a loss at each step, recycling on the same input, steps under `no_grad`, rollouts from a given state.

    What to do: remove the cut; freeze openly with `requires_grad_(False)` where it was meant; make discrete choices
    differentiable (straight-through, softmax, Gumbel-softmax).
    """
    losses = evidence.differentiated
    if not losses:
        return
    graph = evidence.graph
    used = used_by(graph, losses)
    learns = any(_has_history(graph.nodes[i]) for i in used)
    if not learns and evidence.layers and any(f.optimized and f.requires_grad for f in evidence.parameters.values()):
        message = "The loss is a new tensor without a history: none of the parameters gets a gradient."
        advice = "Return the loss itself; torch.tensor(loss, requires_grad=True) cuts it off from the network."
        yield Finding("detached_subgraph", "error", "", evidence.step, message, advice)
        return
    drawn = untaught_draw(graph, losses)
    if drawn is not None:
        head = drawn[0].weight.removesuffix(".weight")
        message = f"The sample that is drawn from what {head} says passes no gradient back: only a penalty teaches {head}."
        advice = "Draw with rsample(), or write mean + std * torch.randn_like(std), outside of torch.no_grad()."
        yield Finding("detached_subgraph", "error", head, evidence.step, message, advice)
        return
    chooser = untaught_choice(graph, losses)
    if chooser is not None:
        where = chooser.weight.removesuffix(".weight")
        message = f"Entries of a table are chosen by what {where} says; no gradient comes back from the layers that read them."
        advice = "Pass it straight through: z + (picked - z).detach()."
        yield Finding("detached_subgraph", "error", where, evidence.step, message, advice)
        return
    rounded = flat_behind(evidence, ROUNDING, evidence.layers)
    if rounded is not None:
        message = f"{rounded[1]} has a slope of zero everywhere: {rounded[0]}, in front of it, gets a gradient of exactly 0."
        advice = "Pass the gradient straight through: x + (x.round() - x).detach()."
        yield Finding("detached_subgraph", "error", rounded[0], evidence.step, message, advice)
        return
    reached = reached_by_gradient(graph, losses)
    cut_off = forgotten(graph, used, reached)
    if cut_off is not None:
        name = cut_off.weight.removesuffix(".weight")
        message = f"The state is cut off at every step: of {cut_off.steps} uses of {name} only the last one learns."
        advice = "Detach the state between batches, not between the steps of one forward."
        yield Finding("detached_subgraph", "error", name, evidence.step, message, advice, {"steps": cut_off.steps})
        return
    unsummed = _unsummed(evidence, reached)
    if unsummed is not None:
        call, head = unsummed
        message = f"The {call} of what {head} says is computed, but is no part of the loss: {head} learns nothing."
        advice = "Add up the losses themselves, and take .item() or .detach() only of what is logged."
        yield Finding("detached_subgraph", "error", head, evidence.step, message, advice)
        return
    lost = _lost(evidence, used, reached)
    for part in lost:
        cut = cut_after(graph, part.node, used)
        if cut is None or not _matters(evidence, lost, deliberate=_deliberate(cut[0])):
            continue
        message = f"{len(lost)} layer(s), {part.name} first, get no gradient: what they compute {cut[1]}."
        advice = "Remove that cut, or freeze them openly: requires_grad_(False)."
        yield Finding("detached_subgraph", "error", part.name, evidence.step, message, advice, {"layers": len(lost)})
        return


def joined_later(findings: Sequence[Finding], taught: Collection[str]) -> list[Finding]:
    """Make notes of layers that were cut off at the first step, if the one that was named gets a gradient later.

    >>> cut = Finding("detached_subgraph", "error", "body.0", message="Cut off.", evidence={"layers": 2})
    >>> [f.severity for f in joined_later([cut], {"body.0.weight"})], [f.severity for f in joined_later([cut], ())]
    (['note'], ['error'])
    """
    joined = [f for f in findings if f.rule == "detached_subgraph" and "layers" in f.evidence]
    joined = [f for f in joined if not {f.where, f"{f.where}.weight"}.isdisjoint(taught)]
    notes = [replace(f, severity="note", message=f"{f.message} They joined later.") for f in joined]
    return sorted([*(f for f in findings if f not in joined), *notes], key=lambda f: not is_alarm(f))


def _has_history(node: Node) -> bool:
    """Tell whether gradients go on behind a leaf: a parameter, or what `torch.autograd.grad(create_graph=True)` made unseen."""
    return (node.op in ("parameter", "unregistered") and bool(node.shape)) or (node.op == "input" and bool(node.requires_grad))


@dataclass(frozen=True)
class _Part:
    """A weight without a gradient, and where in the graph its values begin: at its layer, or at itself."""

    name: str
    facts: ParameterFacts
    node: int


def _lost(evidence: Evidence, used: set[int], reached: set[int]) -> list[_Part]:
    """Return the weights that learn nothing, of layers first, then those that the loss was computed from without a layer."""
    layers = [
        _Part(layer.name, evidence.parameters[layer.weight], layer.node)
        for layer in evidence.layers
        if layer.node is not None and layer.node not in reached and _lacks_gradient(evidence, layer.weight)
    ]
    known = {layer.weight for layer in evidence.layers}
    leaves = [node for node in evidence.graph.nodes if node.op == "parameter" and node.index in used and node.name not in known]
    bare = [
        _Part(node.name, evidence.parameters[node.name], node.index)
        for node in leaves
        if _lacks_gradient(evidence, node.name) and evidence.parameters[node.name].fresh and _stays(evidence, node.name)
    ]
    return layers + bare


def _unsummed(evidence: Evidence, reached: set[int]) -> tuple[str, str] | None:
    """Return a loss that compares a layer's output with targets and goes nowhere, and that layer, if nothing else teaches it."""
    graph, later = evidence.graph, evidence.later
    if later is None or later.steps == 0:
        return None
    idle = [
        layer
        for layer in evidence.layers
        if layer.node is not None and not graph.reaches_layer(layer.node) and _is_idle(evidence.parameters.get(layer.weight))
    ]
    for call in evidence.losses:
        before = graph.ancestors(call.prediction)
        head = next((layer.name for layer in idle if layer.node in before and not later.gradients.get(layer.weight)), None)
        if head and call.node not in reached and graph.nodes[call.node].grad_mode and graph.reads_batch(call.target):
            return call.op, head
    return None


def _is_idle(facts: ParameterFacts | None) -> bool:
    """Tell whether a weight that is to learn got no gradient, or one of zeros."""
    return facts is not None and facts.requires_grad and facts.stepping and not facts.expected_frozen and not facts.gradient


def _lacks_gradient(evidence: Evidence, name: str) -> bool:
    facts = evidence.parameters.get(name)
    if facts is None or facts.expected_frozen or not (facts.requires_grad and facts.stepping):
        return False
    used = [node for node in evidence.graph.nodes if node.op == "parameter" and node.name == name]
    thawed = not used or any(node.requires_grad for node in used)  # what a loop freezes for this step is frozen, not cut off
    by_hand = evidence.later is not None and evidence.later.moved.get(name)
    return thawed and facts.gradient is None and facts.optimized is not False and not by_hand


def _stays(evidence: Evidence, name: str) -> bool:
    """Tell whether the first few steps neither moved a weight, as a codebook or a teacher is by hand, nor gave it a gradient."""
    later = evidence.later
    return later is not None and later.steps > 0 and not later.moved.get(name, True) and later.gradients.get(name) is None


def _deliberate(cut: Node) -> bool:
    """Tell whether a cut may be meant: features are detached on purpose, a summand of the loss or a number is not."""
    return (cut.op in ("detach", "alias") or not cut.grad_mode) and cut.shape != ()


def _matters(evidence: Evidence, lost: Sequence[_Part], *, deliberate: bool) -> bool:
    """Tell whether missing gradients are a mistake: not for teachers, nor for trained weights behind a deliberate cut."""
    facts = [part.facts for part in lost]
    taught = [f for f in evidence.parameters.values() if f.gradient is not None]
    twins = [[other for other in taught if _twins(f, other)] for f in facts]
    if all(twins) and not _tower(evidence, [(f, other[0]) for f, other in zip(facts, twins, strict=True)]):
        return False
    return not deliberate or any(f.fresh for f in facts)


def _twins(a: ParameterFacts, b: ParameterFacts) -> bool:
    """Tell whether two parameters have one shape, and names that differ in their first part that differs only."""
    left, right = a.name.split("."), b.name.split(".")
    different = [x != y for x, y in zip(left, right, strict=False)]
    return a.shape == b.shape and len(left) == len(right) and sum(different) == 1 and not different[-1]


def _tower(evidence: Evidence, pairs: Sequence[tuple[ParameterFacts, ParameterFacts]]) -> bool:
    """Tell whether weights that have trained twins are no teacher but a network beside them, drawn for itself, of its own input."""
    drawn = [(lost, twin) for lost, twin in pairs if lost.fresh]
    if not drawn or not all(_stays(evidence, lost.name) for lost, _ in pairs):
        return False
    copied = any(
        all(math.isclose(getattr(a, e), getattr(b, e), rel_tol=COPIED) for e in ("norm", "low", "high")) for a, b in drawn
    )
    called = any(word in lost.name.lower() for lost, _ in pairs for word in TEACHERS)
    return not copied and not called and not any(_same_input(evidence, lost, twin) for lost, twin in drawn)


def _same_input(evidence: Evidence, lost: ParameterFacts, twin: ParameterFacts) -> bool:
    """Tell whether two layers read one tensor that no layer made, as a fixed random target and the network that predicts it do."""
    nodes, made = evidence.graph.nodes, evidence.graph.made_by_layers()

    def read(weight: str) -> set[tuple[object, ...]]:
        sources = [nodes[p] for node in evidence.graph.layers() if node.weight == weight for p in node.parents if p not in made]
        data = [n for n in sources if n.origin == "data"]
        return {
            (n.op, n.parents, n.scalars) if n.parents else (n.index,) for n in data
        }  # equal slices of one batch are one input

    return not read(lost.name).isdisjoint(read(twin.name))
