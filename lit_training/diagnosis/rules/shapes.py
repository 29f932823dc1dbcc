"""The rule about the shapes that a loss compares."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.tracing.graph import Graph, Node

__all__ = ["shape_broadcast"]


@rule(explains=["slow_convergence", "lr_too_low", "bad_initial_loss", "constant_output"])
def shape_broadcast(evidence: Evidence) -> Iterator[Finding]:
    """Outputs and targets of different shapes are broadcast against each other, so every sample is compared with every target.

    What it means: (N, 1) against (N,) gives (N, N), and the best that such a network can do is to predict the mean. Nothing
    crashes; torch warns for its own losses only.

    How it is measured: a difference, product or one of torch's losses of what layers computed and what they did not, whose two
    operands have equally many elements but different shapes, and whose result has more. Or, of a loss other than cross-entropy
    that gets N times as many outputs as targets for a batch of N samples, a sum or the like of (N,) and (N, 1) that layers
    computed.

    Threshold: none.

    Not an alarm: pairwise distances between outputs, or between inputs; outer comparisons, where both operands were given a
    dimension for it (`output[:, :, None] - target[:, None]`: Chamfer distances, kernels, quantiles against samples), or one was
    transposed (`output - target.T`); masks and weights with fewer elements.

    What to do: `target.unsqueeze(1)` or `output.squeeze(1)`.
    """
    graph = evidence.graph
    made = graph.made_by_layers(chosen=False)
    for call in evidence.losses:
        prediction, target = (_unexpanded(graph, graph.nodes[i]) for i in (call.prediction, call.target))
        size = max(math.prod(graph.nodes[i].shape) for i in (call.prediction, call.target))
        if "nll" not in call.op and _broadcasts(graph, prediction, target, size):
            yield _broadcast(evidence, prediction, target)
            return
    for node in graph.nodes:
        if node.op in ("sub", "mul", "div") and len(node.parents) == 2:
            a, b = (_unexpanded(graph, graph.nodes[p]) for p in node.parents)
            apart = (a.index in made) != (b.index in made) and a.origin == b.origin == "data"
            if apart and not _is_turned(a) and not _is_turned(b) and _broadcasts(graph, a, b, math.prod(node.shape)):
                yield _broadcast(evidence, a, b)
                return
    crossed = _crossed(evidence, made)
    if crossed is not None:
        a, b = crossed
        message = f"Shapes {a.shape} and {b.shape} are broadcast in the network: it compares every sample with every other one."
        yield Finding("shape_broadcast", "error", "", evidence.step, message, "Give both one shape: x.sum(1, keepdim=True).")


def _crossed(evidence: Evidence, made: set[int]) -> tuple[Node, Node] | None:
    """Return the two columns, one number a sample in each, of which a network makes a square that the loss sees as its outputs."""
    graph, samples = evidence.graph, evidence.batch_size
    for call in evidence.losses:
        outputs, target = math.prod(graph.nodes[call.prediction].shape), _unexpanded(graph, graph.nodes[call.target])
        if "nll" in call.op or not outputs == samples * math.prod(target.shape) == samples * samples:
            continue
        for node in (graph.nodes[i] for i in sorted(graph.ancestors(call.prediction))):
            if node.op in ("add", "sub", "mul", "div") and len(node.parents) == 2 and made.issuperset(node.parents):
                a, b = (_unexpanded(graph, graph.nodes[p]) for p in node.parents)
                if math.prod(a.shape) == samples and _broadcasts(graph, a, b, math.prod(node.shape)):
                    return a, b
    return None


def _unexpanded(graph: Graph, node: Node) -> Node:
    """Return what was expanded, also where mixed precision has cast the result."""
    expanded = graph.nodes[node.parents[0]] if node.op == "_to_copy" and node.parents else node
    return graph.nodes[expanded.parents[0]] if expanded.op == "expand" and expanded.parents else node


def _broadcasts(graph: Graph, a: Node, b: Node, result: int) -> bool:
    """Tell whether all elements of one operand meet all of the other, which none has asked for by a dimension of 1 in both."""
    count = math.prod(a.shape)
    unlike = a.shape != b.shape and count > 1 and count == math.prod(b.shape) and result > count
    return unlike and not (_is_spread(graph, a) and _is_spread(graph, b))


def _is_spread(graph: Graph, node: Node) -> bool:
    """Tell whether the last thing that was done to a tensor is to give it another dimension of 1."""
    while node.op in ("expand", "alias", "slice", "_to_copy") and node.parents:
        node = graph.nodes[node.parents[0]]
    if node.op not in ("unsqueeze", "view", "_unsafe_view", "reshape") or len(node.parents) != 1:
        return False
    before = graph.nodes[node.parents[0]].shape
    return (
        len(node.shape) > len(before) and math.prod(node.shape) == math.prod(before) and node.shape.count(1) > before.count(1)
    )


def _is_turned(node: Node) -> bool:
    """Tell whether a column was made a row on purpose, to meet another column."""
    return node.op in ("t", "transpose", "permute") and node.shape[:1] == (1,)


def _broadcast(evidence: Evidence, a: Node, b: Node) -> Finding:
    message = f"Outputs and targets of shapes {a.shape} and {b.shape} are broadcast, so every sample meets every target."
    return Finding("shape_broadcast", "error", "", evidence.step, message, "Give both one shape: target.unsqueeze(1).")
