"""Does a language model see, at each place, the token that it is to predict there?"""

import math
from collections.abc import Sequence

from torch import Tensor

from lit_training.tracing.graph import Graph, Node

__all__ = ["equal_tokens", "reads_others", "sees_its_target"]

_ENOUGH = 16


def equal_tokens(tokens: Tensor, target: Tensor) -> bool:
    """Tell whether a sequence model is to predict the very tokens it gets, but for places that are ignored (below 0).

    Args:
        tokens: `[batch, time]`, what an embedding looks up.
        target: class numbers, as many.

    >>> import torch
    >>> tokens = torch.arange(20).view(2, 10)
    >>> equal_tokens(tokens, tokens.flatten()), equal_tokens(tokens[:, :-1], tokens[:, 1:].flatten())
    (True, False)
    """
    if tokens.ndim != 2 or min(tokens.shape) < 2 or tokens.numel() < _ENOUGH or tokens.numel() != target.numel():
        return False
    if target.is_floating_point() or bool((tokens == tokens[0, 0]).all()):
        return False
    flat, known = target.flatten(), target.flatten() >= 0
    return bool(known.any()) and bool((~known | (flat == tokens.flatten())).all())


def reads_others(graph: Graph, looked_up: Sequence[tuple[int, Tensor]], target: Tensor, prediction: int) -> bool:
    """Tell whether a prediction follows from other tokens, too, as a translation does; positions are the same in all samples.

    Args:
        graph: of the forward.
        looked_up: nodes of embeddings, and the tokens of each.
        target: class numbers.
        prediction: node of the logits.
    """
    before = graph.ancestors(prediction)
    others = [tokens for i, tokens in looked_up if i in before and tokens.ndim == 2 and not equal_tokens(tokens, target)]
    return any(bool((tokens != tokens[:1]).any()) for tokens in others)


def sees_its_target(graph: Graph, embedding: int, prediction: int, recurrent: frozenset[str]) -> bool:
    """Tell whether a prediction follows from the embedded tokens place by place, through a layer that goes in one direction.

    That is a recurrent layer or a causal mask on the way: there, what is to be predicted at a place can only be the next token. The
    way counts as long as it has a place for each token, unlike an autoencoder's, which goes through one vector.

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
    >>> sees_its_target(graph, looked_up, made[-1], frozenset(["1"]))
    True
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
    return prediction in reached and directed


def _is_causal(graph: Graph, node: Node, time: int) -> bool:
    """Tell whether a node is attention that looks back only: torch's own, or a mask over pairs of places that is put on scores."""
    if node.op.startswith("_scaled_dot_product_") and 1.0 in node.scalars[1:3]:  # is_causal; some kernels have a flag in front
        return True
    given = [graph.nodes[p] for p in node.parents if graph.nodes[p].origin == "constant"]
    return any(mask.shape[-2:] == (time, time) and math.prod(mask.shape) == time**2 for mask in given)
