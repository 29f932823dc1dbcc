"""Rules about which parts learn: frozen, forgotten and idle parameters, and layers that act as one."""

from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule

__all__ = ["bn_eval_in_train", "frozen_by_accident", "missing_activation", "not_in_optimizer"]


@rule(explains=["no_update", "slow_convergence", "frozen_by_accident"])
def not_in_optimizer(evidence: Evidence) -> Iterator[Finding]:
    """A parameter gets a gradient, but no optimiser holds it, so it never moves.

    Measured at the first optimiser step, over all optimisers. Typical causes: the optimiser was built from part of the module, or
    before a layer was replaced (PyTorch forum 84911).

    What to do: pass `self.parameters()` in `configure_optimizers`; freeze with `requires_grad_(False)` what is not to move.
    """
    lost = [f for f in evidence.parameters.values() if f.optimized is False and f.requires_grad and f.gradient is not None]
    if lost and not all(facts.expected_frozen for facts in lost):
        message = f"{len(lost)} parameter(s) get gradients but are in no optimiser, {lost[0].name} first."
        advice = "Give the optimiser self.parameters(), or freeze them: requires_grad_(False)."
        yield Finding("not_in_optimizer", "error", lost[0].name, evidence.step, message, advice, {"parameters": len(lost)})


@rule(explains=["no_update", "slow_convergence"])
def frozen_by_accident(evidence: Evidence) -> Iterator[Finding]:
    """Weights that were never trained are frozen, and nobody declared it.

    Measured: `requires_grad` is False, the parameter matches no pattern of `expect_frozen`, and the weight is uniform up to
    1/sqrt(fan_in), which is how torch draws a fresh layer: there is nothing in it to preserve.

    Not an alarm: frozen weights that do not look fresh (transfer learning freezes trained ones); declared freezing.

    What to do: thaw the layer, or declare it: `diagnostics(expect_frozen=["body"])`.
    """
    frozen = [f for f in evidence.parameters.values() if not f.requires_grad and f.fresh and not f.expected_frozen]
    if frozen:
        first = frozen[0]
        message = (
            f"{len(frozen)} frozen weight(s) look freshly initialised, {first.name} first: there is nothing in them to keep."
        )
        advice = f"Train them: {first.name}.requires_grad_(True), or declare them: diagnostics(expect_frozen=[{first.name!r}])."
        yield Finding("frozen_by_accident", "error", first.name, evidence.step, message, advice, {"weights": len(frozen)})


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
