"""Healthy, held out: convolutional architectures from 1990 on, scaled down."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from tests.zoo.case import Case, healthy
from tests.zoo.data import digits, gratings, masks, stamps
from tests.zoo.more_data import centred, shapes
from tests.zoo.nets import BCE, CE, Activation, UNet, adam, adamw, he, init_weights, sgd


def cbr(a: int, b: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Activation | None = nn.ReLU) -> nn.Sequential:
    """Convolution without bias, batch norm, activation."""
    conv = nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(b), *([act()] if act else []))


def pooled_head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]


@healthy(source="LeCun 1990, LeNet: tanh, average pooling, three linear layers")
def h_lenet_of_1990(seed: int) -> Case:
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 10)),
    )
    return Case(seed=seed, model=model, data=digits(seed, flat=False), **CE, optimizer=sgd(0.05), max_steps=240)


@healthy(
    "bad_bias_init", "dropout_too_high", source="Krizhevsky 2012: biases of 1 in some layers, dropout of a half, weight decay"
)
def h_alexnet_biases_of_one(seed: int) -> Case:
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(24 * 16, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 4)),
    )
    init_weights(model, he)
    for place in (4, 6):
        nn.init.ones_(model[place].bias)
    nn.init.normal_(model[-1].weight, std=0.05)
    return Case(
        seed=seed, model=model, data=centred(shapes(seed, 1080)), **CE, optimizer=sgd(0.01, weight_decay=5e-4), max_steps=360
    )


@healthy(source="VGG with batch norm, SGD with steps, as in every tutorial on CIFAR")
def h_vgg_with_steps(seed: int) -> Case:
    model = nn.Sequential(
        *(cbr(3, 10), cbr(10, 10), nn.MaxPool2d(2), cbr(10, 20), cbr(20, 20), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(20 * 16, 32), nn.ReLU(), nn.Linear(32, 4)),
    )

    def schedule(optimizer: torch.optim.Optimizer) -> dict[str, object]:
        return {"scheduler": StepLR(optimizer, 80, 0.3), "interval": "step"}

    data = centred(shapes(seed, 1080))
    return Case(
        seed=seed, model=model, data=data, **CE, optimizer=sgd(0.03, weight_decay=5e-4), scheduler=schedule, max_steps=200
    )


class Basic(nn.Module):
    """The basic block of He 2015, with a projection where the width changes."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(cbr(a, b, 3, stride), cbr(b, b, act=None))
        self.skip = cbr(a, b, 1, stride, act=None) if a != b else nn.Identity()
        nn.init.zeros_(self.body[1][1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


@healthy("init_symmetry", "bad_gain", source="Goyal 2017: the last norm of each residual block starts at zero")
def h_resnet_zero_last_gamma(seed: int) -> Case:
    model = nn.Sequential(cbr(1, 10), Basic(10, 10, 1), Basic(10, 20, 2), Basic(20, 20, 1), *pooled_head(20, 4))

    def schedule(optimizer: torch.optim.Optimizer) -> dict[str, object]:
        return {"scheduler": CosineAnnealingLR(optimizer, 180), "interval": "step"}

    return Case(
        seed=seed, model=model, data=gratings(seed, 1152), **CE, optimizer=sgd(0.05, weight_decay=5e-4), scheduler=schedule,
        max_steps=180,
    )  # fmt: skip


class Dense(nn.Module):
    """Each layer sees what all before it have said."""

    def __init__(self, a: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(a + i * growth), nn.ReLU(), nn.Conv2d(a + i * growth, growth, 3, padding=1, bias=False)
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@healthy(source="Huang 2017, DenseNet: blocks, a transition, SGD with Nesterov momentum")
def h_densenet_nesterov(seed: int) -> Case:
    transition = [nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 12, 1, bias=False), nn.AvgPool2d(2)]
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, stride=2, padding=1, bias=False), Dense(12, 4, 3), *transition, Dense(12, 4, 3)),
        *(nn.BatchNorm2d(24), nn.ReLU(), *pooled_head(24, 4)),
    )
    return Case(
        seed=seed, model=model, data=gratings(seed, 1152), **CE, optimizer=sgd(0.05, nesterov=True, weight_decay=1e-4),
        max_steps=180,
    )  # fmt: skip


class Inception(nn.Module):
    """Four parallel branches, and an auxiliary head that only the training uses."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = cbr(1, 12, 3)
        self.one, self.three = self.branches(12), self.branches(24)
        self.auxiliary = nn.Sequential(*pooled_head(24, classes))
        self.head = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(24 * 9, classes))

    @staticmethod
    def branches(a: int) -> nn.ModuleList:
        pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(a, 6, 1))
        return nn.ModuleList(
            [cbr(a, 6, 1), nn.Sequential(cbr(a, 4, 1), cbr(4, 6, 3)), nn.Sequential(cbr(a, 4, 1), cbr(4, 6, 5)), pool]
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.max_pool2d(torch.cat([branch(self.stem(x)) for branch in self.one], 1), 2)
        out = self.head(torch.cat([branch(x) for branch in self.three], 1))
        return (out, self.auxiliary(x)) if self.training else out


def with_auxiliary(output: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    if isinstance(output, Tensor):
        return F.cross_entropy(output, target)
    return F.cross_entropy(output[0], target) + 0.3 * F.cross_entropy(output[1], target)


@healthy("not_in_optimizer", "train_val_mismatch", source="Szegedy 2014: an auxiliary classifier at 0.3, gone at validation")
def h_inception_auxiliary(seed: int) -> Case:
    data = stamps(seed, 1152, noise=0.5)
    return Case(
        seed=seed, model=Inception(), data=data, loss=with_auxiliary, metric="accuracy", optimizer=adam(3e-3), max_steps=120
    )


class Squeeze(nn.Module):
    """Channels weighed by a gate that sees the whole picture."""

    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // reduction, 1), nn.SiLU()),
            *(nn.Conv2d(width // reduction, width, 1), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    """MobileNetV2's block: widen, filter each channel, narrow without activation; skipped at random with `drop`."""

    def __init__(
        self, width: int, expand: int = 3, act: Activation = nn.ReLU6, squeeze: bool = False, drop: float = 0.0
    ) -> None:
        super().__init__()
        wide = expand * width
        self.body = nn.Sequential(
            *(cbr(width, wide, 1, act=act), cbr(wide, wide, 3, groups=wide, act=act)),
            *([Squeeze(wide)] if squeeze else []),
            cbr(wide, width, 1, act=None),
        )
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.training and self.drop:
            y = y * (torch.rand(len(x), 1, 1, 1) >= self.drop) / (1 - self.drop)
        return x + y


@healthy(
    "dropout_too_high", source="Tan 2019, EfficientNet: SiLU, gates, stochastic depth, label smoothing, dropout before the head"
)
def h_efficientnet_drop_path(seed: int) -> Case:
    blocks = [Inverted(12, act=nn.SiLU, squeeze=True, drop=0.1 * i) for i in range(3)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4)]
    model = nn.Sequential(cbr(3, 12, stride=2, act=nn.SiLU), *blocks, *head)
    return Case(
        seed=seed, model=model, data=centred(shapes(seed, 1080)), loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        metric="accuracy", optimizer=adamw(4e-3, weight_decay=1e-2), max_steps=160,
    )  # fmt: skip


class ConvNeXt(nn.Module):
    """Depthwise 5 x 5, layer norm, an inverted bottleneck, a small layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 5, padding=2, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


@healthy("init_vanishing", source="Liu 2022, ConvNeXt: patch stem, layer scale of a hundredth")
def h_convnext_layer_scale(seed: int) -> Case:
    stem = [nn.Conv2d(1, 16, 2, stride=2), nn.GroupNorm(1, 16)]
    model = nn.Sequential(*stem, *(ConvNeXt(16) for _ in range(3)), *pooled_head(16, 4))
    return Case(
        seed=seed, model=model, data=gratings(seed, 1152), **CE, optimizer=adamw(5e-3, weight_decay=0.05), max_steps=220
    )


class DeepUNet(nn.Module):
    """Two steps down and up; while it trains, also a coarse map from the middle."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(1, width), cbr(width, 2 * width), cbr(2 * width, 2 * width)
        self.up_b, self.up_a = cbr(4 * width, width), cbr(2 * width, width)
        self.coarse, self.out = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Sequence[Tensor] | Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        b = self.up_b(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        out = self.out(self.up_a(torch.cat([a, F.interpolate(b, scale_factor=2)], 1)))
        return (out, F.interpolate(self.coarse(b), scale_factor=2)) if self.training else out


def dice_and_bce(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice


def supervised_at_depth(output: Sequence[Tensor] | Tensor, target: Tensor) -> Tensor:
    if isinstance(output, Tensor):
        return dice_and_bce(output, target)
    return dice_and_bce(output[0], target) + 0.4 * dice_and_bce(output[1], target)


@healthy("not_in_optimizer", "wrong_loss", source="U-Net with Dice plus cross-entropy and deep supervision, as nnU-Net")
def h_unet_deep_supervision(seed: int) -> Case:
    return Case(
        seed=seed, model=DeepUNet(), data=masks(seed, 600), loss=supervised_at_depth, metric="jaccard", optimizer=adam(3e-3)
    )


@healthy(source="U-Net on masks with plain cross-entropy and Adam")
def h_unet_everyday(seed: int) -> Case:
    return Case(seed=seed, model=UNet(10), data=masks(seed, 600), loss=BCE["loss"], metric="jaccard", optimizer=adam(2e-3))
