"""Rules about what a network does in eval mode: each sample for itself, and nothing by chance."""

import math
from collections.abc import Iterator

from lit_training.diagnosis.evidence import Evidence
from lit_training.diagnosis.finding import Finding
from lit_training.diagnosis.rule import rule
from lit_training.tracing.dropping import dropped_shares, noisiest_way

__all__ = ["batch_mixing", "dropout_active_in_eval", "dropout_too_high"]

MIXED = 1e-3

MOST_DROPPED = 0.8
MUCH_DROPPED = 0.7
MANY = 3
NOISY = 0.35


@rule(
    explains=[
        "overfit_no_regularisation",
        "slow_convergence",
        "lr_too_low",
        "constant_output",
        "train_val_gap",
        "bad_initial_loss",
        "init_vanishing",
        "vanishing_gradient",
    ]
)
def batch_mixing(evidence: Evidence) -> Iterator[Finding]:
    """The output for one sample depends on the other samples of its batch.

    What it means: the network reads along the wrong dimension (an LSTM or attention without `batch_first=True`, `view` where
    `transpose` was meant, a softmax over dimension 0). It can still lower the training loss, and its predictions change
    with whatever else is in the batch.

    How it is measured: a copy of each network that the training step calls runs on a few of the real inputs in eval mode,
    twice; the second time the first and the last sample are replaced by others. The figure is the largest change in any other
    sample's output, relative to the spread of the outputs. Besides, in that run: an `nn.MultiheadAttention` without
    `batch_first` gets the samples along its first dimension, and its second cannot hold them (its size is no multiple of their
    number). If only a class token is read, which is the same for all, nothing else shows it: no sample gets through.

    Threshold: 1e-3. Rounding is 1e-6, and a sample's own change is of order 1.

    Not an alarm: batch norm in training mode, batch norm built without running statistics, losses that compare samples
    (contrastive, mixup), networks that take means, deviations or extremes over the whole batch (a discriminator's minibatch
    standard deviation, ranges for quantisation), calls with another number of rows than the loader gives samples (a sentence,
    the nodes of several graphs), outputs `[N, N]`, graphs (an input without the batch dimension, or an adjacency `[N, N]` or edges
    that the network keeps), `[time, batch]` layouts whose samples lie along the second dimension, samples drawn at random by
    design, attention that is openly given the samples as one sequence (`[1, N, features]` with `batch_first`: SAINT), recurrent
    layers that read an unbatched sequence `[N, features]` where the loader does not shuffle, so that a batch is a stretch of it.

    What to do: find the layer that reads along dimension 0; most often `batch_first=True` is missing.
    """
    for result in evidence.in_eval:
        if result.mixed is not None and result.mixed > MIXED:
            message = (
                f"Replacing one sample changes the outputs for the others by {result.mixed:.0%} of their spread in eval mode; "
                "0 % is expected."
            )
            advice = "Look for a layer that reads along the batch: batch_first=True in LSTM and attention, transpose, not view."
            yield Finding("batch_mixing", "error", result.name, evidence.step, message, advice)
            return
        if result.attending:
            name = f"{result.name}.{result.attending}".strip(".")
            message = f"{name} takes the samples, which lie along dimension 0, for positions: each attends to the others."
            advice = "Write batch_first=True, or hand it [position, sample, feature]."
            yield Finding("batch_mixing", "error", name, evidence.step, message, advice)
            return


@rule(explains=["train_val_mismatch", "overfit_no_regularisation", "train_val_gap"])
def dropout_active_in_eval(evidence: Evidence) -> Iterator[Finding]:
    """Dropout drops in eval mode too.

    What it means: validation and predictions are noisy, and worse than the network can do. Typical causes:
    `F.dropout(x, p)` without `training=self.training` (it is on by default), a dropout module made inside `forward`, a
    `train()` that ignores its argument.

    How it is measured: a copy of each network that the training step calls runs twice in eval mode on the same inputs; the
    outputs differ, and a random mask was drawn: coins, or uniform numbers that were compared with a rate. Besides, the mode of
    dropout layers after the first batch of the sanity check.

    Threshold: none; equal inputs give equal outputs to the bit.

    Not an alarm: variational networks that draw normal noise by design; Monte-Carlo dropout that averages several passes in
    eval mode, and so draws three times as many masks as in training or more, or calls the network so often for one validation
    batch; uniform noise that is added or put in order (dequantisation, masked autoencoders); masks that put something in place
    of what they hide (masked modelling with a learnt token); coins whose probabilities differ (samples of a binary code). If it
    takes one pass on purpose, as Tacotron's prenet does: ignore this rule.

    What to do: `F.dropout(x, p, training=self.training)`, or `nn.Dropout(p)` made in `__init__`.
    """
    for result in evidence.in_eval:
        if result.dropped:
            message = "Two passes over the same batch differ in eval mode, because units are dropped at random."
            advice = "Write F.dropout(x, p, training=self.training), or make an nn.Dropout in __init__."
            yield Finding("dropout_active_in_eval", "warning", result.name, evidence.step, message, advice)
            return
    active = [name for name in evidence.samples.val_modes if name in evidence.dropouts]
    if active:
        message = f"{len(active)} dropout layer(s) are in train mode after the first validation batch."
        advice = "Do not call train() in validation hooks; Lightning switches modes by itself."
        yield Finding("dropout_active_in_eval", "warning", active[0], evidence.step, message, advice)


@rule(explains=["slow_convergence", "lr_too_low"])
def dropout_too_high(evidence: Evidence) -> Iterator[Finding]:
    """A dropout layer drops more than four fifths of its units, or several leave two or three of few.

    What it means: hardly any signal passes, and the noise of what is left drowns the gradient. Typical cause: the
    probability to keep, as the paper and TensorFlow 1 have it, given where torch wants the probability to drop.

    How it is measured: `p` of the dropout layers that are in train mode, of those inside `nn.MultiheadAttention` and stacked
    recurrent layers, and of functional dropout on the traced step. There, too, of n units or channels that a sample has,
    dropping p of them leaves a sum with p / ((1 - p) n) of its squared mean as noise, added up over the layers in a row that
    drop half or more.

    At the end of a run (`LossMonitor`): training, with dropout, ends above validation, without, and both are near a guess.

    Threshold: above .8; Srivastava et al. (2014, section 7.3 and figure 9) find an optimum at .4 to .6 for hidden units and
    .2 for inputs, and a sharp loss above .8. Three layers or more that drop .7 or more leave 3 % together or less. Noise of .35
    over two layers or more (.7 of 8 channels twice makes .58, half of 8 three times .38; half of 64 units .016 a layer).

    Not an alarm: one or two layers of .7 to .8 in a wide head; a single narrow layer; whole branches or steps that are dropped;
    masked pre-training that masks by other means, `DropPath`.

    What to do: `p=1 - keep`, .5 for hidden units, .2 for inputs at most.
    """
    dropouts = dropped_shares(evidence.graph, evidence.batch_size) | dict(evidence.dropouts)
    high = {name: p for name, p in dropouts.items() if p > MOST_DROPPED}
    much = {name: p for name, p in dropouts.items() if p >= MUCH_DROPPED}
    if not high and len(much) >= MANY:
        name = next(iter(much))
        message = f"It drops {much[name]:.0%} of its units, as {len(much)} layers do; .1 to .5 is usual for one of many."
        yield Finding("dropout_too_high", "error", name, evidence.step, message, "nn.Dropout(0.1) in a deep net, 0.5 at most.")
    if high:
        name = max(high, key=lambda key: high[key])
        message = f"It drops {high[name]:.0%} of its units, not .2 to .5 of them."
        advice = f"nn.Dropout({1 - high[name]:.2g}) if {high[name]:.2g} was meant as the part to keep; .5 at most."
        yield Finding("dropout_too_high", "error", name, evidence.step, message, advice, {"p": high[name]})
    noise = noisiest_way(evidence.graph, evidence.batch_size) if not high and len(much) < MANY else None
    if noise is not None and noise.layers > 1 and noise.variance > NOISY:
        message = (
            f"It leaves {noise.kept:.2g} units or channels of a sample, {noise.layers} layers in a row do so: the noise is"
            f" {math.sqrt(noise.variance):.0%} of what passes."
        )
        advice = "Drop .1 or so where there are few units, or widen the layers."
        yield Finding("dropout_too_high", "error", noise.where, evidence.step, message, advice, {"noise": noise.variance})
