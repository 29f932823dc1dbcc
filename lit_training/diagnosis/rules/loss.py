"""Rules about the loss: does it get what it expects, and does it point downhill?"""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.trace import Graph, Node

__all__ = ["loss_sign", "shape_broadcast", "wrong_last_activation", "wrong_loss"]

_SHAPING = frozenset(
    "view _unsafe_view reshape alias squeeze unsqueeze transpose permute t select slice _to_copy clone detach".split()
)
_RANGES = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, float("inf"))}


@rule(explains=["slow_convergence", "bad_initial_loss", "no_update", "dead_relu", "constant_output", "saturation"])
def wrong_last_activation(evidence: Evidence) -> Iterator[Finding]:
    """The network ends in an activation that its loss applies again, or that cannot produce the targets.

    Measured on the traced operations of the real step: what produced the tensor that the loss received, looking through reshaping
    only. Cross-entropy and BCE-with-logits take logits; a softmax or sigmoid before them bounds the logits to 0...1, so that the
    loss cannot fall below a floor and gradients shrink (UMLAUT, TheDeepChecker), a ReLU or tanh bounds them too. A regression whose
    output passes a bounded activation cannot reach targets outside of its range; that is an alarm only if the first batch holds
    such targets by more than a tenth of the targets' spread.

    Not an alarm: log_softmax before cross-entropy, which changes nothing; a bounded output for targets within its range.

    What to do: remove the last activation, and apply it where predictions are read.
    """
    for call in evidence.losses:
        graph = evidence.graph
        logits = graph.nodes[call.prediction]
        if "nll" in call.op:
            logits = _producer(graph, logits)
            if logits.op != "log_softmax" or not logits.parents:
                continue
            logits = graph.nodes[logits.parents[0]]
        maker = _producer(graph, logits)
        if "nll" in call.op or call.op == "binary_cross_entropy_with_logits":
            name = "cross_entropy" if "nll" in call.op else "binary_cross_entropy_with_logits"
            if maker.op in ("softmax", "sigmoid", "relu", "tanh"):
                yield _last(evidence, maker, f"{name} gets the output of {maker.op}, but needs logits", name)
                return
        elif call.op in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss") and maker.op in _RANGES:
            low, high = _RANGES[maker.op]
            margin = 0.1 * (call.target_range[1] - call.target_range[0])
            if call.target_range[0] < low - margin or call.target_range[1] > high + margin:
                reach = f"from {call.target_range[0]:.3g} to {call.target_range[1]:.3g}"
                yield _last(evidence, maker, f"targets go {reach}, which {maker.op} at the end cannot reach", call.op)
                return


@rule(explains=["slow_convergence", "bad_initial_loss", "loss_diverging", "loss_sign"])
def wrong_loss(evidence: Evidence) -> Iterator[Finding]:
    """`nll_loss` gets something else than log-probabilities.

    Measured: the mean over the batch of log(sum(exp(prediction))) over the classes, which is 0 for log-probabilities; further from
    0 than 0.01 is an alarm. Raw logits make the loss unbounded from below, probabilities give no gradient where it is needed.

    What to do: use `cross_entropy` on logits.
    """
    for call in evidence.losses:
        if "nll" in call.op and abs(call.scale) > 0.01:
            maker = _producer(evidence.graph, evidence.graph.nodes[call.prediction])
            what = "probabilities" if maker.op in ("softmax", "sigmoid") else "raw outputs"
            yield Finding(
                "wrong_loss",
                "error",
                maker.scope,
                evidence.step,
                f"nll_loss gets {what}: log(sum(exp(prediction))) is {call.scale:.2f} instead of 0.",
                "Use torch.nn.functional.cross_entropy on the outputs before any softmax.",
                {"log_sum_exp": call.scale},
            )
            return


@rule(explains=["loss_diverging", "nan_loss", "bad_initial_loss"])
def loss_sign(evidence: Evidence) -> Iterator[Finding]:
    """The loss is the negative of a loss that is to be minimised, so training climbs.

    Measured: the differentiated loss is minus the value of the only one of torch's losses that the step called (to 0.1 %), a loss
    that is never negative (cross-entropy on logits, BCE, squared and absolute errors).

    What to do: drop the minus.
    """
    positive = [call for call in evidence.losses if call.value is not None and call.value > 0 and abs(call.scale) < 0.01]
    if len(evidence.losses) == 1 and positive and evidence.loss is not None:
        value = positive[0].value or 0.0
        if abs(evidence.loss + value) < 1e-3 * value:
            message = f"The loss that is minimised is {evidence.loss:.4g}: minus {positive[0].op}, so training makes it worse."
            yield Finding("loss_sign", "error", "", evidence.step, message, "Remove the minus sign.", {"loss": evidence.loss})


@rule(explains=["slow_convergence", "bad_initial_loss", "constant_output"])
def shape_broadcast(evidence: Evidence) -> Iterator[Finding]:
    """Outputs and targets of different shapes are broadcast against each other, so every sample is compared with every target.

    Measured: a loss, or a subtraction of data, whose two operands have equal counts of elements but different shapes, and whose
    result has more: (N, 1) against (N,) gives (N, N), and the best such a network can do is to predict the mean.

    Not an alarm: pairwise distances, whose operands were given their shapes by an explicit unsqueeze.

    What to do: `target.unsqueeze(1)` or `output.squeeze(1)`.
    """
    graph = evidence.graph
    for call in evidence.losses:
        operands = [_unexpanded(graph, graph.nodes[i]) for i in (call.prediction, call.target)]
        if _broadcasts(*operands) and "nll" not in call.op:
            yield _broadcast(evidence, *operands)
            return
    for node in graph.nodes:
        if node.op == "sub" and len(node.parents) == 2 and len(node.shape) == 2 and node.shape[0] == node.shape[1]:
            a, b = (graph.nodes[p] for p in node.parents)
            if {a.shape, b.shape} == {node.shape[:1], (node.shape[0], 1)} and "input" in (a.op, b.op):
                yield _broadcast(evidence, a, b)
                return


def _last(evidence: Evidence, maker: Node, message: str, loss: str) -> Finding:
    advice = f"Remove the {maker.op} at the end of the network; apply it to predictions only, not before {loss}."
    return Finding("wrong_last_activation", "error", maker.scope, evidence.step, f"{message}.", advice)


def _producer(graph: Graph, node: Node) -> Node:
    """Walk back through reshaping to the operation that made the values."""
    while node.op in _SHAPING and node.parents:
        node = graph.nodes[node.parents[0]]
    return node


def _unexpanded(graph: Graph, node: Node) -> Node:
    return graph.nodes[node.parents[0]] if node.op == "expand" and node.parents else node


def _broadcasts(a: Node, b: Node) -> bool:
    flat, column = sorted((a.shape, b.shape), key=len)
    return len(flat) == 1 and flat[0] > 1 and column == (flat[0], 1)


def _broadcast(evidence: Evidence, a: Node, b: Node) -> Finding:
    message = f"Outputs and targets of shapes {a.shape} and {b.shape} are broadcast, so every sample meets every target."
    return Finding("shape_broadcast", "error", "", evidence.step, message, "Give both one shape: target.unsqueeze(1).")
