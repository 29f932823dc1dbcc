"""In-place tensor initialisers in the style of `torch.nn.init`, with the fans of the layer instead of the shape's.

A tensor is `[units, inputs, *kernel]`, as `Linear` and ungrouped `Conv` store it. For any other layer take the parts and their
fans from `lit_training.fans.matrices`; `lit_training.initialize_` does so for whole models.
"""

import math

import torch
from torch import Generator, Tensor, nn

from lit_training.fans import Fans
from lit_training.gains import Nonlinearity, gain

__all__ = [
    "glorot_normal_",
    "glorot_uniform_",
    "he_normal_",
    "he_uniform_",
    "orthogonal_",
    "random_walk_",
    "random_walk_gain",
]


def he_normal_(
    tensor: Tensor, nonlinearity: Nonlinearity = "relu", *, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    r"""Fill with $N(0, g^2 / fan_{in})$, $g$ the gain of the nonlinearity that follows, to keep the signal's size.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 10.

    Args:
        tensor: `[units, inputs, *kernel]`, changed in place, any floating dtype (drawn in float32).
        nonlinearity: what follows, as `lit_training.gain` takes it.
        fans: the layer's fans where they are not the shape's; default `inputs * kernel`, `units * kernel`.
        generator: source of randomness, on any device; `None` is torch's global one.

    Returns:
        The tensor.

    Raises:
        ValueError: if the tensor has fewer than two dimensions and `fans` is not given, or for an unknown nonlinearity.

    >>> round(float(he_normal_(torch.empty(500, 800), generator=torch.Generator().manual_seed(0)).std()), 3)
    0.05
    """
    return _normal_(tensor, gain(nonlinearity) / math.sqrt(_fans(tensor, fans).fan_in), generator)


def he_uniform_(
    tensor: Tensor, nonlinearity: Nonlinearity = "relu", *, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    r"""Fill with the uniform distribution of the same variance as `he_normal_`, bound $g \sqrt{3 / fan_{in}}$.

    Args, returns, raises: as `he_normal_`.

    >>> float(he_uniform_(torch.empty(50, 6)).abs().max()) <= 1
    True
    """
    return _uniform_(tensor, gain(nonlinearity) / math.sqrt(_fans(tensor, fans).fan_in), generator)


def glorot_normal_(
    tensor: Tensor, gain: float = 1.0, *, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    r"""Fill with $N(0, 2 g^2 / (fan_{in} + fan_{out}))$: a compromise between signal and gradient, for (near) linear layers.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010, equation 12.

    Args:
        tensor: as in `he_normal_`.
        gain: a factor, 1 in the paper.
        fans: as in `he_normal_`.
        generator: as in `he_normal_`.

    Returns:
        The tensor.

    Raises:
        ValueError: if the tensor has fewer than two dimensions and `fans` is not given.

    >>> round(float(glorot_normal_(torch.empty(500, 300), generator=torch.Generator().manual_seed(0)).std()), 3)
    0.05
    """
    return _normal_(tensor, gain * math.sqrt(2 / sum(_fans(tensor, fans))), generator)


def glorot_uniform_(
    tensor: Tensor, gain: float = 1.0, *, fans: Fans | None = None, generator: Generator | None = None
) -> Tensor:
    r"""Fill uniformly with the variance of `glorot_normal_`, bound $g \sqrt{6 / (fan_{in} + fan_{out})}$.

    Args, returns, raises: as `glorot_normal_`.

    >>> float(glorot_uniform_(torch.empty(2, 4)).abs().max()) <= 1
    True
    """
    return _uniform_(tensor, gain * math.sqrt(2 / sum(_fans(tensor, fans))), generator)


@torch.no_grad()
def orthogonal_(tensor: Tensor, gain: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with a random (semi-)orthogonal matrix `[units, inputs * kernel]`, uniform over all of them, times `gain`.

    Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", ICLR 2014. Rows are
    orthonormal if there are at most as many units as inputs, else columns. As `torch.nn.init.orthogonal_`, but for half
    precision too, into any view. A grouped, transposed or packed weight is several matrices: one call for each of
    `lit_training.fans.matrices`.

    Args:
        tensor: `[units, inputs, *kernel]`, changed in place, any floating dtype (computed in float32 or wider).
        gain: a factor.
        generator: source of randomness, on any device; `None` is torch's global one.

    Returns:
        The tensor.

    Raises:
        ValueError: if the tensor has fewer than two dimensions.

    >>> w = orthogonal_(torch.empty(2, 3, 2, 2)).flatten(1)
    >>> torch.allclose(w @ w.t(), torch.eye(2), atol=1e-6)
    True
    """
    _fans(tensor, None)
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    random = _draw(tensor, (max(rows, columns), min(rows, columns)), generator).normal_(generator=generator)
    q, r = torch.linalg.qr(random)
    q *= r.diagonal().sign()  # else QR's sign convention favours some rotations (Mezzadri 2007, section 5)
    matrix = q if rows >= columns else q.t()
    return tensor.copy_(matrix.mul(gain).reshape(tensor.shape))


def random_walk_(
    tensor: Tensor,
    nonlinearity: Nonlinearity = "relu",
    *,
    fans: Fans | None = None,
    width: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    r"""Fill with $N(0, g(N)^2 / fan_{in})$, with which the logarithm of the signal's norm is a random walk without drift.

    Sussillo and Abbott, "Random walk initialization for training very deep feedforward networks", 2014, section 3. He keeps
    the expected *square* of the norm; the typical norm then still falls a little at every layer, the more the narrower it is.

    Args:
        tensor: as in `he_normal_`.
        nonlinearity: what follows, as `lit_training.gain` takes it; see `random_walk_gain`.
        fans: as in `he_normal_`.
        width: `N`, the units of the whole layer; default `units`. A grouped convolution has more than its part `tensor`.
        generator: as in `he_normal_`.

    Returns:
        The tensor.

    Raises:
        ValueError: as `he_normal_`.

    >>> round(float(random_walk_(torch.empty(800, 800), generator=torch.Generator().manual_seed(0)).std()), 3)
    0.05
    """
    fan_in = _fans(tensor, fans).fan_in
    return _normal_(tensor, random_walk_gain(nonlinearity, width or tensor.shape[0]) / math.sqrt(fan_in), generator)


def random_walk_gain(nonlinearity: Nonlinearity, width: int) -> float:
    r"""Return the random walk's gain $g(N)$ for a layer of `width` units.

    ReLU: $\sqrt 2 \exp(1.2 / (\max(N, 6) - 2.4))$; linear and tanh, which is linear near 0: $\exp(1 / (2N))$. The paper gives
    these; for any other nonlinearity it is `gain` times the linear correction.

    >>> round(random_walk_gain("relu", 100), 4), round(random_walk_gain("tanh", 100), 4)
    (1.4317, 1.005)
    """
    if nonlinearity == "relu" or isinstance(nonlinearity, nn.ReLU):
        return math.sqrt(2) * math.exp(1.2 / (max(width, 6) - 2.4))
    linear = nonlinearity == "tanh" or isinstance(nonlinearity, nn.Tanh)
    factor = 1.0 if linear else gain(nonlinearity)
    return factor * math.exp(1 / (2 * width))


def _fans(tensor: Tensor, fans: Fans | None) -> Fans:
    if fans is not None:
        return fans
    if tensor.ndim < 2:
        raise ValueError(f"a tensor needs at least 2 dimensions, [units, inputs, *kernel], got shape {list(tensor.shape)}")
    kernel = math.prod(tensor.shape[2:])
    return Fans(tensor.shape[1] * kernel, tensor.shape[0] * kernel)


def _draw(tensor: Tensor, shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Return an empty tensor to draw in: float32 or wider, where the generator lives."""
    device = tensor.device if generator is None else generator.device
    return torch.empty(shape, dtype=torch.promote_types(tensor.dtype, torch.float32), device=device)


@torch.no_grad()
def _normal_(tensor: Tensor, std: float, generator: Generator | None) -> Tensor:
    return tensor.copy_(_draw(tensor, tuple(tensor.shape), generator).normal_(std=std, generator=generator))


@torch.no_grad()
def _uniform_(tensor: Tensor, std: float, generator: Generator | None) -> Tensor:
    bound = math.sqrt(3) * std
    return tensor.copy_(_draw(tensor, tuple(tensor.shape), generator).uniform_(-bound, bound, generator=generator))
