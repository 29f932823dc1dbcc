"""Initialisations that look at data: LSUV, and Kraehenbuehl's within-layer and between-layer normalisation.

Both take the layers to act on and a function that runs the network; `lit_training.initialize_` supplies them for any model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, pstdev
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from lit_training.forward_pass import Adjustment, Site, adjust
from lit_training.layers import Layer, Weight, read, write_
from lit_training.patches import principal_directions_, spherical_kmeans_

__all__ = ["UnusableBatchError", "equalize_gradient_rates_", "gradient_rates", "lsuv_", "normalize_units_"]

Reduce = Callable[[Tensor], Tensor]
_CENTRED: Mapping[str, float] = {}
_NOT_SCALED = (nn.MultiheadAttention, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase)


class UnusableBatchError(ValueError):
    """A batch that no scale can be found from: a layer's output does not vary, or is not finite."""


def lsuv_(
    layers: Sequence[Layer],
    forward: Callable[[], Any],
    *,
    tolerance: float = 0.1,
    max_iterations: int = 10,
    reduce: Reduce | None = None,
) -> list[Site]:
    r"""Scale each layer so that its output before the nonlinearity has variance 1 over the batch, all in one forward.

    Mishkin and Matas, "All you need is a good init", ICLR 2016, algorithm 1, whose first step, orthonormal weights, is the
    caller's: until $|Var - 1| <$ `tolerance`, at most `max_iterations` times, $W \leftarrow W / \sqrt{Var}$. The published
    loop runs a forward for each division, in time quadratic in depth, and leaves alone what is within the tolerance at once.
    Here each layer is divided at least once, and its output is corrected while the forward goes on: a linear layer without a
    bias is right after one division, and one whose bias is kept is solved without running it again.

    Args:
        layers: of `lit_training.layers.find_layers`; all others are left alone.
        forward: runs the network on the batch.
        tolerance: of the variance, .1 in the paper.
        max_iterations: divisions per layer, 10 in the paper.
        reduce: sums a tensor over processes, to use all ranks' data.

    Returns:
        The sites in forward order with the std reached and the divisions it took; those that never ran last.

    Raises:
        UnusableBatchError: naming the layer whose output is constant or not finite; weights may have changed then.

    >>> from lit_training.layers import find_layers
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 16, bias=False))
    >>> x = torch.randn(64, 8)
    >>> [site.adjustment.divisions for site in lsuv_(find_layers(net), lambda: net(x))]
    [1, 1]
    >>> round(float(net(x).detach().var(correction=0)), 3)
    1.0
    """

    def rule(site: Site, output: Tensor, bias: Tensor | None) -> Adjustment:
        offset = output.new_zeros(()) if bias is None else bias
        mean, variance, covariance, of_bias = _overall_moments(output, offset, reduce)
        _check(site, variance, mean)
        scale, divisions, reached = 1.0, 0, math.inf
        while divisions == 0 or (abs(reached - 1) >= tolerance and divisions < max_iterations):
            scale /= math.sqrt(scale**2 * variance + 2 * scale * covariance + of_bias)
            reached = scale**2 * variance + 2 * scale * covariance + of_bias
            divisions += 1
        note = "" if abs(reached - 1) < tolerance else "the bias alone varies too much; set it to zero"
        return Adjustment(output.new_tensor(scale), std=math.sqrt(reached), divisions=divisions, note=note)

    return adjust(layers, forward, rule)


def normalize_units_(
    layers: Sequence[Layer],
    forward: Callable[[], Any],
    *,
    means: Mapping[str, float] = _CENTRED,
    weights: Literal["random", "pca", "kmeans"] = "random",
    generator: Generator | None = None,
    reduce: Reduce | None = None,
) -> list[Site]:
    r"""Give every unit a mean and variance 1 over the batch before its nonlinearity, all in one forward.

    Kraehenbuehl et al., "Data-dependent initializations of convolutional neural networks", ICLR 2016, section 3.1:
    $w \leftarrow w / \sigma$, $b \leftarrow \beta - \mu / \sigma$ per unit (channel), layer by layer. A layer without a bias is
    only scaled.

    In front of a rectifier $\beta$ decides how deep a network may be. A centred layer passes the variance on, but multiplies
    the squared gradient by $E[f'(z)^2] / Var[f(z)]$ with $z \sim N(\beta, 1)$: for ReLU by 1.47 with $\beta = 0$, 300 times the
    norm in 30 layers (as batch norm does, Yang et al. 2019), by 1.12 with $\beta = 1$, 5 times.

    Args:
        layers: of `lit_training.layers.find_layers`; all others are left alone.
        forward: runs the network on the batch.
        means: $\beta$ by the weight's name; 0 for all others.
        weights: `"random"` keeps the weights' directions; `"pca"` and `"kmeans"` take them from the layer's input (section
        3.3):
            principal directions, or spherical k-means centres of whitened input patches. Where there are more units than these
            give, the rest stays random. Attention's projections and transposed convolutions stay random.
        generator: chooses patches and first centres.
        reduce: sums a tensor over processes, to use all ranks' data; patches are those of rank 0.

    Returns:
        The sites in forward order; those that never ran last. A unit that does not vary keeps its weights, with a note.

    Raises:
        UnusableBatchError: naming the layer none of whose units vary, or one is not finite; weights may have changed then.

    >>> from lit_training.layers import find_layers
    >>> net, x = torch.nn.Linear(3, 4), torch.randn(100, 3)
    >>> _ = normalize_units_(find_layers(net), lambda: net(x))
    >>> net(x).mean(0).abs().max() < 1e-5, net(x).std(0).sub(1).abs().max() < 0.01
    (tensor(True), tensor(True))
    """
    fill_ = {"random": None, "pca": principal_directions_, "kmeans": spherical_kmeans_}[weights]

    def prepare(site: Site, inputs: Tensor) -> Tensor:
        weight = site.weight.read()
        assert fill_ is not None  # else this is not called
        fill_(site.layer.module, weight, inputs, generator)
        return weight if reduce is None else reduce(weight * (dist.get_rank() == 0))

    def rule(site: Site, output: Tensor, _: Tensor | None) -> Adjustment:
        mean, variance = _unit_moments(output, reduce)
        largest = variance.argmax()
        _check(site, float(variance[largest]), float(mean[largest]))
        varies = variance > 1e-12 * (variance[largest] + mean.square())
        scale = torch.where(varies, variance, 1).rsqrt()
        bias = means.get(site.weight.name, 0.0) - mean * scale if site.may_shift else None
        still = int((~varies).sum())
        note = f"{still} of {len(varies)} units do not vary over the batch" if still else ""
        return Adjustment(scale, bias, std=1.0, divisions=1, note=note)

    return adjust(layers, forward, rule, prepare=prepare if fill_ else None)


def equalize_gradient_rates_(
    layers: Sequence[Layer],
    forward: Callable[[], Any],
    objective: Callable[[], Tensor],
    *,
    means: Mapping[str, float] = _CENTRED,
    max_iterations: int = 10,
    tolerance: float = 0.01,
    reduce: Reduce | None = None,
) -> tuple[list[dict[str, float]], list[Site]]:
    r"""Scale whole layers so that one gradient step changes all of them by the same fraction.

    Kraehenbuehl et al. 2016, section 3.2. The rate of layer $k$ is $c_k = \|\nabla W_k\| / \|W_k\|$. Multiplying $W_k$ by
    $s_k$ in a network that is positively homogeneous (ReLU), with $\prod_k s_k = 1$, leaves the function as it is up to biases
    and makes its rate $c_k / s_k^2$; so does batch norm after the layer. Hence $s_k = \sqrt{c_k / \bar c}$ with the geometric
    mean $\bar c$, which is exact there in one step. Elsewhere a step that makes the spread larger is taken back and those after
    it are half as long; the paper damps all of them. After each step biases move so that units have their mean again, in units
    of their std. Where branches are concatenated there need not be a solution: a branch that learns slowly does so because it
    contributes little, and a smaller scale makes it contribute less. If the spread does not halve, nothing is changed.

    Scales that are taken back grow on the way: where the norm of the gradient changes by a factor $q$ from layer to layer, the
    values half way through $n$ layers are $q^{n^2 / 8}$ times those of normalised units.

    Args:
        layers: what to scale. Attention's q/k/v projections are left alone: logits of 0 are a fixed point of theirs.
        forward: runs the network on the batch.
        objective: a scalar to differentiate, computed from the network anew at each call, with the same randomness.
        means: of units over their std, by the weight's name; 0 for all others.
        max_iterations: steps tried, each of one forward and backward and one forward; 10 in the paper.
        tolerance: standard deviation of the logarithm of the rates at which to stop.
        reduce: sums a tensor over processes, to use all ranks' data.

    Returns:
        The rates by weight before and after each step that was kept (only before, if nothing is changed), and the sites with the
        std reached.
    """
    layers = [layer for layer in layers if not isinstance(layer.module, _NOT_SCALED)]
    center = partial(_recenter, means=means, reduce=reduce)
    history = [gradient_rates(layers, objective, reduce=reduce)]
    start = kept = _values(layers)
    damping = 1.0
    for _ in range(max_iterations):
        logs = {name: math.log(rate) for name, rate in history[-1].items() if rate > 0}
        if _spread(history[-1]) < tolerance:
            break
        for weight in (weight for layer in layers for weight in layer.weights):
            if weight.name in logs:
                weight.write_(weight.read() * math.exp(damping * (logs[weight.name] - fmean(logs.values())) / 2))
        adjust(layers, forward, center)
        rates = gradient_rates(layers, objective, reduce=reduce)
        if _spread(rates) < _spread(history[-1]):
            history.append(rates)
            kept = _values(layers)
        else:
            damping /= 2
            _restore_(kept)
    if _spread(history[-1]) > _spread(history[0]) / 2:
        _restore_(start)
        del history[1:]
    return history, adjust(layers, forward, center)


def gradient_rates(
    layers: Sequence[Layer], objective: Callable[[], Tensor], *, reduce: Reduce | None = None
) -> dict[str, float]:
    """Return the norm of each weight's gradient divided by the weight's norm; 0 where no gradient arrives.

    Args:
        layers: of `lit_training.layers.find_layers`.
        objective: a scalar to differentiate.
        reduce: sums a tensor over processes.

    >>> from lit_training.layers import find_layers
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(net.weight, 2.0)
    >>> gradient_rates(find_layers(net), lambda: 6 * net.weight.sum())
    {'weight': 3.0}
    """
    weights = [weight for layer in layers for weight in layer.weights]
    holders = [list(weight.parameters.values()) for weight in weights]
    flat = [parameter for group in holders for parameter in group]
    if any(isinstance(parameter, DTensor) for parameter in flat):
        objective().backward()
        found: Sequence[Tensor | None] = [parameter.grad for parameter in flat]
        for parameter in flat:
            parameter.grad = None
        reduce = None  # the backward pass has reduced them
    else:
        found = torch.autograd.grad(objective(), flat, allow_unused=True)
    squares = {id(p): read(g).square().sum() for p, g in zip(flat, found, strict=True) if g is not None}
    zero = torch.zeros((), device=flat[0].device if flat else None)
    gradients = torch.stack([sum((squares.get(id(p), zero) for p in group), zero) for group in holders] or [zero])
    gradients = gradients if reduce is None else reduce(gradients)
    return {
        weight.name: math.sqrt(float(square)) / max(float(weight.read().norm()), 1e-30)
        for weight, square in zip(weights, gradients, strict=False)
    }


def _spread(rates: Mapping[str, float]) -> float:
    """Return the standard deviation of the logarithm of the rates; 0 where there is nothing to compare."""
    logs = [math.log(rate) for rate in rates.values() if rate > 0]
    return pstdev(logs) if logs else 0.0


def _recenter(site: Site, output: Tensor, _: Tensor | None, *, means: Mapping[str, float], reduce: Reduce | None) -> Adjustment:
    mean, variance = _unit_moments(output, reduce)
    bias = means.get(site.weight.name, 0.0) * variance.sqrt() - mean
    return Adjustment(output.new_ones(()), bias if site.may_shift else None, std=float(variance.mean().sqrt()))


def _values(layers: Sequence[Layer]) -> list[tuple[Weight | Parameter, Tensor]]:
    """Return copies of all weights and biases."""
    weights: list[tuple[Weight | Parameter, Tensor]] = [(w, w.read()) for layer in layers for w in layer.weights]
    return weights + [(bias, read(bias)) for layer in layers for bias in layer.biases.values()]


def _restore_(values: Sequence[tuple[Weight | Parameter, Tensor]]) -> None:
    for holder, value in values:
        holder.write_(value) if isinstance(holder, Weight) else write_(holder, value)


def _overall_moments(output: Tensor, bias: Tensor, reduce: Reduce | None) -> tuple[float, float, float, float]:
    """Return mean and variance of `[..., units]`, its covariance with the bias, and the bias' own variance."""
    bias = bias.expand(output.shape[-1])
    count = output.new_tensor([output.numel() / output.shape[-1]], dtype=torch.float64)
    sums = _sum(torch.stack([count[0], output.mean().double() * count[0]]), reduce)
    mean = sums[1] / sums[0]
    centred, offset = output - mean.to(output), bias - bias.mean()
    products = torch.stack([centred.square().mean(), (centred * offset).mean()]).double() * count
    variance, covariance = (_sum(products, reduce) / sums[0]).tolist()
    return float(mean), variance, covariance, float(offset.square().mean())


def _unit_moments(output: Tensor, reduce: Reduce | None) -> tuple[Tensor, Tensor]:
    """Return mean and variance `[units]` of `[..., units]`."""
    rows = output.reshape(-1, output.shape[-1])
    count = _sum(rows.new_tensor([len(rows)]), reduce)
    mean = _sum(rows.sum(0), reduce) / count
    return mean, _sum((rows - mean).square().sum(0), reduce) / count


def _sum(values: Tensor, reduce: Reduce | None) -> Tensor:
    return values if reduce is None else reduce(values)


def _check(site: Site, variance: float, mean: float) -> None:
    """Refuse a batch that a layer makes a constant of, or not finite."""
    where = f"the output of {site.name} before its nonlinearity"
    if not math.isfinite(variance):
        raise UnusableBatchError(
            f"{where} is not finite on this batch; look for NaN or huge values in the data and in weights left alone"
        )
    if variance <= 1e-12 * mean**2 or variance == 0:
        raise UnusableBatchError(
            f"{where} is the same for the whole batch ({mean:g}), so no scale can be found; pass a batch of several different "
            f"samples, or leave the layer alone with exclude={site.weight.name!r}"
        )
