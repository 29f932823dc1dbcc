"""Healthy: pictures, from a plain conv net to segmentation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import BCE, CE, MSE, ResNet, UNet, adam, adamw, conv_block, convnet, he, init_weights, plain_deep, sgd


@healthy("bad_gain", source="control: plain conv net, default init")
def h_conv(seed: int) -> Case:
    return Case(seed=seed, model=convnet(), data=data.gratings(seed), optimizer=sgd(0.05), max_steps=160, **CE)


@healthy("bias_before_bn", source="control: conv net with batch norm and no bias before it")
def h_conv_bn(seed: int) -> Case:
    model = convnet(norm=nn.BatchNorm2d, bias=False)
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.05), max_steps=160, **CE)


@healthy("bias_before_bn", "bn_stats", source="conv net with group norm: biases before it are not cancelled")
def h_conv_group_norm(seed: int) -> Case:
    model = convnet(norm=lambda c: nn.GroupNorm(2, c))
    return Case(seed=seed, model=model, data=data.stamps(seed), optimizer=adam(5e-3), max_steps=160, **CE)


@healthy("bn_stats", "batch_mixing", source="instance norm: statistics per sample, none kept")
def h_conv_instance_norm(seed: int) -> Case:
    model = convnet(norm=lambda c: nn.InstanceNorm2d(c, affine=True))
    return Case(seed=seed, model=model, data=data.stamps(seed), optimizer=adam(5e-3), max_steps=160, **CE)


@healthy("init_symmetry", "frozen_by_accident", source="Goyal et al. 2017: the last batch norm of each branch starts at 0")
def h_resnet_zero_gamma(seed: int) -> Case:
    model = ResNet()
    for block in model.blocks:
        nn.init.zeros_(block.norm2.weight)  # type: ignore[union-attr, arg-type]
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.05), max_steps=140, **CE)


@healthy("init_exploding", source="plain residual net")
def h_resnet(seed: int) -> Case:
    return Case(seed=seed, model=ResNet(), data=data.stamps(seed), optimizer=sgd(0.05), max_steps=140, **CE)


@healthy(
    "init_vanishing",
    "init_exploding",
    source="He et al. 2015: eight plain convolutions, He init; zero padding eats signal at the border",
)
def h_deep_plain_conv(seed: int) -> Case:
    return Case(
        seed=seed, model=init_weights(plain_deep(8), he), data=data.gratings(seed), optimizer=adam(2e-3), max_steps=200, **CE
    )


@healthy("bn_eval_in_train", "init_vanishing", source="ten plain convolutions with batch norm, default init")
def h_deep_bn_conv(seed: int) -> Case:
    return Case(
        seed=seed, model=plain_deep(10, norm=nn.BatchNorm2d), data=data.gratings(seed), optimizer=sgd(0.05), max_steps=140, **CE
    )


@healthy("bias_before_bn", source="ten convolutions without a bias, with batch norm")
def h_deep_bn_conv_no_bias(seed: int) -> Case:
    model = plain_deep(10, norm=nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_parameter("bias", None)
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.05), max_steps=140, **CE)


class SqueezeExcite(nn.Module):
    """Hu et al. 2018: channels gated by a sigmoid of their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3)))[:, :, None, None]


@healthy("saturation", "wrong_hidden_activation", source="squeeze-and-excitation: sigmoid gates inside a conv net")
def h_squeeze_excite(seed: int) -> Case:
    model = nn.Sequential(
        *conv_block(1, 12, nn.BatchNorm2d, nn.ReLU),
        SqueezeExcite(12),
        nn.MaxPool2d(2),
        *conv_block(12, 16, nn.BatchNorm2d, nn.ReLU),
        SqueezeExcite(16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    return Case(seed=seed, model=model, data=data.stamps(seed), optimizer=adam(5e-3), max_steps=160, **CE)


@healthy(
    "missing_activation",
    "bad_gain",
    source="Howard et al. 2017: depthwise then pointwise convolution without an activation between",
)
def h_separable(seed: int) -> Case:
    def block(a: int, b: int) -> list[nn.Module]:
        return [
            nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False),
            nn.Conv2d(a, b, 1, bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
        ]

    model = nn.Sequential(
        *conv_block(1, 12, nn.BatchNorm2d, nn.ReLU, bias=False),
        *block(12, 16),
        nn.MaxPool2d(2),
        *block(16, 24),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(216, 4),
    )
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=adam(5e-3), max_steps=140, **CE)


@healthy("missing_activation", "wrong_last_activation", source="Lin et al. 2014: global average pooling straight into the loss")
def h_global_pool_head(seed: int) -> Case:
    model = nn.Sequential(
        *conv_block(1, 12, nn.BatchNorm2d, nn.ReLU),
        nn.MaxPool2d(2),
        *conv_block(12, 16, nn.BatchNorm2d, nn.ReLU),
        nn.Conv2d(16, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=adam(1e-2), max_steps=160, **CE)


@healthy("class_imbalance", "shape_broadcast", source="Ronneberger et al. 2015: pixel-wise BCE, few pixels are foreground")
def h_unet(seed: int) -> Case:
    return Case(
        seed=seed,
        model=UNet(),
        data=data.masks(seed),
        optimizer=adam(5e-3),
        max_steps=100,
        batch_size=16,
        loss=F.binary_cross_entropy_with_logits,
        metric="jaccard",
    )


def dice_loss(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    overlap = (p * target).sum((1, 2, 3))
    return (1 - (2 * overlap + 1) / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)).mean()


@healthy("loss_reduction", "class_imbalance", source="Milletari et al. 2016: soft Dice loss on a U-net")
def h_dice(seed: int) -> Case:
    return Case(
        seed=seed,
        model=UNet(),
        data=data.masks(seed),
        optimizer=adam(5e-3),
        max_steps=100,
        batch_size=16,
        loss=dice_loss,
        metric="jaccard",
    )


@healthy("dropout_active_in_eval", source="channel dropout between convolutions, off in evaluation")
def h_dropout2d(seed: int) -> Case:
    model = nn.Sequential(
        *conv_block(1, 16, None, nn.ReLU),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.4),
        *conv_block(16, 24, None, nn.ReLU),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.6),
        nn.Linear(216, 4),
    )
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=adam(3e-3), **CE)


@healthy("bad_data", "unnormalised_input", source="bright sparse pictures: most pixels are exactly 0")
def h_sparse_pictures(seed: int) -> Case:
    split = data.replace(data.digits(seed, flat=False), 0, lambda x: (x - x.min()).where(x > 0.5, 0.0))
    return Case(seed=seed, model=convnet(size=8, classes=10, width=12), data=split, optimizer=adam(5e-3), **CE)


class StochasticDepth(nn.Module):
    """Huang et al. 2016: a residual branch that is skipped for whole batches while training."""

    def __init__(self, width: int, survival: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *conv_block(width, width, nn.BatchNorm2d, nn.ReLU), *conv_block(width, width, nn.BatchNorm2d, None)
        )
        self.survival = survival

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.relu(x + self.survival * self.branch(x))
        return F.relu(x + self.branch(x)) if torch.rand(()) < self.survival else x


@healthy(
    "frozen_by_accident",
    "not_in_optimizer",
    "detached_subgraph",
    source="stochastic depth: skipped branches get no gradient at all",
)
def h_stochastic_depth(seed: int) -> Case:
    blocks = [StochasticDepth(10, survival) for survival in (0.9, 0.7, 0.5)]
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, stride=2, padding=1), *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 4)
    )
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.05), max_steps=160, **CE)


@healthy("saturation", "dead_relu", source="LeNet: tanh convolutions with average pooling")
def h_lenet_tanh(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )
    return Case(seed=seed, model=model, data=data.digits(seed, flat=False), optimizer=sgd(0.1), **CE)


class Patches(nn.Module):
    """A small vision transformer: patches as tokens, a class token that starts at zero."""

    def __init__(self, width: int = 24, classes: int = 10) -> None:
        super().__init__()
        self.cut = nn.Conv2d(1, width, 2, stride=2)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.position
        return self.head(self.norm(self.encoder(tokens)[:, 0]))


@healthy(
    "init_symmetry",
    "init_vanishing",
    source="Dosovitskiy et al. 2021: a tiny vision transformer, class token at zero, zero head",
)
def h_vision_transformer(seed: int) -> Case:
    model = Patches()
    nn.init.zeros_(model.head.weight)
    return Case(seed=seed, model=model, data=data.digits(seed, flat=False), optimizer=adamw(3e-3), **CE)


@healthy("wrong_loss", source="multi-label pictures: does it show stripes, is it bright at the left, at the top?")
def h_conv_multi_label(seed: int) -> Case:
    train, val = data.stamps(seed, classes=4)
    train, val = data.replace((train, val), 1, lambda y: torch.stack([y % 2, y // 2, (y > 0).long()], 1).float())
    return Case(seed=seed, model=convnet(classes=3), data=(train, val), optimizer=adam(5e-3), max_steps=160, **BCE)


@healthy("missing_activation", source="average pooling and strided convolutions with ReLU between")
def h_conv_average(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 4),
    )
    return Case(seed=seed, model=init_weights(model, he), data=data.gratings(seed), optimizer=adam(4e-3), **CE)


@healthy("shape_broadcast", "wrong_loss", source="how bright and striped a picture is: one number from global pooling")
def h_picture_regression(seed: int) -> Case:
    split = data.replace(data.masks(seed, n=768), 1, lambda y: (y.mean((1, 2, 3))[:, None] - 0.14) / 0.08)
    model = nn.Sequential(
        *conv_block(1, 12, None, nn.ReLU),
        nn.MaxPool2d(2),
        *conv_block(12, 16, None, nn.ReLU),
        nn.Conv2d(16, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Case(seed=seed, model=model, data=split, optimizer=adam(5e-3), **MSE)
