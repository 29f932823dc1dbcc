"""How modules are set that the rules have to know: batch norm's statistics, LSTM gates, dropout, flags without effect."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["collecting_norms", "dropouts", "flags", "forget_gates", "idle_norms", "in_train_mode", "left_out_norms", "tracked"]

Named = Sequence[tuple[str, nn.Module]]
"""The parts of a network as `selection.clean_names` returns them."""

FEW = 100  # forwards, so that accumulation or several calls in the first step do not count


def collecting_norms(parts: Named) -> dict[str, float]:
    """Return the momentum of batch-norm layers in train mode whose running statistics are as they were born."""
    return {
        name: float(part.momentum)
        for name, part in parts
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and part.training
        and part.momentum is not None
        and part.num_batches_tracked is not None
        and int(part.num_batches_tracked) < FEW
    }


def tracked(parts: Named) -> dict[str, int]:
    """Return how many batches each batch-norm layer with running statistics has taken in.

    >>> norm = nn.BatchNorm1d(2)
    >>> _ = norm(torch.randn(4, 2))
    >>> tracked(list(nn.Sequential(norm, nn.BatchNorm1d(2, track_running_stats=False)).named_modules()))
    {'0': 1}
    """
    counts = {
        name: part.num_batches_tracked
        for name, part in parts
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.num_batches_tracked is not None
    }
    if not counts:
        return {}
    device = next(iter(counts.values())).device
    return dict(zip(counts, torch.stack([count.to(device) for count in counts.values()]).tolist(), strict=True))


def idle_norms(parts: Named) -> tuple[str, ...]:
    """Return batch-norm layers in eval mode whose running statistics are still those they were born with."""
    return tuple(
        name
        for name, part in parts
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and not part.training
        and part.num_batches_tracked is not None
        and int(part.num_batches_tracked) == 0
        and part.running_mean is not None
        and not part.running_mean.any()
    )


def left_out_norms(parts: Named) -> tuple[str, ...]:
    """Return frozen batch-norm layers whose gains and biases were moved by hand, and whose running statistics were not.

    Those of torch's own averages are left out, whose statistics `update_bn` computes in the end.

    >>> norm = nn.BatchNorm1d(2).requires_grad_(False)
    >>> _ = norm.weight.mul_(torch.tensor([0.9, 1.1])), norm.bias.add_(0.1)
    >>> left_out_norms([("teacher", norm)])
    ('teacher',)
    """
    averages = tuple(f"{name}." if name else "" for name, part in parts if isinstance(part, AveragedModel))
    return tuple(
        name
        for name, part in parts
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
        and not name.startswith(averages)
        and part.affine
        and not part.weight.requires_grad
        and part.num_batches_tracked is not None
        and int(part.num_batches_tracked) == 0
        and part.running_mean is not None
        and not part.running_mean.any()
        and len(part.weight.unique()) > 1
        and bool(part.bias.any())
    )


@torch.no_grad()
def forget_gates(parts: Named) -> dict[str, float]:
    """Return the mean bias of the gates that keep the memory of each LSTM (forget) and GRU (update), the lowest of its layers."""
    gates = {}
    for name, part in parts:
        if isinstance(part, (nn.LSTM, nn.GRU)) and part.bias:
            size = part.hidden_size
            biases = dict(part.named_parameters(recurse=False))
            pairs = [(b, biases.get(leaf.replace("bias_ih", "bias_hh"))) for leaf, b in biases.items() if "bias_ih" in leaf]
            means = [float((b + other)[size : 2 * size].mean()) for b, other in pairs if other is not None]
            gates[name] = min(means, default=0.0)
    return gates


def dropouts(parts: Named) -> dict[str, float]:
    """Return the probability to drop of each dropout layer in train mode, and of those inside attention and recurrent layers.

    >>> net = nn.Sequential(nn.Dropout(0.5), nn.MultiheadAttention(4, 1, dropout=0.1), nn.GRU(4, 4, dropout=0.3, num_layers=2))
    >>> dropouts(list(net.named_modules()))
    {'0': 0.5, '1': 0.1, '2': 0.3}
    """
    return {name: p for name, part in parts if part.training and (p := _dropped(part)) is not None}


def _dropped(part: nn.Module) -> float | None:
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return float(part.p)
    inside = isinstance(part, nn.MultiheadAttention) or (isinstance(part, nn.RNNBase) and part.num_layers > 1)
    return float(part.dropout) if inside and part.dropout else None  # type: ignore[arg-type]


def in_train_mode(parts: Named, *, dropout: bool = True) -> tuple[str, ...]:
    """Return the layers in train mode that behave otherwise in eval mode: dropout that drops, batch norm that keeps statistics.

    Dropout is left out if it is to: several passes may average over its masks.

    >>> in_train_mode(list(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Dropout(0.0)).named_modules()))
    ('1',)
    """
    norms, drops = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
    return tuple(
        name
        for name, part in parts
        if part.training
        and (
            (dropout and isinstance(part, drops) and part.p > 0) or (isinstance(part, norms) and part.running_mean is not None)
        )
    )


def flags(parts: Named) -> dict[str, bool]:
    """Return the modules on which somebody has set `requires_grad`, which only parameters have, and what it says.

    A class whose own code has a word with that name keeps it for itself.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    >>> net[1].requires_grad = True
    >>> flags(list(net.named_modules())), net[1].weight.requires_grad
    ({'1': True}, False)
    """
    return {
        name: bool(vars(part)["requires_grad"])
        for name, part in parts
        if "requires_grad" in vars(part) and not _speaks_of_it(type(part))
    }


def _speaks_of_it(kind: type) -> bool:
    own = (value for cls in kind.__mro__ if not cls.__module__.startswith("torch.") for value in vars(cls).values())
    return any("requires_grad" in getattr(getattr(value, "__code__", None), "co_names", ()) for value in own)
