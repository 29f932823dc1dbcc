"""Standardised inputs: mean 0 and std 1 for each channel or feature, fitted in one pass and kept with the weights."""

import copy
import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, Subset

from lit_training.moments import Moments, all_reduce, merge, moments

__all__ = ["Standardize", "first_tensor", "rebuilt"]

_CONSTANT = 1e-8  # of the mean: rounding leaves constant float32 values with less


class Standardize(nn.Module):
    r"""Shift and scale inputs to mean 0 and standard deviation 1 for each channel or feature: $(x - \mu_c) / \sigma_c$.

    Mean and std are buffers: they move and are saved with the network that contains this module, and training, evaluation,
    prediction and export see the same inputs. A constant channel becomes 0, not infinite. The arithmetic is float32 whatever the
    network's precision, and the mean is kept in two float32 parts, so that channels far from 0 lose nothing. Before it is fitted
    it passes inputs on unchanged, and warns once. LeCun et al., "Efficient BackProp", 1998, section 4.3.

    Args:
        mean: `[C]` in the inputs' units; `None` until fitted.
        std: `[C]`, positive; 0 marks a constant channel.
        dim: the channel dimension: 1 for `[N, C, ...]` and `[N, features]`, -1 for `[N, length, features]`.

    Raises:
        ValueError: if one of mean and std is missing, their shapes differ, or a std is negative or not finite; in `forward`, for
            inputs with another number of channels.

    Example:
        >>> standardize = Standardize.fit(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> standardize(torch.tensor([[3.0, 5.0]]))
        tensor([[1., 0.]])
    """

    mean: Tensor
    mean_rest: Tensor
    std: Tensor

    def __init__(self, mean: Any = None, std: Any = None, *, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        for name in ("mean", "mean_rest", "std"):
            self.register_buffer(name, torch.empty(0))
        self._warned = False
        if (mean is None) != (std is None):
            raise ValueError("Standardize needs both mean and std, or neither (and `fit`)")
        if mean is not None:
            self._set(*(torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (mean, std)))

    @classmethod
    def fit(cls, data: Tensor | Any, *, dim: int = 1, inputs: Callable[[Any], Tensor] | None = None) -> "Standardize":
        """Return a module fitted to all of `data`; see `fit_`."""
        return cls(dim=dim).fit_(data, inputs=inputs)

    @torch.no_grad()
    def fit_(self, data: Any, *, inputs: Callable[[Any], Tensor] | None = None) -> "Standardize":
        """Fit in one numerically stable pass, in place; with several processes, over the data of all.

        A `DataLoader` is not iterated itself: a new one goes through its dataset once, in order, without workers (each process
        through its share), so that neither its generator nor its workers nor the global generators notice. An iterable dataset
        is copied for that.

        Args:
            data: a tensor or array `[N, C, ...]`, a `DataLoader`, or any iterable of batches.
            inputs: takes the input tensor from a batch; by default the batch's first floating-point or image (uint8) tensor.

        Raises:
            ValueError: for data without a sample, or with values that are not finite.
        """
        if not isinstance(data, Iterable) or hasattr(data, "__array__") or isinstance(data, Tensor):
            batches: Iterable[Any] = [torch.as_tensor(data)]
        else:
            batches = rebuilt(data) if isinstance(data, DataLoader) else data
        take = inputs or first_tensor
        with _generators_kept():
            parts = [self._moments(take(batch)) for batch in batches]
        if not parts:
            raise ValueError("Standardize cannot be fitted: the data has no batch")
        (total,) = all_reduce([reduce(merge, parts)])
        if not bool(torch.isfinite(total.mean).all() and torch.isfinite(total.deviations).all()):
            channels = (~torch.isfinite(total.mean + total.deviations)).nonzero().flatten().tolist()
            raise ValueError(f"Standardize cannot be fitted: channels {channels[:10]} have values that are not finite")
        self._set(total.mean, total.std)
        return self

    @property
    def fitted(self) -> bool:
        """Whether mean and std are known."""
        return self.mean.numel() > 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardise `[N, C, ...]`; integer inputs become float32, others keep their precision."""
        if not self.fitted:
            if not self._warned:
                warnings.warn(
                    "Standardize was never fitted and changes nothing: call Standardize.fit(train_loader), load a checkpoint "
                    "with its statistics, or pass LitModule(normalize='fit')",
                    stacklevel=2,
                )
                self._warned = True
            return inputs
        if inputs.ndim <= self.dim or inputs.shape[self.dim] != self.mean.numel():
            raise ValueError(
                f"Standardize was fitted to {self.mean.numel()} channels in dimension {self.dim}, got inputs of shape "
                f"{tuple(inputs.shape)}"
            )
        shape = [1] * inputs.ndim
        shape[self.dim] = -1
        x = inputs if inputs.dtype == torch.float64 else inputs.float()
        centred = x - self.mean.view(shape) - self.mean_rest.view(shape)
        result = centred / self.std.where(self.std > 0, 1.0).view(shape) * (self.std > 0).view(shape)
        return result.to(inputs.dtype) if inputs.is_floating_point() else result

    def extra_repr(self) -> str:
        """Tell what it was fitted to."""
        return f"channels={self.mean.numel()}, dim={self.dim}" if self.fitted else f"not fitted, dim={self.dim}"

    def _moments(self, x: Tensor) -> Moments:
        if not -x.ndim <= self.dim < x.ndim:
            raise ValueError(f"Standardize has dim={self.dim}, got inputs of shape {tuple(x.shape)}")
        return moments(x, dim=[d for d in range(x.ndim) if d != self.dim % x.ndim])

    def _set(self, mean: Tensor, std: Tensor) -> None:
        if mean.shape != std.shape:
            raise ValueError(f"mean and std must have one shape, got {tuple(mean.shape)} and {tuple(std.shape)}")
        if not bool((std >= 0).all() and torch.isfinite(std).all() and torch.isfinite(mean).all()):
            raise ValueError(f"mean must be finite and std finite and not negative, got {mean.tolist()} and {std.tolist()}")
        device = self.mean.device
        self.mean = mean.float().to(device)
        self.mean_rest = (mean - mean.float().double()).float().to(device)
        self.std = std.where(std > _CONSTANT * mean.abs(), 0.0).float().to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Standardize":
        """Move the buffers, but keep them float32."""
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take the shape of what is loaded."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def first_tensor(batch: Any) -> Tensor:
    """Return the first floating-point or image (uint8) tensor of a batch.

    Raises:
        TypeError: if there is none.

    >>> first_tensor({"index": torch.tensor([1]), "x": torch.tensor([0.5])})
    tensor([0.5000])
    """
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.dtype == torch.uint8):
            return leaf
    raise TypeError(f"no floating-point tensor to standardise in a batch of type {type(batch).__name__}; pass inputs=")


def rebuilt(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a new loader over the same samples, in order and without workers; under several processes, over this one's share."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset):
        try:
            dataset = copy.deepcopy(dataset)
        except Exception as error:
            raise ValueError(
                f"{type(dataset).__name__} cannot be copied ({error}), and going through it would change the training data; fit on "
                "a second instance: Standardize.fit(DataLoader(another_instance))"
            ) from error
    elif dist.is_available() and dist.is_initialized():
        rows = range(dist.get_rank(), len(cast("Any", dataset)), dist.get_world_size())
        dataset = Subset(dataset, rows)
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if size is None and loader.batch_sampler is not None:
        size = 64
    return DataLoader(dataset, batch_size=size, collate_fn=loader.collate_fn)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
