"""Random samples in the middle of a network: does what was drawn from a distribution teach the layers that gave its parameters?"""

from collections.abc import Iterable

from lit_training.diagnosis.flow import reached_by_gradient
from lit_training.tracing.graph import Graph, Node

__all__ = ["untaught_draw"]

_NOISE = frozenset(["normal", "randn", "randn_like"])


def untaught_draw(graph: Graph, losses: Iterable[int]) -> tuple[Node, Node] | None:
    """Return a layer that parametrises a normal draw whose readers never teach it, and the draw; `None` if there is none.

    The draw goes on to layers that learn, but no gradient comes back through it: what reaches the layer that gave its mean or
    spread comes from terms without layers and without data, a penalty. Not meant are draws that the loss compares with their own
    distribution (the score function's log-probability), distributions that are compared with data or that other layers read, and
    samples that go back into the layers that they come from.

    >>> import torch
    >>> from lit_training.tracing.trace import trace
    >>> class Noisy(torch.nn.Sequential):
    ...     def forward(self, x):
    ...         mean = self[0](x)
    ...         return self[1](torch.distributions.Normal(mean, 1.0).sample()).sum() + mean.square().sum()
    >>> graph, _ = trace(Noisy(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)), torch.randn(4, 3))
    >>> [node.weight or node.op for node in untaught_draw(graph, [graph.nodes[-1].index])]
    ['0.weight', 'normal']
    """
    draws = [node for node in graph.nodes if _joins_noise(graph, node)]
    reached = reached_by_gradient(graph, losses) if draws else set()
    for draw in draws:
        heads = _layers_before(graph, draw.index) & reached
        if draw.index in reached or not heads:
            continue
        near, readers = _until_layers(graph, draw.index)
        own = {graph.nodes[i].weight for i in graph.ancestors(draw.index)}
        learns = any(reader in reached and graph.nodes[reader].weight not in own for reader in readers)
        if learns and _only_penalised(graph, heads, near, reached):
            return graph.nodes[min(heads)], draw
    return None


def _joins_noise(graph: Graph, node: Node) -> bool:
    """Tell whether noise meets its mean or spread here: in a draw with parameters, or where plain noise is scaled or shifted."""
    plain = (parent for parent in (graph.nodes[p] for p in node.parents) if parent.op in _NOISE and len(parent.parents) < 2)
    return len(node.parents) > 1 and (node.op == "normal" or any(plain))


def _layers_before(graph: Graph, index: int) -> set[int]:
    """Return the layers whose values arrive at a node without another layer in between."""
    seen, stack, layers = {index}, [index], set()
    while stack:
        for parent in graph.nodes[stack.pop()].parents:
            if graph.nodes[parent].weight:
                layers.add(parent)
            elif parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return layers


def _until_layers(graph: Graph, index: int) -> tuple[set[int], set[int]]:
    """Return the nodes that a node's values arrive at without a layer in between, and the layers behind them."""
    readers = graph.consumers()
    seen, stack, layers = {index}, [index], set()
    while stack:
        for reader in readers[stack.pop()]:
            if graph.nodes[reader].weight:
                layers.add(reader)
            elif reader not in seen:
                seen.add(reader)
                stack.append(reader)
    return seen, layers


def _only_penalised(graph: Graph, heads: set[int], near: set[int], reached: set[int]) -> bool:
    """Tell whether all gradients of some layers come from terms that hold no layer, no data and not what was drawn from them."""
    readers, made = graph.consumers(), graph.made_by_layers()
    seen, stack = set(heads), list(heads)
    while stack:
        for reader in (graph.nodes[r] for r in readers[stack.pop()] if r in reached and r not in seen):
            others = [p for p in reader.parents if p not in seen]
            if (
                reader.weight
                or not near.isdisjoint(reader.parents)
                or any(graph.reads_batch(p) for p in others if p not in made)
            ):
                return False
            seen.add(reader.index)
            stack.append(reader.index)
    return True
