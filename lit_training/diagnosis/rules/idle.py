"""What the end of a run tells of optimisers that never stepped."""

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from lit_training.diagnosis.finding import Finding

__all__ = ["never_stepped"]

ENOUGH = 20


def never_stepped(
    optimizers: Sequence[Optimizer], moved: Mapping[nn.Parameter, bool], names: Mapping[nn.Parameter, str], updates: int
) -> list[Finding]:
    """Say so if a loop steps one of its optimisers and forgets another: `no_update`.

    Threshold: none; weights that are to the bit what they were, although their rate is not zero and gradients arrive, while those
    of another optimiser moved, after 20 updates or more.

    Args:
        optimizers: of the run.
        moved: of each weight that was followed, whether it is another one than at the start.
        names: of parameters.
        updates: how many there were, of all optimisers together.
    """
    followed = [
        [w for group in each.param_groups if group["lr"] != 0 for w in group["params"] if w in moved] for each in optimizers
    ]
    if updates < ENOUGH or not any(moved[w] for weights in followed for w in weights):
        return []
    for place, (optimizer, weights) in enumerate(zip(optimizers, followed, strict=True)):
        learning = [w for w in weights if w.requires_grad and w.grad is not None and bool(w.grad.any())]
        if learning and len(learning) == len(weights) and not any(moved[w] for w in weights):
            what = f"optimizers()[{place}] ({type(optimizer).__name__})"
            message = f"{what} never stepped: its {len(weights)} weights are what they were, though gradients arrive."
            advice = f"Call self.optimizers()[{place}].step() after manual_backward."
            return [
                Finding("no_update", "error", names.get(weights[0], ""), updates, message, advice, {"weights": len(weights)})
            ]
    return []
