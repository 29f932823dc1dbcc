"""What several forward passes of one step feed into the same batch norm, whose running statistics are of all of them together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod

import torch
from torch import Tensor

from lit_training.tracing.graph import Graph, Node

__all__ = ["BATCH_NORMS", "NormPasses", "takes_statistics"]

BATCH_NORMS = frozenset(
    "native_batch_norm _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm _batch_norm_with_update".split()
)
MOST_PASSES = 4
FIRST_NORMS = 4
FEWEST_SAMPLES, FEWEST_VALUES = 8, 32


def takes_statistics(node: Node) -> bool:
    """Tell whether a batch norm takes its statistics from the batch: the `training` flag is the first of its numbers."""
    return node.op == "_batch_norm_with_update" or bool(node.scalars[:1] == (1.0,))


@dataclass
class _Pass:
    """One call of a batch norm: its first output, and the mean and the inverse standard deviation of each channel."""

    output: int
    moments: list[Tensor]


@dataclass
class NormPasses:
    """Keep the statistics that batch norms in train mode took from their batches; they are outputs of the operation itself."""

    _passes: dict[int, dict[tuple[int, ...], _Pass]] = field(default_factory=dict)

    def note(self, graph: Graph, node: Node, tensor: Tensor) -> None:
        """Take an output of a batch norm with running statistics."""
        running = [parent for parent in node.parents if graph.nodes[parent].op == "buffer"]
        if tensor.ndim == 1 and tensor.numel() and running and takes_statistics(node):
            passes = self._passes.setdefault(running[0], {})
            passes.setdefault(node.parents, _Pass(node.index - 1, [])).moments.append(tensor.detach())

    @torch.no_grad()
    def apart(self, graph: Graph) -> dict[str, float]:
        """Return of each batch norm that passes of one network feed by turns how far the furthest is from what it keeps.

        The figure is the distance between two normal distributions (Wasserstein), in running standard deviations, averaged over
        channels: of the pass's values as the running statistics normalise them, and as its own do. Behind a batch norm all passes
        are alike, so only the first few are looked at.
        """
        several = ((i, list(passes.values())) for i, passes in self._passes.items() if 1 < len(passes) <= MOST_PASSES)
        return {
            graph.nodes[running].name.removesuffix(".running_mean"): _distance(passes)
            for running, passes in islice(several, FIRST_NORMS)
            if all(_is_sample(graph, each) for each in passes) and _of_one_network(graph, passes)
        }

    @torch.no_grad()
    def off_centre(self, graph: Graph, names: Collection[str]) -> dict[str, float]:
        """Return of each of these batch norms how far from zero its first batch is: its channels' means, in their deviations.

        The figure is the root mean square over channels.
        """
        found = {graph.nodes[i].name.removesuffix(".running_mean"): next(iter(p.values())) for i, p in self._passes.items()}
        return {
            name: float((each.moments[0].double() * each.moments[1].double()).square().mean().sqrt())
            for name, each in found.items()
            if name in names and _is_sample(graph, each)
        }


def _distance(passes: Sequence[_Pass]) -> float:
    means = torch.stack([each.moments[0] for each in passes]).double()
    variances = torch.stack([each.moments[1] for each in passes]).double().pow(-2)
    kept = variances.mean(0).sqrt()
    shift, scale = (means - means.mean(0)) / kept, variances.sqrt() / kept
    return float((shift.square() + (scale - 1).square()).sqrt().mean(1).max())


def _is_sample(graph: Graph, each: _Pass) -> bool:
    """Tell whether a pass holds enough to know the statistics of what it was taken from."""
    rows, _, *positions = graph.nodes[each.output].shape
    return rows >= FEWEST_SAMPLES and rows * prod(positions) >= FEWEST_VALUES


def _of_one_network(graph: Graph, passes: Sequence[_Pass]) -> bool:
    """Tell whether the same layers made the values of all passes, of the batch or without learning from them."""
    before = [graph.ancestors(each.output) for each in passes]
    layers = [{graph.nodes[i].weight for i in nodes} for nodes in before]
    outputs = {each.output for each in passes}
    chained = any(len(outputs & nodes) > 1 for nodes in before)
    given = (
        not graph.nodes[each.output].grad_mode or any(graph.nodes[i].name == "batch" for i in nodes)
        for each, nodes in zip(passes, before, strict=True)
    )
    return not chained and all(own == layers[0] for own in layers) and all(given)
