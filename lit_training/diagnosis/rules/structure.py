"""Rules about how layers are put together: idle batch norm, and layers that act as one."""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule

__all__ = ["bn_eval_in_train", "missing_activation"]


@rule(explains=["slow_convergence", "bn_stats", "train_val_gap", "exploding_gradient"])
def bn_eval_in_train(evidence: Evidence) -> Iterator[Finding]:
    """Batch norm is in eval mode while the net trains, with running statistics that were never updated: it does nothing.

    Measured at the first step: `training` is False, `num_batches_tracked` is 0 and the running mean still zero. Typical cause: a
    `model.eval()` without the `model.train()` after it; Lightning keeps the mode that it finds.

    Not an alarm: batch norm in eval mode with trained statistics, as fine-tuning wants it.

    What to do: `model.train()` before `fit`.
    """
    if evidence.idle_norms:
        first = evidence.idle_norms[0]
        message = f"{len(evidence.idle_norms)} batch-norm layer(s) are in eval mode with statistics that were never updated."
        yield Finding("bn_eval_in_train", "error", first, evidence.step, message, "Call model.train() before fit.")


@rule(explains=["slow_convergence"])
def missing_activation(evidence: Evidence) -> Iterator[Finding]:
    """No nonlinearity stands between any two layers, so the whole stack can only do what one linear layer can.

    Measured on the traced operations: at least two linear layers or convolutions lie one behind the other on the way to the loss,
    and no activation, gate, maximum or product of data lies between the first and the last of them.

    Not an alarm: single missing activations next to others (linear bottlenecks, low-rank factors, attention projections); a net
    with one layer; embeddings before one layer.

    What to do: put an activation, `nn.ReLU()`, between the layers.
    """
    graph, readers = evidence.graph, evidence.graph.consumers()
    layers = [layer for layer in evidence.layers if layer.node is not None]
    if any(layer.op in ("recurrent", "embedding") for layer in evidence.layers) or len(layers) < 2:
        return
    inner = [layer for layer in layers if layer.node is not None and graph.reaches_layer(layer.node, readers)]
    if not inner or any(set(graph.follows(layer.node or 0, readers)) != {"linear"} for layer in inner):
        return
    widest = min(layer.shape[1] if len(layer.shape) > 1 else 1 for layer in inner)
    last = [layer for layer in layers if layer not in inner][-1:] or layers[-1:]
    outputs = last[0].shape[1] if len(last[0].shape) > 1 else 1
    if widest < outputs:
        return  # a bottleneck on purpose, as in a linear autoencoder
    message = f"No nonlinearity lies between the {len(layers)} layers, so together they are one linear layer."
    yield Finding("missing_activation", "error", inner[0].name, evidence.step, message, "Put nn.ReLU() between the layers.")
