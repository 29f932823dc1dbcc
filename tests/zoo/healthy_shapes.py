"""Healthy, second set: colour pictures and the convolutional architectures of the last fifteen years in small."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import more_data as data
from tests.zoo.case import Case, healthy
from tests.zoo.data import replace
from tests.zoo.nets import CE, MSE, adam, adamw, he, init_weights, sgd


def strided(
    norm: type[nn.Module] | None = None, act: type[nn.Module] = nn.ReLU, width: int = 12, outputs: int = 4
) -> nn.Module:
    """Three strided convolutions, global average pooling, a head."""
    layers: list[nn.Module] = []
    for a, b in ((3, width), (width, 2 * width), (2 * width, 2 * width)):
        layers.append(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=norm is None))
        layers += [*([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, outputs))


def pooled(act: type[nn.Module] = nn.ReLU, channels: int = 3, width: int = 12) -> nn.Sequential:
    """Two convolutions of 5 x 5 with max pooling, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, padding=2), act(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5, padding=2), act(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(8 * width, 48), act(), nn.Linear(48, 4),
    )  # fmt: skip


@healthy("unnormalised_input", source="colour pixels in [0, 1], not standardised, batch norm")
def h_shapes_unit(seed: int) -> Case:
    return Case(seed=seed, model=strided(nn.BatchNorm2d), data=data.shapes(seed), optimizer=adam(8e-3), max_steps=200, **CE)


@healthy("lr_too_high", "bad_gain", source="plain conv net on standardised colour pictures, SGD")
def h_shapes_sgd(seed: int) -> Case:
    return Case(
        seed=seed,
        model=init_weights(pooled(), he),
        data=data.centred(data.shapes(seed)),
        optimizer=sgd(0.01),
        max_steps=250,
        **CE,
    )


@healthy("missing_activation", "dead_relu", source="conv net with GELU, Adam")
def h_shapes_gelu(seed: int) -> Case:
    return Case(
        seed=seed, model=pooled(nn.GELU), data=data.centred(data.shapes(seed)), optimizer=adam(4e-3), max_steps=200, **CE
    )


class ConvNext(nn.Module):
    """Liu et al. 2022: depthwise 5 x 5, layer norm over channels, an inverted bottleneck, a tiny layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.scale = nn.Parameter(1e-2 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).movedim(-1, 1)


@healthy("init_vanishing", "missing_activation", source="Liu et al. 2022: ConvNeXt blocks, depthwise without activation")
def h_convnext(seed: int) -> Case:
    stem = [nn.Conv2d(3, 16, 2, stride=2), nn.GroupNorm(1, 16)]
    head = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(64, 4)]
    model = nn.Sequential(*stem, ConvNext(16), ConvNext(16), *head)
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=adamw(1e-2), max_steps=160, **CE)


class FixupBlock(nn.Module):
    """Zhang et al. 2019: no norm; scalar biases, a scalar factor, the second convolution starts at zero."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        nn.init.normal_(self.conv1.weight, std=(2 / (9 * width)) ** 0.5 * depth**-0.5)
        nn.init.zeros_(self.conv2.weight)
        self.biases, self.factor = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x + self.biases[0]) + self.biases[1])
        return F.relu(x + self.factor * self.conv2(y + self.biases[2]) + self.biases[3])


@healthy("init_symmetry", "init_vanishing", "bad_gain", source="Zhang et al. 2019 (Fixup): residual convolutions without norm")
def h_fixup_conv(seed: int) -> Case:
    blocks = [FixupBlock(12, 4) for _ in range(4)]
    head = nn.Linear(48, 4)
    nn.init.zeros_(head.weight)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), *blocks, nn.AdaptiveMaxPool2d(2), nn.Flatten(), head)
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=adam(6e-3), max_steps=200, **CE)


class Dense(nn.Module):
    """Huang et al. 2017: each layer sees all earlier ones; batch norm and ReLU come before the convolution."""

    def __init__(self, growth: int = 8, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, stride=2, padding=1, bias=False)
        widths = [growth * (i + 1) for i in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.convs = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1, bias=False) for w in widths)
        self.head = nn.Linear(growth * (layers + 1) * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            seen.append(conv(F.relu(norm(torch.cat(seen, 1)))))
        return self.head(F.adaptive_max_pool2d(torch.cat(seen, 1), 2).flatten(1))


@healthy("bias_before_bn", "missing_activation", source="Huang et al. 2017: a dense net, norm and ReLU in front")
def h_dense_net(seed: int) -> Case:
    return Case(seed=seed, model=Dense(), data=data.centred(data.shapes(seed)), optimizer=sgd(0.05), max_steps=140, **CE)


class Shuffle(nn.Module):
    """Zhang et al. 2018: grouped convolutions whose channels are shuffled by view and transpose."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.reduce, self.norm = nn.Conv2d(width, width, 1, groups=groups, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.reduce(x)))
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x + self.depthwise(y)


@healthy("batch_mixing", "missing_activation", source="Zhang et al. 2018 (ShuffleNet): channels shuffled by view and transpose")
def h_channel_shuffle(seed: int) -> Case:
    body = [nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU6(), Shuffle(24, 4), Shuffle(24, 4)]
    model = nn.Sequential(*body, nn.BatchNorm2d(24), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(96, 4))
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=adam(6e-3), max_steps=160, **CE)


class StandardisedConv(nn.Conv2d):
    """Qiao et al. 2019: a convolution whose kernels are standardised in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) * w[0].numel() ** 0.5 + 1e-6)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@healthy("init_vanishing", "bad_gain", source="Qiao et al. 2019: standardised kernels, so their drawn scale is nothing")
def h_weight_standardised(seed: int) -> Case:
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 32)):
        conv = StandardisedConv(a, b, 3, stride=2, padding=1)
        nn.init.normal_(conv.weight, std=1e-3)
        layers += [conv, nn.GroupNorm(4, b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=adam(4e-3), max_steps=200, **CE)


class SpatialSoftmax(nn.Module):
    """Finn et al. 2016: where each channel is brightest, as the mean of a softmax over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        share = (x.flatten(2)).softmax(2).view_as(x)
        at = torch.linspace(-1, 1, x.shape[2])
        return torch.cat([(share.sum(3) * at).sum(2), (share.sum(2) * at).sum(2)], 1)


def spots(seed: int, n: int = 720, size: int = 14) -> data.Split:
    """Noisy pictures of one bright spot; where it is, in [-1, 1]."""
    g = data.rng(221, seed)
    place, at = 1.4 * torch.rand(n, 2, generator=g) - 0.7, torch.linspace(-1, 1, size)
    away = (at[:, None] - place[:, 0, None, None]).square() + (at - place[:, 1, None, None]).square()
    return data.split((2.5 * (-away / 0.05).exp() + 0.5 * torch.randn(n, size, size, generator=g))[:, None], place)


@healthy("wrong_hidden_activation", "saturation", "init_vanishing", source="Finn et al. 2016: a softmax inside, over pixels")
def h_spatial_softmax(seed: int) -> Case:
    body = [nn.Conv2d(1, 12, 5, padding=2), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1)]
    model = nn.Sequential(*body, SpatialSoftmax(), nn.Linear(16, 2))
    return Case(seed=seed, model=model, data=spots(seed), optimizer=adam(1e-2), max_steps=200, **MSE)


@healthy("wrong_last_activation", "wrong_loss", source="convolutional autoencoder: sigmoid at the end, pixels in [0, 1], MSE")
def h_conv_autoencoder(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 24, 4, stride=2, padding=1), nn.Tanh(),
        nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1), nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1), nn.Sigmoid(),
    )  # fmt: skip
    train, val = (torch.utils.data.TensorDataset(part.tensors[0], part.tensors[0]) for part in data.shapes(seed))
    return Case(seed=seed, model=model, data=(train, val), optimizer=adam(1e-2), max_steps=200, **MSE)


def outline(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy per pixel in which the rarer foreground weighs more."""
    return F.cross_entropy(output, target, weight=torch.tensor([0.5, 1.5]))


def painted(seed: int) -> data.Split:
    """Shapes, and for each pixel whether it is ink: red above the mean of its picture."""
    parts = []
    for part in data.shapes(seed):
        x = part.tensors[0]
        grey = x.mean(1)
        parts.append(torch.utils.data.TensorDataset(x, (grey > grey.mean((1, 2), keepdim=True) + 0.1).long()))
    return parts[0], parts[1]


@healthy(
    "class_imbalance", "loss_reduction", source="segmentation: two logits per pixel, weighted cross-entropy, instance norm"
)
def h_segmentation(seed: int) -> Case:
    model = nn.Sequential(
        nn.InstanceNorm2d(3), nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 2, 1),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=painted(seed), optimizer=adam(1e-2), max_steps=120, loss=outline, metric="accuracy"
    )


class Filters(nn.Module):
    """Fixed filters for edges in front of a small learnt net, as in scattering networks."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        row = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]) / 4
        kernels = torch.stack([row, row.T, row + row.T, torch.eye(3) - 1 / 3])
        self.edges.weight.data = torch.stack([k * (torch.arange(3) == c)[:, None, None] for k in kernels for c in range(3)])
        self.edges.requires_grad_(False)
        self.learnt = strided(nn.BatchNorm2d, width=12)
        self.learnt[0] = nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.learnt(self.edges(x).abs())


@healthy("frozen_by_accident", "not_in_optimizer", source="fixed edge filters in front of what learns, declared")
def h_fixed_filters(seed: int) -> Case:
    split = data.centred(data.shapes(seed))
    return Case(
        seed=seed, model=Filters(), data=split, optimizer=adam(8e-3), max_steps=180, frozen=["model.edges.weight"], **CE
    )


@healthy("dropout_active_in_eval", "bad_gain", source="Klambauer et al. 2017: SELU convolutions with alpha dropout")
def h_selu_conv(seed: int) -> Case:
    model = init_weights(pooled(nn.SELU), lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"))
    model.insert(7, nn.AlphaDropout(0.1))
    return Case(seed=seed, model=model, data=data.centred(data.shapes(seed)), optimizer=adam(3e-3), max_steps=200, **CE)


class Coordinates(nn.Module):
    """Liu et al. 2018 (CoordConv): two constant channels that say where a pixel is."""

    def forward(self, x: Tensor) -> Tensor:
        at = torch.linspace(-1, 1, x.shape[2])
        place = torch.stack(torch.meshgrid(at, at, indexing="ij")).expand(len(x), -1, -1, -1)
        return torch.cat([x, place], 1)


@healthy("bad_data", "batch_mixing", source="Liu et al. 2018: two input channels are the same in all samples")
def h_coordinates(seed: int) -> Case:
    layers = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(Coordinates(), *layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    return Case(seed=seed, model=model, data=spots(seed), optimizer=adam(1e-2), max_steps=220, **MSE)


@healthy("wrong_loss", "loss_reduction", source="label smoothing, and the mean of each picture subtracted")
def h_shapes_smoothed(seed: int) -> Case:
    split = replace(data.shapes(seed), 0, lambda x: 3 * (x - x.mean((1, 2, 3), keepdim=True)))
    return Case(
        seed=seed, model=strided(nn.BatchNorm2d, nn.SiLU), data=split, optimizer=adamw(8e-3), max_steps=200,
        loss=nn.CrossEntropyLoss(label_smoothing=0.15), metric="accuracy",
    )  # fmt: skip
