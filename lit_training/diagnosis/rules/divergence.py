"""The rule about processes that no longer train the same model."""

import math
from collections.abc import Mapping

from lit_training.diagnosis.finding import Finding

__all__ = ["ranks_diverged"]


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
