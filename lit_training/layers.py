"""The weights of a model's layers, read and written whole: through parametrisations, shards and ties alike."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from lit_training.fans import weight_names
from lit_training.selection import clean_names

__all__ = ["Layer", "Weight", "find_layers", "looks_fresh", "read", "write_"]


@dataclass(eq=False)
class Weight:
    """One weight of a layer: where it is, and the parameters that hold it (several under a parametrisation)."""

    name: str
    module: nn.Module
    leaf: str
    parameters: dict[str, nn.Parameter]
    tied: list[str] = field(default_factory=list)

    def read(self) -> Tensor:
        """Return a detached copy of the whole weight, in float32 or wider."""
        if not parametrize.is_parametrized(self.module, self.leaf) and len(self.parameters) == 2:
            magnitude, direction = (read(parameter) for parameter in self.parameters.values())
            return direction * (magnitude / self._norm(direction))
        return read(getattr(self.module, self.leaf))

    @torch.no_grad()
    def write_(self, value: Tensor) -> None:
        """Set the weight, in place, from a whole tensor."""
        if parametrize.is_parametrized(self.module, self.leaf):
            setattr(self.module, self.leaf, value.to(next(iter(self.parameters.values()))))
        elif len(self.parameters) == 2:  # torch.nn.utils.weight_norm: magnitude g, direction v
            magnitude, direction = self.parameters.values()
            write_(magnitude, self._norm(value))
            write_(direction, value)
        else:
            write_(next(iter(self.parameters.values())), value)

    def _norm(self, value: Tensor) -> Tensor:
        """Return the norms that `torch.nn.utils.weight_norm` keeps in its magnitude `g`."""
        magnitude = next(iter(self.parameters.values()))
        kept = None if magnitude.ndim == 0 else [dim for dim, size in enumerate(magnitude.shape) if size == 1]
        norm: Tensor = torch.linalg.vector_norm(value, dim=kept, keepdim=magnitude.ndim > 0)
        return norm


@dataclass(eq=False)
class Layer:
    """A layer: its qualified name, the module, its weights, and its biases by qualified name."""

    name: str
    module: nn.Module
    weights: list[Weight]
    biases: dict[str, nn.Parameter]


def find_layers(model: nn.Module) -> list[Layer]:
    """Return the layers of a model in the order of `named_modules`, each tied weight at one of them only.

    A weight that an embedding shares with another layer belongs to that layer, which sets its scale.

    Raises:
        ValueError: if a lazy layer has no weights yet.

    >>> [(layer.name, [weight.name for weight in layer.weights]) for layer in find_layers(nn.Sequential(nn.Linear(2, 3)))]
    [('0', ['0.weight'])]
    """
    layers = [_layer(name, module) for name, module in clean_names(model) if weight_names(module)]
    owners: dict[nn.Parameter, Weight] = {}
    for layer in sorted(layers, key=lambda layer: isinstance(layer.module, (nn.Embedding, nn.EmbeddingBag))):
        for weight in list(layer.weights):
            key = next(iter(weight.parameters.values()))
            if key in owners:
                owners[key].tied.append(weight.name)
                layer.weights.remove(weight)
            else:
                owners[key] = weight
    return [layer for layer in layers if layer.weights]


def read(parameter: Tensor) -> Tensor:
    """Return a detached copy of a whole parameter, in float32 or wider, gathered if it is sharded.

    >>> read(nn.Parameter(torch.ones(2, dtype=torch.bfloat16)))
    tensor([1., 1.])
    """
    value = parameter.detach()
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.to(torch.promote_types(whole.dtype, torch.float32), copy=True)


@torch.no_grad()
def write_(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, sharding it as the parameter is.

    >>> parameter = nn.Parameter(torch.zeros(2))
    >>> write_(parameter, torch.ones(2))
    >>> parameter.tolist()
    [1.0, 1.0]
    """
    value = value.to(device=parameter.device, dtype=parameter.dtype)
    if isinstance(parameter, DTensor):
        parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None))
    else:
        parameter.copy_(value)


def looks_fresh(weight: Weight) -> bool:
    """Tell whether a weight could be what torch's own constructor drew: its distribution's bound, mean and spread.

    >>> layer = find_layers(nn.Linear(50, 50))[0]
    >>> looks_fresh(layer.weights[0])
    True
    >>> nn.init.normal_(layer.module.weight, std=0.02) is None, looks_fresh(layer.weights[0])
    (False, False)
    """
    value = weight.read().flatten()
    if isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag)):
        rows = weight.read()
        padding = weight.module.padding_idx
        value = (rows if padding is None else torch.cat([rows[:padding], rows[padding + 1 :]])).flatten()
        std, kurtosis, bound = 1.0, 3.0, math.inf
    else:
        bound = _torch_bound(weight)
        std, kurtosis = bound / math.sqrt(3), 1.8
    if value.numel() == 0:
        return True
    n = value.numel()
    off_mean = abs(float(value.mean())) / (std / math.sqrt(n))
    off_square = abs(float(value.square().mean()) / std**2 - 1) / math.sqrt((kurtosis - 1) / n)
    rounding = 1 + 2 * torch.finfo(next(iter(weight.parameters.values())).dtype).eps
    return off_mean < 6 and off_square < 6 and float(value.abs().max()) <= bound * rounding


def _torch_bound(weight: Weight) -> float:
    """Return the bound of the uniform distribution that torch's constructor draws from."""
    shape = getattr(weight.module, weight.leaf).shape
    if isinstance(weight.module, nn.MultiheadAttention):
        return math.sqrt(6 / (shape[0] + shape[1]))
    if isinstance(weight.module, (nn.RNNBase, nn.RNNCellBase)):
        return 1 / math.sqrt(weight.module.hidden_size)
    if isinstance(weight.module, nn.Bilinear):
        return 1 / math.sqrt(shape[1])
    return 1 / math.sqrt(math.prod(shape[1:]))


def _layer(name: str, module: nn.Module) -> Layer:
    prefix = f"{name}." if name else ""
    held = {leaf: _holders(prefix, module, leaf) for leaf in weight_names(module)}
    weights = [Weight(prefix + leaf, module, leaf, parameters) for leaf, parameters in held.items() if parameters]
    leaves = ("bias", "in_proj_bias")
    biases = {
        prefix + leaf: parameter
        for leaf, parameter in module.named_parameters(recurse=False)
        if leaf in leaves or (leaf.startswith("bias_") and isinstance(module, (nn.RNNBase, nn.RNNCellBase)))
    }
    for weight in weights:
        _check_lazy(weight)
    return Layer(name, module, weights, biases)


def _holders(prefix: str, module: nn.Module, leaf: str) -> dict[str, nn.Parameter]:
    if parametrize.is_parametrized(module, leaf):
        inner = module.get_submodule(f"parametrizations.{leaf}")
        return {f"{prefix}parametrizations.{leaf}.{name}": p for name, p in inner.named_parameters(recurse=False)}
    own = dict(module.named_parameters(recurse=False))
    # as it is, under weight_norm, under spectral_norm or pruning
    kept: list[tuple[str, ...]] = [
        (leaf,),
        (f"{leaf}_g", f"{leaf}_v"),
        (f"{leaf}_orig",),
    ]
    names = next((names for names in kept if all(name in own for name in names)), ())
    return {prefix + name: own[name] for name in names}


def _check_lazy(weight: Weight) -> None:
    if any(isinstance(parameter, UninitializedParameter) for parameter in weight.parameters.values()):
        raise ValueError(f"{weight.name} of a lazy layer has no shape yet; run one batch through the model first")
