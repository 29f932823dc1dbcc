"""Rules that monitors apply while a run goes on: each gets what its monitor measured, and no evidence of a first step."""

import math
from collections.abc import Mapping

from lit_training.diagnosis.finding import Finding
from lit_training.thawing import Thaw

__all__ = ["became_nan", "died", "pretrained_lr_too_high", "ranks_diverged"]

FAR = 0.3


def ranks_diverged(differences: Mapping[str, float], step: int, processes: int) -> list[Finding]:
    """Processes of data-parallel training hold different weights.

    What it means: gradients are no longer averaged for these tensors, or one process changed them alone. Each process now
    trains a model of its own, the loss that is shown mixes them, and the checkpoint holds rank 0's. Nothing crashes.

    How it is measured: each process takes a 64-bit hash of every parameter and buffer; one all-gather compares them. The
    figure is the largest difference between two processes in any element.

    Threshold: none; data-parallel training keeps replicas equal to the bit (Li et al., "PyTorch Distributed", VLDB 2020,
    section 3.1), so that any difference is a fault.

    Not an alarm: running statistics of batch norm in train mode, which each process takes from its own batches; shards of one
    tensor; parameters that DDP was told to ignore.

    What to do: do not set `requires_grad` after the model is wrapped (DDP never synchronises a parameter that was frozen then;
    use `LayerFreezing`), do not change weights on one rank, and seed random changes of weights alike on all ranks.

    >>> print(ranks_diverged({"body.weight": 0.086}, step=12, processes=2)[0])
    ERROR ranks_diverged at body.weight: 2 processes hold different values of body.weight, up to 0.086 apart. ...
    """
    if not differences:
        return []
    names = list(differences)
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    apart = max((difference for difference in differences.values() if not math.isnan(difference)), default=math.nan)
    return [
        Finding(
            "ranks_diverged",
            "error",
            where=names[0],
            step=step,
            message=f"{processes} processes hold different values of {listed}, up to {apart:.2g} apart.",
            advice="Do not thaw parameters that were frozen when DDP wrapped the model: use LayerFreezing instead of a finetuning "
            "callback that sets requires_grad. Change weights on all ranks alike.",
            evidence={"tensors": float(len(names)), "difference": apart},
        )
    ]


def pretrained_lr_too_high(thaw: Thaw) -> list[Finding]:
    """After a phase change the loss jumps and the thawed weights move far: the rate destroys what was pretrained.

    What it means: fine-tuning changes pretrained weights by a few per cent. A rate made for a fresh head, or for training from
    scratch, throws them away in the first updates; the network then learns anew, from little data (Howard and Ruder, ULMFiT,
    ACL 2018, section 3.2).

    How it is measured: for 20 updates after each phase change of `LayerFreezing`: the mean loss against that of the 20 batches
    before, and the change of each thawed matrix relative to its norm.

    Threshold: the mean loss rises by more than itself (to twice it, where it is positive) and above the worst batch before; and
    a matrix moves by 30 % or more. On networks pretrained on one half of the digits' classes
    and fine-tuned on the other half, SGD and Adam, with and without batch norm, all rates that did no harm moved the weights by
    less than 17 % and lowered the loss.

    Not an alarm: a loss that rises while the weights stay near (a new regulariser, another mix of data); weights that move far
    while the loss falls.

    What to do: lower rates in lower layers (`parameter_groups(self, lr=..., layer_decay=.75)`), a smaller `lr`, or a warm-up.

    >>> moved = {"body.weight": 1.4}
    >>> print(pretrained_lr_too_high(Thaw(40, 20, before=0.04, highest_before=0.07, after=1.79, moved=moved))[0])
    WARNING pretrained_lr_too_high at body.weight: After it was thawed at step 40 the loss rose from 0.04 to 1.79, ...
    """
    place = max(thaw.moved, key=lambda name: _or_infinite(thaw.moved[name]), default=None)
    if place is None or not thaw.jumped or thaw.moved[place] < FAR:
        return []
    return [
        Finding(
            "pretrained_lr_too_high",
            "warning",
            where=place,
            step=thaw.step + thaw.updates,
            message=f"After it was thawed at step {thaw.step} the loss rose from {thaw.before:.3g} to {thaw.after:.3g}, and the "
            f"weight moved by {thaw.moved[place]:.0%} of its norm in {thaw.updates} updates, not by a few per cent.",
            advice="Give pretrained layers a lower rate: parameter_groups(self, lr=..., weight_decay=..., layer_decay=.75), a "
            "smaller lr, or a warm-up.",
            evidence={"loss_before": thaw.before, "loss_after": thaw.after, "moved": thaw.moved[place]},
        )
    ]


def became_nan(place: str, step: int) -> list[Finding]:
    """A layer's output became NaN or infinite while the network trained: `nan_loss`.

    >>> became_nan("head", step=8)[0].rule
    'nan_loss'
    """
    message = "The output is NaN or infinite; the layers before it were finite."
    advice = "Look at what enters this layer: lower the learning rate, clip gradients, or check the data for NaN."
    return [Finding("nan_loss", "error", place, step, message, advice)]


def died(place: str, step: int, before: float) -> list[Finding]:
    """All units of a rectifier that fired at the start are silent now: `lr_too_high`.

    >>> died("body.0", step=16, before=0.1)[0].rule
    'lr_too_high'
    """
    message = f"By step {step} all units behind {place} are silent, at the start {before:.0%} were: steps threw them over."
    advice = "Lower lr by a factor of 3 to 10, warm up, or clip gradients; a leaky ReLU can come back."
    return [Finding("lr_too_high", "error", place, step, message, advice, {"dead_before": before})]


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value
