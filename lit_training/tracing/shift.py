"""How far ahead of what a language model sees, at each place, is the token that it is to predict there?"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from lit_training.tracing.graph import Graph, Node

__all__ = ["places_ahead", "reads_others", "way_of_places"]

_ENOUGH, _FURTHEST = 16, 2
_CUTS = frozenset("log_softmax slice view _unsafe_view clone _to_copy transpose permute".split())


def places_ahead(tokens: Tensor, target: Tensor) -> int | None:
    """Tell how many places ahead of the token that a sequence model gets the one lies that it is to predict there: 0, 1 or 2.

    Args:
        tokens: `[batch, time]`, what an embedding looks up.
        target: class numbers, as many, or fewer where the last places have none; those below 0 are ignored.

    Returns:
        `None` if the targets are other tokens, or too few of them are known.

    >>> import torch
    >>> tokens = torch.arange(40).view(2, 20)
    >>> [places_ahead(tokens[:, :17], tokens[:, k : 17 + k].flatten()) for k in (0, 1, 2, 3)]
    [0, 1, 2, None]
    """
    if tokens.ndim != 2 or min(tokens.shape) < 2 or target.is_floating_point() or target.numel() % len(tokens):
        return None
    asked = target.reshape(len(tokens), -1)
    time = asked.shape[1]
    if not 0 <= tokens.shape[1] - time <= _FURTHEST or bool((tokens == tokens[0, 0]).all()):
        return None
    return next((k for k in range(_FURTHEST + 1) if _is_ahead(tokens[:, k:], asked[:, : tokens.shape[1] - k])), None)


def _is_ahead(tokens: Tensor, asked: Tensor) -> bool:
    known = asked >= 0
    return int(known.sum()) >= _ENOUGH and bool((~known | (asked == tokens[:, : asked.shape[1]])).all())


def reads_others(graph: Graph, looked_up: Sequence[tuple[int, Tensor]], target: Tensor, ahead: int, prediction: int) -> bool:
    """Tell whether a prediction follows from other tokens, too, as a translation does; positions are the same in all samples.

    Args:
        graph: of the forward.
        looked_up: nodes of embeddings, and the tokens of each.
        target: class numbers.
        ahead: how many places ahead of its own tokens they are.
        prediction: node of the logits.
    """
    before = graph.ancestors(prediction)
    others = [tokens for i, tokens in looked_up if i in before and tokens.ndim == 2 and places_ahead(tokens, target) != ahead]
    return any(bool((tokens != tokens[:1]).any()) for tokens in others)


def way_of_places(graph: Graph, embedding: int, prediction: int, recurrent: frozenset[str]) -> Literal["", "open", "one way"]:
    """Tell whether a prediction follows from the embedded tokens place by place, and whether something on the way looks back only.

    That is a recurrent layer or a causal mask: there, what is to be predicted at a place can only be the next token. The way counts
    as long as it has a place for each token, up to logits of which the last are cut off, unlike an autoencoder's, which goes
    through one vector.

    Args:
        graph: of the forward.
        embedding: node of the embedded tokens, `[batch, time, features]`.
        prediction: node of the logits.
        recurrent: scopes of recurrent modules that go in one direction.

    >>> import torch
    >>> from lit_training.tracing.trace import trace
    >>> gru = torch.nn.GRU(4, 3, batch_first=True)
    >>> graph, _ = trace(torch.nn.Sequential(torch.nn.Embedding(9, 4), gru), torch.zeros(2, 5, dtype=torch.long))
    >>> looked_up = next(node.index for node in graph.nodes if node.op == "embedding")
    >>> made = [node.index for node in graph.nodes if node.shape == (2, 5, 3)]
    >>> way_of_places(graph, looked_up, made[-1], frozenset(["1"]))
    'one way'
    """
    batch, time = graph.nodes[embedding].shape[:2]

    def keeps(node: Node) -> bool:
        return time in node.shape or batch * time in node.shape

    reached, directed = {embedding}, False
    for node in graph.nodes[embedding + 1 : prediction + 1]:
        parents = [graph.nodes[p] for p in node.parents if p in reached]
        inside = node.scope in recurrent
        if inside:
            parents = [p for p in parents if p.scope == node.scope or keeps(p)]
        if parents and (inside or keeps(node)):
            reached.add(node.index)
            directed = directed or inside or _is_causal(graph, node, time)
    while prediction not in reached and graph.nodes[prediction].op in _CUTS:
        prediction = graph.nodes[prediction].parents[0]
    return "" if prediction not in reached else "one way" if directed else "open"


def _is_causal(graph: Graph, node: Node, time: int) -> bool:
    """Tell whether a node is attention that looks back only: torch's own, or a mask over pairs of places that is put on scores."""
    if node.op.startswith("_scaled_dot_product_") and 1.0 in node.scalars[1:3]:  # is_causal; some kernels have a flag in front
        return True
    given = [graph.nodes[p] for p in node.parents if graph.nodes[p].origin == "constant"]
    return any(mask.shape[-2:] == (time, time) and math.prod(mask.shape) == time**2 for mask in given)
