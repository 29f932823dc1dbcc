"""Held-out healthy cases: classifiers of pictures."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import digits, stamps
from tests.zoo.more_data import centred, shapes
from tests.zoo.nets import CE, ResNet, adam, adamw, convnet, he, init_weights, sgd


def each_step(shape: Callable[[int], float]) -> Callable[[Optimizer], Any]:
    """A factor of the learning rate for each step."""
    return lambda optimizer: {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, shape), "interval": "step"}


def warm_cosine(warm: int, total: int) -> Callable[[Optimizer], Any]:
    """Up in a line, down in half a cosine."""
    return each_step(lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(i / total, 1)))))


@healthy(source="LeCun 1998: LeNet with tanh and average pooling, plain SGD")
def h_lenet_digits_uc(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip
    return Case(seed=seed, model=model, data=digits(seed, flat=False), optimizer=sgd(0.05), max_steps=240, **CE)


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, each with norm and ReLU6."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(a, a, 3, stride, padding=1, groups=a, bias=False), nn.BatchNorm2d(a), nn.ReLU6(),
            nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU6(),
        )  # fmt: skip


@healthy(source="Howard 2017: MobileNet, depthwise separable convolutions")
def h_mobile_blocks_uc(seed: int) -> Case:
    stem = [nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6()]
    model = nn.Sequential(
        *stem, Separable(12, 24, 2), Separable(24, 32, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )
    return Case(seed=seed, model=model, data=centred(shapes(seed, 1500)), optimizer=adam(3e-3), max_steps=200, **CE)


class PatchTransformer(nn.Module):
    """Patches, a class token, pre-norm encoder layers, a head that starts at zero."""

    def __init__(self, size: int = 8, patch: int = 2, width: int = 32, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, (size // patch) ** 2 + 1, width), std=0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@healthy("init_symmetry", "init_vanishing", "lr_schedule", source="Dosovitskiy 2021: ViT, zero head, warm-up and cosine")
def h_patch_transformer_uc(seed: int) -> Case:
    return Case(
        seed=seed, model=PatchTransformer(), data=digits(seed, flat=False), optimizer=adamw(3e-3, weight_decay=0.05),
        scheduler=warm_cosine(30, 400), max_steps=400, **CE,
    )  # fmt: skip


@healthy("init_symmetry", "init_vanishing", "dead_relu", source="Goyal 2017: the last gain of each residual branch starts at 0")
def h_branch_gains_at_zero_uc(seed: int) -> Case:
    model = ResNet(depth=4)
    for block in model.blocks:
        nn.init.zeros_(block.norm2.weight)
    return Case(
        seed=seed, model=model, data=stamps(seed, 1200), optimizer=sgd(0.05, nesterov=True, weight_decay=5e-4), max_steps=200,
        **CE,
    )  # fmt: skip


class FixupBlock(nn.Module):
    """Two convolutions without norm, scalar biases and a scalar gain; the second starts at zero."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.shifts, self.gain = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(()))
        he(self.first.weight).data.div_(depth**0.5)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.shifts
        return F.relu(x + self.gain * self.second(F.relu(self.first(x + a) + b) + c) + d)


@healthy("init_symmetry", "init_vanishing", source="Zhang 2019: Fixup, residual learning without normalisation")
def h_fixup_pictures_uc(seed: int) -> Case:
    head = nn.Linear(48, 10)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    stem = nn.Conv2d(1, 12, 3, padding=1)
    he(stem.weight)
    model = nn.Sequential(stem, nn.ReLU(), *(FixupBlock(12, 5) for _ in range(5)), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)

    def optimizer(model: nn.Module) -> Optimizer:
        scalars = [p for p in model.parameters() if p.shape in ((), (4,)) and p is not head.bias]
        rest = [p for p in model.parameters() if all(p is not q for q in scalars)]
        return torch.optim.SGD([{"params": rest}, {"params": scalars, "lr": 0.002}], lr=0.02, momentum=0.9)

    return Case(
        seed=seed, model=model, data=digits(seed, flat=False), optimizer=optimizer, scheduler=warm_cosine(20, 250),
        max_steps=250, **CE,
    )  # fmt: skip


class Mixed(Supervised):
    """Trains on weighted sums of two pictures and of their losses."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        x, y = batch
        share, order = torch.distributions.Beta(0.4, 0.4).sample(), torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[order])
        loss = share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[order])
        self.log("train_loss", loss)
        return loss


@healthy("labels_broken", "train_val_mismatch", source="Zhang 2018: mixup; the training loss stays far above the other")
def h_mixup_digits_uc(seed: int) -> Case:
    model = convnet(classes=10, size=8, width=12, norm=nn.BatchNorm2d, bias=False)
    return Case(seed=seed, model=model, data=digits(seed, flat=False), optimizer=sgd(0.05), module=Mixed, max_steps=250, **CE)


class Jittered(Dataset[Any]):
    """Pictures turned over, moved and brightened anew at each visit."""

    def __init__(self, part: Dataset[Any]) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)  # type: ignore[arg-type]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.part[i]
        x = x.flip(2) if torch.rand(()) < 0.5 else x
        top, left = torch.randint(3, (2,)).tolist()
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")[:, top : top + 16, left : left + 16]
        return (0.9 + 0.2 * torch.rand(())) * x + 0.1 * torch.randn(()), y


@healthy("train_val_mismatch", source="torchvision's references: random crops, flips and brightness in training only")
def h_jittered_shapes_uc(seed: int) -> Case:
    train, val = centred(shapes(seed, 1200))
    model = convnet(channels=3, width=12, size=16, norm=nn.BatchNorm2d, bias=False)
    return Case(seed=seed, model=model, data=(Jittered(train), val), optimizer=adam(3e-3), max_steps=220, **CE)


class Excited(nn.Module):
    """A convolution whose channels are weighted by gates that see the whole picture."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.gate = nn.Sequential(nn.Linear(b, b // 2), nn.SiLU(), nn.Linear(b // 2, b), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(x * self.gate(x.mean((2, 3)))[:, :, None, None], 2)


@healthy(source="Hu 2018: squeeze and excitation, an everyday classifier")
def h_squeezed_shapes_uc(seed: int) -> Case:
    model = nn.Sequential(Excited(3, 12), Excited(12, 24), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 4))
    return Case(
        seed=seed, model=model, data=centred(shapes(seed, 1500)), optimizer=adamw(3e-3, weight_decay=0.01), max_steps=200, **CE
    )


@healthy(source="Springenberg 2015: strides instead of pooling, class maps averaged, no linear layer")
def h_all_convolutions_uc(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(), nn.Dropout2d(0.1),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 10, 4), nn.Flatten(),
    )  # fmt: skip
    return Case(
        seed=seed, model=init_weights(model, he), data=digits(seed, flat=False), optimizer=adam(2e-3), max_steps=250, **CE
    )
