r"""L2, L1 and elastic net: exact steps on weights, and the penalties as numbers to log.

With $W$ all regularised weights together, the forms and their factors are

- L2: $\frac{\lambda}{2} \lVert W \rVert_2^2$, whose gradient is $\lambda W$;
- L1: $\lambda \lVert W \rVert_1$;
- elastic net: $\lambda_1 \lVert W \rVert_1 + \lambda_2 \lVert W \rVert_2^2$, without the half: its $\lambda_2$ is half a
  `weight_decay`.

A penalty added to the loss costs another pass of autograd over all weights, and L1 in that form never reaches zero. The
functions here change the weights (or gradients) directly instead, in place and without autograd.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

__all__ = ["add_l2_gradient", "decay_", "elastic_net_penalty", "l1_penalty", "l2_penalty", "soft_threshold_", "sparsity"]


@torch.no_grad()
def l2_penalty(weights: Sequence[Tensor], weight_decay: float) -> Tensor:
    r"""Return $\frac{\lambda}{2} \lVert W \rVert_2^2$ as a number to log, outside of autograd.

    Args:
        weights: tensors of any shape.
        weight_decay: $\lambda$, as in `torch.optim`: the gradient of this penalty is $\lambda W$.

    Returns:
        A scalar, float32 or wider; for DTensors that of the whole tensor (all ranks must call).

    >>> l2_penalty([torch.tensor([3.0, 4.0])], weight_decay=0.1)
    tensor(1.2500)
    """
    return 0.5 * weight_decay * _total([_wide(w).square().sum() for w in weights])


@torch.no_grad()
def l1_penalty(weights: Sequence[Tensor], l1: float) -> Tensor:
    r"""Return $\lambda \lVert W \rVert_1$ as a number to log, outside of autograd.

    Args:
        weights: tensors of any shape.
        l1: $\lambda$.

    Returns:
        A scalar, float32 or wider; for DTensors that of the whole tensor (all ranks must call).

    >>> l1_penalty([torch.tensor([3.0, -4.0])], l1=0.1)
    tensor(0.7000)
    """
    return l1 * _total([_wide(w).abs().sum() for w in weights])


@torch.no_grad()
def elastic_net_penalty(weights: Sequence[Tensor], l1: float, l2: float) -> Tensor:
    r"""Return $\lambda_1 \lVert W \rVert_1 + \lambda_2 \lVert W \rVert_2^2$ (no half) as a number to log.

    Zou and Hastie, "Regularization and variable selection via the elastic net", 2005, equation 3. To train with it, decay with
    `weight_decay = 2 * l2`.

    Args:
        weights: tensors of any shape.
        l1: $\lambda_1$.
        l2: $\lambda_2$.

    Returns:
        A scalar, float32 or wider; for DTensors that of the whole tensor (all ranks must call).

    >>> elastic_net_penalty([torch.tensor([3.0, -4.0])], l1=0.1, l2=0.1)
    tensor(3.2000)
    """
    return l1_penalty(weights, l1) + l2_penalty(weights, 2 * l2)


@torch.no_grad()
def decay_(weights: Sequence[Tensor], amount: float | Tensor) -> None:
    r"""Shrink weights in place, $W \leftarrow (1 - a) W$: decoupled decay with $a$ = learning rate times $\lambda$.

    To be AdamW's step it must come after the backward pass and before the update: Loshchilov and Hutter, "Decoupled Weight
    Decay Regularization", 2019, algorithm 2.

    Args:
        weights: tensors of any shape, changed in place.
        amount: learning rate times weight decay; a 0-d tensor if the optimiser's learning rate is one.

    >>> w = torch.tensor([3.0, 4.0])
    >>> decay_([w], 0.1)
    >>> w
    tensor([2.7000, 3.6000])
    """
    factor = 1 - amount
    if not isinstance(factor, Tensor) and {(w.is_cpu, w.dtype) for w in weights} == {(True, torch.float32)}:
        factor = torch.scalar_tensor(
            factor, dtype=torch.float32
        )  # of a number torch makes one for each weight, which is slower
    if weights:
        torch._foreach_mul_(list(weights), factor)


@torch.no_grad()
def add_l2_gradient(gradients: Sequence[Tensor], weights: Sequence[Tensor], weight_decay: float | Tensor) -> list[Tensor]:
    r"""Return $g + \lambda W$: coupled L2, what `torch.optim.SGD(weight_decay=...)` puts into momentum and update.

    Args:
        gradients: one for each weight; not changed.
        weights: tensors of any shape.
        weight_decay: $\lambda$; a 0-d tensor if gradients still carry a loss scale that is one.

    >>> add_l2_gradient([torch.tensor([1.0])], [torch.tensor([2.0])], 0.5)
    [tensor([2.])]
    """
    if isinstance(weight_decay, Tensor):
        return [g + (weight_decay * w).to(g.dtype) for g, w in zip(gradients, weights, strict=True)]
    return list(torch._foreach_add(list(gradients), list(weights), alpha=weight_decay)) if weights else []


@torch.no_grad()
def soft_threshold_(weights: Sequence[Tensor], threshold: float | Tensor) -> None:
    r"""Move weights towards zero by `threshold` in place, and to exactly zero where it is nearer than that.

    $w \leftarrow \operatorname{sign}(w) \max(|w| - t, 0)$, the proximal step of $t \lVert W \rVert_1$. After a gradient step of
    rate $\eta$ with $t = \eta \lambda$ it is ISTA, whose fixed point minimises loss + $\lambda \lVert W \rVert_1$: Beck and
    Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems", 2009, eq. 1.4. NaN stays NaN.

    Args:
        weights: tensors of any shape, changed in place.
        threshold: in the weights' units, not negative; a 0-d tensor if the optimiser's learning rate is one.

    >>> w = torch.tensor([3.0, -0.5, -2.0])
    >>> soft_threshold_([w], 1.0)
    >>> w
    tensor([ 2.,  0., -1.])
    """
    limit = cast(float, threshold)  # torch types the bounds of `clamp` as both numbers or both tensors
    for w in weights:
        w.sub_(w.clamp(-limit, limit))  # |w| <= t leaves w - w, an exact zero


@torch.no_grad()
def sparsity(weights: Sequence[Tensor]) -> Tensor:
    """Return the fraction of weights that are exactly zero, in [0, 1].

    >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0])])
    tensor(0.7500)
    """
    return _total([(w == 0).sum() for w in weights]) / sum(w.numel() for w in weights)


def _wide(weight: Tensor) -> Tensor:
    """Widen half precision, in which sums overflow or stall."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _total(parts: Sequence[Tensor]) -> Tensor:
    """Add scalars; of DTensors the whole value, since each rank holds only its part."""
    whole = [part.full_tensor() if hasattr(part, "full_tensor") else part for part in parts]
    return torch.stack([part.to(whole[0].device) for part in whole]).sum()
