"""Which numbers of a network's output a step picks out by the target, and which way they are meant to go: up, or down."""

from lit_training.tracing.graph import LINEAR, Graph, Node
from lit_training.tracing.loss_calls import RESHAPED, from_loader

__all__ = ["are_distances", "meant_to_rise", "overlaps"]

_SCORES = frozenset("log_softmax softmax sigmoid log_sigmoid tanh".split())
_AVERAGED = RESHAPED | frozenset("sum mean unflatten sqrt add clamp clamp_min".split())
_DISTANCES = frozenset("sum mean sqrt linalg_vector_norm _cdist_forward _euclidean_dist".split())
_SQUARED = frozenset("square linalg_vector_norm _cdist_forward _euclidean_dist".split())


def meant_to_rise(graph: Graph, node: Node) -> int:
    """Tell which way a step should take what `gather` picks by the target: up (1) or down (-1); 0 where that is not clear.

    The scores, probabilities or similarities of the target's class should rise, its distance or its loss fall. Of two classes, the
    other one is picked by `1 - target`.

    >>> import torch
    >>> from lit_training.tracing.trace import Tracer
    >>> x, y, net = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1]), torch.nn.Linear(3, 2)
    >>> with Tracer(net, batch=(x, y)) as tracer:
    ...     scores = net(x)
    ...     hinge = scores.gather(1, 1 - y[:, None]) - scores.gather(1, y[:, None])
    >>> [meant_to_rise(tracer.graph, node) for node in tracer.graph.nodes if node.op == "gather"]
    [-1, 1]
    """
    if node.op != "gather" or len(node.parents) != 2:
        return 0
    source, index = (graph.nodes[p] for p in node.parents)
    label = _only_target(graph, source)
    sign = 1
    while index.op in RESHAPED | {"rsub"} and len(index.parents) == 1:
        complement = index.op == "rsub"
        if complement and (index.scalars[:1] != (1.0,) or source.shape[1:2] != (2,)):
            return 0
        sign, index = -sign if complement else sign, graph.nodes[index.parents[0]]
    return sign * _meaning(graph, source) if index.index == label else 0


def overlaps(graph: Graph, node: Node) -> bool:
    """Tell whether a product is that of probabilities that layers made and of the target, as in the Dice coefficient."""
    if node.op != "mul" or len(node.parents) != 2:
        return False
    a, b = (_unshaped(graph, graph.nodes[p]) for p in node.parents)
    made, given = (a, b) if from_loader(graph, b) else (b, a)
    return made.op in ("sigmoid", "softmax") and given.name == "batch" and _only_target(graph, made) == given.index


def are_distances(graph: Graph, node: Node, rows: int) -> bool:
    """Tell whether a node holds the distances between all samples of a batch that layers encoded, `[rows, rows]`."""
    if node.op not in _DISTANCES or node.shape != (rows, rows):
        return False
    return _meaning(graph, node) < 0 and any(graph.nodes[i].weight for i in graph.ancestors(node.index))


def _only_target(graph: Graph, output: Node) -> int | None:
    """Return the tensor of the batch that an output was not made of, if there is one only."""
    read = graph.ancestors(output.index)
    unread = [node.index for node in graph.nodes if node.name == "batch" and node.index not in read]
    return unread[0] if len(unread) == 1 and any(graph.nodes[i].weight for i in read) else None


def _unshaped(graph: Graph, node: Node) -> Node:
    """Walk back through reshaping and positive factors."""
    scaled = ("mul", "div")
    while len(node.parents) == 1 and (node.op in RESHAPED or (node.op in scaled and node.scalars[:1] > (0.0,))):
        node = graph.nodes[node.parents[0]]
    return node


def _meaning(graph: Graph, node: Node) -> int:
    """Tell scores and similarities (1) from distances and losses (-1); 0 where it is not clear what numbers mean."""
    sign = 1
    while True:
        data = [graph.nodes[p] for p in node.parents if graph.nodes[p].origin == "data"]
        if node.weight or node.op in LINEAR or node.op in _SCORES:
            return sign
        if node.op in _SQUARED or (node.op == "pow" and node.scalars[:1] == (2.0,)):
            return -sign
        if node.op == "mul" and len(data) == 2:
            return -sign if data[0] is data[1] else sign
        if node.op == "stack" or node.op == "cat":
            meanings = {_meaning(graph, part) for part in data}
            return sign * meanings.pop() if len(meanings) == 1 else 0
        flips = node.op == "neg" or (node.op in ("mul", "div") and node.scalars[:1] < (0.0,))
        if len(data) != 1 or not (flips or node.op in _AVERAGED or (node.op in ("mul", "div") and node.scalars)):
            return 0
        sign, node = -sign if flips else sign, data[0]
