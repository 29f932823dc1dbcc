"""Samples and choices in the middle of a network: does what was drawn or picked teach the layers that it came from?"""

from collections.abc import Iterable

from lit_training.diagnosis.flow import reached_by_gradient
from lit_training.tracing.graph import Graph, Node

__all__ = ["untaught_choice", "untaught_draw"]

_NOISE = frozenset(["normal", "randn", "randn_like"])
_PICKS = frozenset(["index", "embedding", "index_select", "gather"])
_CHOICES = frozenset(["argmin", "argmax"])


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


def untaught_choice(graph: Graph, losses: Iterable[int]) -> Node | None:
    """Return a layer that chooses entries of a table, which others read that never teach it, `None` if there is none.

    As in a vector quantiser whose gradients are not passed straight through (van den Oord et al. 2017, section 3.2): the layer
    learns to be near to some entry, and nothing of what is made of it. A gate that what was picked is multiplied by teaches.

    >>> import torch
    >>> from lit_training.tracing.trace import trace
    >>> class Quantised(torch.nn.Module):
    ...     def __init__(self, straight):
    ...         super().__init__()
    ...         self.inner, self.codes, self.outer = torch.nn.Linear(3, 2), torch.nn.Embedding(5, 2), torch.nn.Linear(2, 3)
    ...         self.straight = straight
    ...     def forward(self, x):
    ...         z = self.inner(x)
    ...         q = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
    ...         passed = z + (q - z).detach() if self.straight else q
    ...         return (self.outer(passed) - x).square().mean() + (z - q).square().mean()
    >>> graphs = [trace(Quantised(straight), torch.randn(4, 3))[0] for straight in (False, True)]
    >>> found = [untaught_choice(graph, [graph.nodes[-1].index]) for graph in graphs]
    >>> found[0].weight, found[1]
    ('inner.weight', None)
    """
    made = graph.made_by_layers()
    picks = [
        (node, chosen)
        for node in graph.nodes
        if (chosen := _chosen_by(graph, node)) is not None and node.parents[0] not in made
    ]
    reached = reached_by_gradient(graph, losses) if picks else set()
    for pick, chosen in picks:
        heads = _layers_before(graph, chosen.index) & reached
        own = {graph.nodes[i].weight for i in graph.ancestors(chosen.index)}
        readers = {i for i in _until_layers(graph, pick.index)[1] & reached if graph.nodes[i].weight not in own}
        if (
            heads
            and readers
            and not _meet(graph, _descendants(graph, heads, reached), readers, _descendants(graph, readers, reached))
        ):
            return graph.nodes[min(heads)]
    return None


def _chosen_by(graph: Graph, pick: Node) -> Node | None:
    """Return the choice that an entry of a table was picked by."""
    stack = list(pick.parents[1:]) if pick.op in _PICKS else []
    while stack:
        node = graph.nodes[stack.pop()]
        if node.op in _CHOICES:
            return node
        stack += [] if node.dtype.is_floating_point else node.parents
    return None


def _descendants(graph: Graph, start: set[int], within: set[int]) -> set[int]:
    readers = graph.consumers()
    seen, stack = set(start), list(start)
    while stack:
        new = [reader for reader in readers[stack.pop()] if reader in within and reader not in seen]
        seen.update(new)
        stack += new
    return seen


def _meet(graph: Graph, taught: set[int], readers: set[int], theirs: set[int]) -> bool:
    """Tell whether a way of gradients leads to some layers, or joins what they made, other than in a sum of losses."""
    joins = (graph.nodes[i] for i in taught & theirs)
    return not taught.isdisjoint(readers) or any(node.shape for node in joins)


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
