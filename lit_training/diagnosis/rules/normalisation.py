"""Rules about batch norm: idle, fed with too little, or with a bias in front that it subtracts again."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.tracing.graph import NORMALISATIONS, Graph, Node
from lit_training.tracing.norm_passes import BATCH_NORMS, takes_statistics

__all__ = ["bias_before_bn", "bn_eval_in_train", "bn_stats", "small_batch_norm"]

FEW = 16
LONG_RUN, SHORT_RUN = 100, 32
LEFT = 0.5
FAST = 0.9
NOISY = 32
TOO_FEW = 4
RESTED = 2  # updates
APART = 0.5
SHIFTED = 0.5  # standard deviations


@rule(
    explains=[
        "overfit_no_regularisation",
        "slow_convergence",
        "lr_too_low",
        "lr_too_high",
        "bn_stats",
        "train_val_gap",
        "exploding_gradient",
    ]
)
def bn_eval_in_train(evidence: Evidence) -> Iterator[Finding]:
    """Batch norm is in eval mode while the net trains, with running statistics that were never updated: it does nothing.

    Measured at the first step: `training` is False, `num_batches_tracked` is 0 and the running mean still zero. And a few updates
    later: all layers that took in the first batch are in eval mode and have taken in none since, so that statistics of one batch
    stand for all. Typical cause: a `model.eval()` without the `model.train()` after it, as for a preview of predictions inside
    `training_step`; Lightning keeps the mode that it finds.

    Not an alarm: batch norm in eval mode with trained statistics, as fine-tuning wants it; that of networks through which no
    gradient flows, as running averages of the weights and teachers are.

    What to do: `model.train()` before `fit`, and after each `model.eval()`.
    """
    graph, made = evidence.graph, evidence.graph.made_by_layers()
    norms = [node for node in graph.nodes if node.op in NORMALISATIONS]
    taught = {node.scope for node in norms if node.requires_grad or (node.grad_mode and node.index not in made)}
    idle = [name for name in evidence.idle_norms if name in taught]
    if idle:
        message = f"{len(idle)} batch-norm layer(s) are in eval mode with statistics that were never updated."
        yield Finding("bn_eval_in_train", "error", idle[0], evidence.step, message, "Call model.train() before fit.")
    later, took_in = evidence.later, evidence.took_in
    if later is not None and later.steps >= RESTED and took_in and set(took_in) <= set(later.resting):
        message = f"{len(took_in)} batch-norm layer(s) are in eval mode since the first batch, whose statistics stand for all."
        advice = "Call model.train() after model.eval() in training_step."
        yield Finding("bn_eval_in_train", "error", took_in[0], evidence.step, message, advice)


@rule(explains=["train_val_mismatch", "overfit_no_regularisation", "train_val_gap"])
def bn_stats(evidence: Evidence) -> Iterator[Finding]:
    """Batch norm's statistics are none of the data: they move too slowly, are of two or three values, or of two kinds of data.

    What it means: training uses the batch's statistics and looks fine; validation and predictions use running ones that are
    still half 0 and 1. Typical cause: `momentum` as other frameworks have it, .99 or .999 for what is kept, turned into 1 -
    .999. Of two values batch norm leaves 1 and -1, of three not much more: which is larger passes, and by how much does not;
    the running statistics pass it. Typical cause: a batch of 2, for want of memory. And two passes of one step are each normalised
    by their own statistics, while the running ones are half way between and fit neither. Typical cause: clean and strongly
    augmented pictures, or those of two domains, go through one network one after the other.

    How it is measured: (1 - momentum) to the power of the planned updates, which is the part of the start that is left in them.
    That part, times how far from zero the channels of the first batch are (root mean square of their means, in their standard
    deviations), is by how much predictions are shifted: biases in front of a batch norm cost nothing in training, and make it far.
    Besides, the mode after the first batch of the sanity check: in train mode they take in what is to be validated on; and the
    elements per channel that the batch norms of the first step read. Of a norm that several passes go through (up to 4), the
    distance of the furthest from what is kept (`NormPasses.apart`), in standard deviations. At the end of a run: frozen batch norms
    whose gains and biases were moved by hand, and whose running statistics are as they were born: a running average of a
    network that leaves out its buffers.

    Threshold: fewer than 4 elements at half of the batch norms or more; with 4 the size of a deviation passes again, which
    small_batch_norm notes. Of what moves slowly half, in runs of 100 updates or more, for statistics that are new; or less, in runs
    of 32 or more, if at half of the batch norms predictions are shifted by .5 standard deviations (centred inputs and ReLU: a
    batch is about 1 from zero, biases of 1 make that 3). A momentum
    of .9 and more takes the last batch's statistics for the data's, which is told where a channel has fewer than 32 values in it.
    Passes that are .5 apart, which means 1 std apart or sevenfold in variance; two augmentations of a kind come to .1. Measured
    with a conv net, clean and brightened pictures: .2 apart costs 5 % of what was right in validation, .35 20 %, .5 and more half.
    Xie et al. 2020, "Adversarial Examples Improve Image Recognition", give each kind norms of its own.

    Not an alarm: trained statistics that are fine-tuned; `momentum=None`, which averages all batches alike; pairs of pictures or
    sequences, whose positions count; a single norm behind global pooling; synchronised batch norm; group and layer norm; passes
    that differ in the layers before them (a discriminator's real and generated data), or that go through a norm one behind the
    other; fewer than 8 samples.

    What to do: no bias in front of batch norm; `momentum=0.1`, .01 for long runs; `PreciseBatchNorm` computes them anew; several
    kinds of data in one batch.
    """
    tracking = [name for name in evidence.samples.val_modes if name in evidence.collecting_norms]
    if tracking:
        message = f"{len(tracking)} batch-norm layer(s) are in train mode in validation, and collect its statistics."
        advice = "Do not call train() in validation hooks; Lightning switches modes by itself."
        yield Finding("bn_stats", "error", tracking[0], evidence.step, message, advice)
        return
    apart = {name: far for name, far in evidence.norm_passes.items() if far > APART and evidence.collecting_norms.get(name)}
    if apart:
        name, far = next(iter(apart.items()))
        message = (
            f"Several kinds of data go through it, pass by pass: its running statistics are {far:.2g} std off for one of them."
        )
        advice = "Join them in one batch, torch.cat([a, b]), or give each kind batch norms of its own."
        yield Finding("bn_stats", "error", name, evidence.step, message, advice, {"apart": far})
        return
    fast = [name for name, momentum in evidence.collecting_norms.items() if momentum >= FAST]
    read = sorted(_values_per_channel(evidence.graph))
    values = read[0][0] if read else NOISY
    few = [where for count, where in read if count < TOO_FEW]
    if few and len(few) >= LEFT * len(read):
        message = (
            f"{len(few)} batch norm(s) take their statistics from {values} values a channel: little but their order passes."
        )
        yield Finding("bn_stats", "error", few[0], evidence.step, message, "Use larger batches, or GroupNorm or LayerNorm.")
        return
    if fast and values < NOISY:
        momentum = evidence.collecting_norms[fast[0]]
        message = f"With momentum {momentum:g} the running statistics are those of the last batch, {values} values a channel."
        yield Finding("bn_stats", "warning", fast[0], evidence.step, message, "momentum=0.1; torch's is the part that is new.")
        return
    updates = evidence.plan.updates or 0
    left = {name: (1 - momentum) ** updates for name, momentum in evidence.collecting_norms.items()}
    slow = [name for name, part in left.items() if part > LEFT]
    if slow and updates >= LONG_RUN:
        momentum = evidence.collecting_norms[slow[0]]
        kept = f"{left[slow[0]]:.0%} of the start is left in the running statistics ({len(slow)} layer(s)), not 0"
        message = f"After {updates} updates with momentum {momentum:g}, {kept}."
        yield Finding("bn_stats", "error", slow[0], evidence.step, message, "momentum=0.1.", {"left": left[slow[0]]})
        return
    shifts = {name: left[name] * off for name, off in evidence.norm_means.items() if name in left}
    shifted = [name for name, shift in shifts.items() if shift > SHIFTED]
    if updates >= SHORT_RUN and shifted and len(shifted) >= LEFT * len(left):
        name = shifted[0]
        message = (
            f"Its channels are {evidence.norm_means[name]:.2g} std from zero, where the running mean starts; after {updates}"
            f" updates with momentum {evidence.collecting_norms[name]:g} it is still {shifts[name]:.2g} std off."
        )
        advice = "momentum=0.1, and bias=False in front of batch norm."
        yield Finding("bn_stats", "error", name, evidence.step, message, advice, {"shift": shifts[name]})


@rule()
def bias_before_bn(evidence: Evidence) -> Iterator[Finding]:
    """A layer has a bias, and batch norm subtracts it again: a note.

    What it means: the mean over the batch contains the bias, so it cancels; batch norm has a shift of its own (Ioffe and
    Szegedy 2015, section 3.2). The bias costs memory, gets only rounding noise as gradient, and does nothing.

    How it is measured: on the traced operations: batch or instance norm reads a layer's output directly, and the layer adds a
    parameter of one value per channel.

    Threshold: none; it is a note, since nothing is learnt worse.

    Not noted: layer and group norm, whose mean is over several channels; batch norm behind the activation, which the bias
    shifts; batch norm in eval mode.

    What to do: `bias=False` in that layer.
    """
    graph = evidence.graph
    wasted = [layer for layer in evidence.layers if layer.node is not None and _cancelled(graph, graph.nodes[layer.node])]
    if wasted:
        message = f"{len(wasted)} layer(s), {wasted[0].name} first, have a bias that the batch norm behind them subtracts."
        yield Finding("bias_before_bn", "note", wasted[0].name, evidence.step, message, "Use bias=False there.")


@rule()
def small_batch_norm(evidence: Evidence) -> Iterator[Finding]:
    """Batch norm takes its statistics from less than 16 values per channel: a note.

    What it means: the mean of n values is off by 1/sqrt(n) standard deviations, a quarter at 16, and the running statistics
    average this noise; results get worse below about 16 samples (Wu and He, "Group Normalization", ECCV 2018, figure 1).

    How it is measured: elements per channel that a batch norm in training mode reads in the first step.

    Threshold: 16.

    Not noted: synchronised batch norm, whose statistics are joint; small batches of large pictures.

    What to do: larger batches, accumulation does not help; `GroupNorm`, or `SyncBatchNorm` over several processes.
    """
    small = list(_values_per_channel(evidence.graph))
    if small and min(small)[0] < FEW:
        count, where = min(small)
        message = f"Batch norm takes its mean and variance from {count} value(s) per channel."
        yield Finding("small_batch_norm", "note", where, evidence.step, message, "Use larger batches, or GroupNorm.")


def _values_per_channel(graph: Graph) -> Iterator[tuple[int, str]]:
    """Yield of each batch norm that takes its statistics from the batch how many values a channel has, and its name."""
    for node in graph.nodes:
        if node.op in BATCH_NORMS and node.grad_mode and node.parents:
            shape = graph.nodes[node.parents[0]].shape
            if len(shape) > 1 and node.shape == shape and takes_statistics(node):
                yield math.prod((shape[0], *shape[2:])), node.scope


def _cancelled(graph: Graph, layer: Node) -> bool:
    if layer.op == "addmm":
        biased = graph.nodes[layer.parents[0]].origin == "parameter"
    else:
        biased = "convolution" in layer.op and sum(graph.nodes[p].origin == "parameter" for p in layer.parents) > 1
    readers = [node for node in graph.nodes if layer.index in node.parents]
    return biased and bool(readers) and all(node.op in BATCH_NORMS and takes_statistics(node) for node in readers)
