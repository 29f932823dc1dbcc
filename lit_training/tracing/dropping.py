"""How much noise dropout leaves in what passes, when few units are dropped or kept at a time."""

import math
from dataclasses import dataclass

from lit_training.tracing.graph import Graph, Node

__all__ = ["Noise", "dropped_shares", "noisiest_way"]

_FUSED = frozenset(["native_dropout", "_fused_dropout"])
LEAST_NOISE, LEAST_COINS, LEAST_DROPPED = 0.1, 3, 0.5


@dataclass(frozen=True)
class Noise:
    """Dropout of few units: where first, by how many layers in a row, the fewest units kept on average, and the noise together.

    Of a sum over n units, each kept with probability 1 - p and divided by it, the variance relative to the square of the mean
    is p / ((1 - p) n); that of several layers in a row adds up.
    """

    where: str
    layers: int
    kept: float
    variance: float


def dropped_shares(graph: Graph, rows: int) -> dict[str, float]:
    """Return the largest probability to drop single units, or channels, of each module that applies dropout in its own forward.

    What is left has to be divided by the probability to keep, as dropout does and masks do not.

    >>> import torch
    >>> from torch import nn
    >>> from lit_training.tracing.trace import trace
    >>> graph, _ = trace(nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)), torch.randn(4, 3))
    >>> dropped_shares(graph, 4)
    {'1': 0.5}
    """
    shares: dict[str, float] = {}
    for node in graph.nodes:
        coins, dropped = _drops(graph, node) or (node, 0.0)
        divided = coins is node or any(graph.nodes[p].op == "div" for p in node.parents)
        if divided and dropped and coins.shape[:1] == (rows,) and math.prod(coins.shape[1:]) >= LEAST_COINS:
            shares[node.scope] = max(dropped, shares.get(node.scope, 0.0))
    return shares


def noisiest_way(graph: Graph, rows: int) -> Noise | None:
    """Return the noise of the layers in a row that drop half or more of few units, channels or features of a sample.

    A layer counts if its own share is .1 or more (half of up to 10, .7 of up to 23). One that is called again and again, as in a
    recurrent cell, counts once, as do several behind the same weight.

    >>> import torch
    >>> from torch import nn
    >>> from lit_training.tracing.trace import trace
    >>> graph, _ = trace(nn.Sequential(nn.Conv1d(1, 8, 3), nn.Dropout1d(0.5), nn.Dropout(0.5)), torch.randn(4, 1, 10))
    >>> noisiest_way(graph, 4)
    Noise(where='1', layers=1, kept=4.0, variance=0.125)
    """
    ways: dict[int, Noise] = {}
    counted = set()
    for node in graph.nodes if any(node.op == "bernoulli" or node.op in _FUSED for node in graph.nodes) else ():
        own = _own(graph, node, rows)
        if own is not None:
            before = graph.ancestors(node.index)
            weight = next((graph.nodes[i].weight for i in sorted(before, reverse=True) if graph.nodes[i].weight), "")
            if weight not in counted:
                counted.add(weight)
                way = max((ways[i] for i in before & ways.keys()), key=lambda w: w.variance, default=None)
                ways[node.index] = own if way is None else _join(way, own)
    return max(ways.values(), key=lambda w: w.variance, default=None)


def _join(way: Noise, own: Noise) -> Noise:
    return Noise(way.where, way.layers + 1, min(way.kept, own.kept), way.variance + own.variance)


def _drops(graph: Graph, node: Node) -> tuple[Node, float] | None:
    """Return what draws the coins of an application of dropout, and the probability to drop; `None` for other operations."""
    if node.op in _FUSED:
        return node, node.scalars[0] if node.scalars else 0.0
    if node.op == "mul" and graph.drops(node):
        drawn = [p for p in node.parents if graph.nodes[p].origin == "constant"]
        coins = next(graph.nodes[i] for p in drawn for i in graph.ancestors(p) if graph.nodes[i].op == "bernoulli")
        return coins, 1 - _kept(graph, coins)
    return None


def _own(graph: Graph, node: Node, rows: int) -> Noise | None:
    """Return what a single application of dropout adds, `None` where that is little or the operation is another."""
    found = _drops(graph, node)
    if found is None:
        return None
    coins, dropped = found
    units = math.prod(coins.shape[1:])
    fits = coins.shape[:1] == (rows,) and units >= LEAST_COINS and LEAST_DROPPED <= dropped < 1
    variance = dropped / ((1 - dropped) * units) if fits else 0.0
    return Noise(node.scope, 1, (1 - dropped) * units, variance) if variance >= LEAST_NOISE else None


def _kept(graph: Graph, coins: Node) -> float:
    """Return the probability of a coin's 1: .5, torch's default, is not among its numbers; 1 where it is not known."""
    if coins.scalars:
        return coins.scalars[0]
    filled_in_place = all("empty" in graph.nodes[p].op for p in coins.parents)
    return 0.5 if filled_in_place else 1.0
