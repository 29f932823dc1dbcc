"""What one real forward and backward looked like, layer by layer.

A *layer* is an operation that multiplies data by a parameter, whichever module or function does it, and each recurrent module
as a whole; a table that is an embedding and reads out, too, is a layer for the one and a readout for the other. At each layer three
tensors are measured: its output, what the nonlinearity that follows makes of it, and the gradient with respect to its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lit_training.tracing.attention import Attention, attention
from lit_training.tracing.comparisons import Comparisons
from lit_training.tracing.direction import agreement, only_at_label, silent_label, unheard_outputs
from lit_training.tracing.fading import Fading
from lit_training.tracing.gates import stuck_gates
from lit_training.tracing.graph import ACTIVATIONS, LOSSES, Graph, Node, first_operand
from lit_training.tracing.loss_calls import LossCall, class_weights, labelled_blank, loss_call, rebuilds, weights_differ
from lit_training.tracing.norm_passes import BATCH_NORMS, NormPasses
from lit_training.tracing.shift import places_ahead, reads_others, way_of_places
from lit_training.tracing.tensor_stats import TensorStats, measure
from lit_training.tracing.trace import Tracer

__all__ = ["Layer", "Probe"]

_OF_COMPARISONS = frozenset(
    "sub abs square pow mul mm bmm gather sum mean sqrt linalg_vector_norm _cdist_forward _euclidean_dist".split()
)
_BREAKING = LOSSES | frozenset(
    "log log2 log10 log1p sqrt rsqrt div reciprocal exp expm1 pow acos asin atanh acosh xlogy".split()
)


@dataclass
class Layer:
    """What was seen at one layer: before the nonlinearity, after it, and in the backward pass.

    `gates` are, at a recurrent layer, the shares of gates that are stuck (`gates.stuck_gates`), a column for each level.
    `agreement` is, at an output of the network, the cosine between the way down the loss and the way to the targets
    (`direction.agreement`), `None` where the batch holds no targets that are known to be such; `only_at_label`,
    `silent_label` and `unheard` tell likewise which outputs get no gradient.
    """

    name: str
    weight: str
    op: str
    shape: tuple[int, ...]
    output: TensorStats
    node: int | None = None
    source: TensorStats | None = None
    nonlinearity: str = ""
    activation: TensorStats | None = None
    gradient: TensorStats | None = None
    gates: TensorStats | None = None
    calls: int = 1
    agreement: float | None = None
    only_at_label: bool = False
    silent_label: float | None = None
    unheard: int = 0


@dataclass
class Probe:
    """Measure every layer of a module while active; use once, as a context manager around one forward and its backward.

    Args:
        module: names the layers.
        batch_size: number of samples, so that sequences are not taken for batches.
        batch: what the loader handed out, so that its tensors are known.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    >>> with Probe(net, batch_size=4) as probe:
    ...     net(torch.randn(4, 8)).sum().backward()
    >>> [(layer.name, layer.nonlinearity) for layer in probe.layers.values()]
    [('0', 'tanh'), ('2', '')]
    """

    module: nn.Module
    batch_size: int
    batch: Any = ()
    layers: dict[str, Layer] = field(default_factory=dict)
    readouts: dict[str, Layer] = field(default_factory=dict)
    inputs: dict[int, TensorStats] = field(default_factory=dict)
    losses: list[LossCall] = field(default_factory=list)
    comparisons: Comparisons = field(default_factory=Comparisons)
    label_rows: dict[int, TensorStats] = field(default_factory=dict)
    differentiated: list[int] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    fading: Fading = field(default_factory=Fading)
    norm_passes: NormPasses = field(default_factory=NormPasses)

    def __post_init__(self) -> None:
        recurrent = {name: part for name, part in self.module.named_modules() if isinstance(part, nn.RNNBase)}
        self._recurrent, self._one_way = set(recurrent), frozenset(n for n, part in recurrent.items() if not part.bidirectional)
        self.tracer = Tracer(
            self.module,
            on_output=self._on_output,
            on_input=self._on_input,
            on_module=self._on_module if self._recurrent else None,
            on_gradient=self._on_gradient,
            wants_gradient=lambda node: bool(node.weight) or self.comparisons.wants(node),
            batch=self.batch,
        )
        labels = [x for x in self.tracer.batch if x.ndim == 1 and not x.is_floating_point() and len(x) == self.batch_size]
        self.comparisons.labels = labels[0] if len(labels) == 1 else None
        self.trainable = {id(p) for p in self.module.parameters() if p.requires_grad}
        self._by_node: dict[int, Layer] = {}
        self._finite: list[tuple[Node, Tensor]] = []
        self._tokens: list[tuple[int, Tensor]] = []
        self._stats: dict[tuple[int, int], TensorStats] = {}

    @property
    def graph(self) -> Graph:
        """The traced operations."""
        return self.tracer.graph

    def __enter__(self) -> "Probe":
        self.tracer.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.tracer.__exit__(*error)

    def differentiate(self, loss: Tensor, *, scaled: bool = False, divided: bool = False) -> None:
        """Note a loss that is about to be differentiated.

        Args:
            loss: as `backward` gets it.
            scaled: whether mixed precision has multiplied it.
            divided: whether Lightning divided it for accumulation before.
        """
        node = self.tracer.read(loss)
        if scaled and node.op == "mul":
            node = self.graph.nodes[node.parents[0]]
        if divided and node.op == "div":
            node = self.graph.nodes[node.parents[0]]
        self.differentiated.append(node.index)

    def first_broken(self) -> Node | None:
        """Return the first operation among logarithms, roots, quotients, powers and losses that made a value not finite."""
        return next((node for node, finite in self._finite if not finite), None)

    def _on_input(self, node: Node, tensor: Tensor) -> None:
        if _is_measurable(tensor) and tensor.numel() and tensor.ndim:
            self.inputs[node.index] = self._measure(node.index, tensor)

    def _on_output(self, node: Node, tensor: Tensor, operands: Sequence[Tensor]) -> None:
        if node.weight:
            self.fading.note(node)
        if node.scope in self._recurrent:
            return
        if node.op in LOSSES and len(operands) > 1:
            self._add_loss(node, tensor, operands)
        elif node.weight:
            self._add_layer(node, tensor, operands)
        elif node.op == "mul" and len(operands) == 2:
            self._add_labels(node, operands)
        if node.op in BATCH_NORMS:
            self.norm_passes.note(self.graph, node, tensor)
        if node.op == "embedding":
            self._tokens.append((node.index, operands[1]))
        if node.op == "softmax" or node.op.startswith("_scaled_dot_product_"):
            seen = attention(self.graph, node, tensor, operands)
            self.attentions += [] if seen is None else [seen]
        if node.op in _BREAKING:
            self._finite.append((node, tensor.isfinite().all()))
        if node.op in _OF_COMPARISONS:
            compared = self.comparisons.note(self.graph, node, tensor, operands)
            self.losses += [compared] if compared is not None else []
        if node.op in ACTIVATIONS and tensor.ndim:
            layer = self._layer_before(node)
            if layer is not None and layer.activation is None:
                layer.nonlinearity = node.op
                layer.activation = self._measure(node.index, tensor, _unit_dim(layer.op, tensor), node)

    def _add_layer(self, node: Node, tensor: Tensor, operands: Sequence[Tensor]) -> None:
        name = node.weight.removesuffix(".weight")
        known = self.layers.get(name)
        if known is not None:
            known.calls += 1
        if known is not None and (name in self.readouts or known.op != "embedding" or node.op == "embedding"):
            return
        output = self._measure(node.index, tensor, _unit_dim(node.op, tensor))
        source = next(
            (
                self._measure(parent, operand, _unit_dim(node.op, operand))
                for parent, operand in list(zip(node.parents, operands, strict=True))[first_operand(node.op) :]
                if self.graph.nodes[parent].origin == "data" and _is_measurable(operand)
            ),
            None,
        )
        layer = Layer(name, node.weight, node.op, node.shape, output, node.index, source)
        if known is None:
            self.layers[name] = self._by_node[node.index] = layer
        else:
            self.readouts[name] = layer

    def _measure(self, node: int, tensor: Tensor, unit_dim: int = -1, act: Node | None = None) -> TensorStats:
        """Measure the tensor of a node, once: what one layer gives is often what the next one takes."""
        key = node, unit_dim % tensor.ndim
        if key not in self._stats:
            bounds = () if act is None else (act.op, act.scalars)
            self._stats[key] = measure(tensor, self.batch_size, unit_dim, *bounds)
        return self._stats[key]

    def _add_loss(self, node: Node, tensor: Tensor, operands: Sequence[Tensor]) -> None:
        if self.losses and self.losses[-1].prediction == node.parents[0]:
            return  # a second output of the same operation
        prediction, target = operands[0].detach(), operands[1].detach()
        graph, logits = self.graph, node.parents[0]
        shown = {i: k for i, tokens in self._tokens if (k := places_ahead(tokens, target)) is not None}
        alone = {i: k for i, k in shown.items() if not reads_others(graph, self._tokens, target, k, logits)}
        ways = [(k, way_of_places(graph, i, logits, self._one_way)) for i, k in alone.items()]
        ahead = min((k for k, way in ways if way == "one way"), default=None)
        blank = labelled_blank(node, operands) if "ctc" in node.op else None
        weighted = "ctc" not in node.op and weights_differ(node, operands[2:])
        self.losses.append(
            replace(
                loss_call(node, tensor, prediction, target),
                ahead=ahead,
                open_way=(1, "open") in ways,
                blank=blank,
                weighted=weighted,
                class_weights=class_weights(node, operands),
            )
        )

    def _add_labels(self, node: Node, operands: Sequence[Tensor]) -> None:
        """Measure the targets of a cross-entropy with class probabilities, which is a product with log-probabilities."""
        nodes = [self.graph.nodes[parent] for parent in node.parents]
        for scores, target, values in zip(nodes, reversed(nodes), reversed(operands), strict=True):
            while target.op == "_to_copy":
                target = self.graph.nodes[target.parents[0]]
            same = target.name == "batch" and values.shape == scores.shape and values.ndim > 1
            if scores.op == "log_softmax" and same and target.index not in self.graph.ancestors(scores.index):
                rows = torch.stack([values.sum(1), values.amax(1)], -1).flatten(0, -2)
                self.label_rows[node.index] = measure(rows.float(), len(rows))

    def _layer_before(self, node: Node) -> Layer | None:
        """Walk back through operations that are not layers or activations to the layer whose values arrive here."""
        while True:
            parents = [self.graph.nodes[p] for p in node.parents if self.graph.nodes[p].origin == "data"]
            if not parents:
                return None
            node = parents[0]
            if node.index in self._by_node:
                return self._by_node[node.index]
            if node.weight or node.op in ACTIVATIONS or node.op == "linalg_vector_norm":
                return None

    def _on_module(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if name not in self._recurrent or not isinstance(module, nn.RNNBase):
            return
        if name in self.layers:
            self.layers[name].calls += 1
            return
        arriving, result = (_padded(value) for value in (inputs[0], output[0]))
        node = self.tracer.node(result)
        layer = Layer(
            name,
            f"{name}.weight_ih_l0",
            "recurrent",
            tuple(result.shape),
            measure(result, self.batch_size),
            None if node is None else node.index,
            measure(arriving, self.batch_size),
            gates=measure(stuck_gates(module, inputs[0]), batch_size=0),
        )
        self.layers[name] = layer
        if node is not None:
            self._by_node[node.index] = layer
        if result.requires_grad:
            self.tracer.on_gradient_of(result, partial(self._gradient_of, layer))

    def _on_gradient(self, node: Node, gradient: Tensor) -> None:
        if self.comparisons.wants(node):
            self.comparisons.on_gradient(self.graph, node, gradient.detach())
        self.fading.on_gradient(node, gradient)
        if node.index in self._by_node:
            layer = self._by_node[node.index]
            if layer.gradient is None and not self.graph.reaches_layer(node.index):
                self._compare_with_target(layer, node, gradient.detach())
            self._gradient_of(layer, gradient)

    def _gradient_of(self, layer: Layer, gradient: Tensor) -> None:
        if layer.gradient is None:
            layer.gradient = measure(gradient.detach(), self.batch_size, _unit_dim(layer.op, gradient))

    def _compare_with_target(self, layer: Layer, node: Node, gradient: Tensor) -> None:
        """Compare the gradient of an output with the only tensor of the batch that the network did not read, if it is one.

        If there is none, an autoencoder's target is what it has read and is compared with.
        """
        inputs = self.graph.ancestors(node.index)
        nodes = [(tensor, self.tracer.node(tensor)) for tensor in self.tracer.batch]
        targets = [tensor for tensor, read in nodes if read is not None and read.index not in inputs]
        if len(targets) == 1 and len(nodes) > 1:
            layer.agreement = agreement(gradient, targets[0])
            layer.only_at_label = only_at_label(gradient, targets[0])
            layer.silent_label = silent_label(gradient, targets[0])
            layer.unheard = unheard_outputs(gradient, targets[0])
        if layer.agreement is None and len(targets) < 2:
            layer.agreement = self._towards_rebuilt(node, gradient, targets or self.tracer.batch)

    def _towards_rebuilt(self, node: Node, gradient: Tensor, candidates: Sequence[Tensor]) -> float | None:
        """Compare the gradient of an output with the one tensor that a loss compares it with, whatever its shape."""
        alike = {id(x): x for x in candidates if x.is_floating_point() and _alike(x, gradient)}
        read = [(x, self.tracer.node(x)) for x in alike.values()]
        rebuilt = [x for x, leaf in read if leaf is not None and rebuilds(self.graph, node.index, leaf.index)]
        return agreement(gradient, rebuilt[0].reshape(gradient.shape)) if len(rebuilt) == 1 else None


def _padded(value: Tensor | PackedSequence) -> Tensor:
    return value.data if isinstance(value, PackedSequence) else value


def _is_measurable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided


def _alike(tensor: Tensor, gradient: Tensor) -> bool:
    return tensor.numel() == gradient.numel() and tensor.shape[:1] == gradient.shape[:1]


def _unit_dim(op: str, tensor: Tensor) -> int:
    return 1 if "convolution" in op and tensor.ndim > 2 else -1
