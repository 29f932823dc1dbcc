"""Held-out faults of pictures: raw bytes, augmentation, patches, masks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import digits, masks, rng
from tests.zoo.nets import CE, adam, adamw, conv_block, convnet


# ------------------------------------------------------------------------------------------ arrows, as bytes
class Bytes(Dataset[Any]):
    """Pictures kept as bytes `[n, height, width, 3]`, made into standardised floats when they are asked for."""

    def __init__(self, x: Tensor, y: Tensor, to_float: Callable[[Tensor], Tensor]) -> None:
        self.x, self.y, self.to_float = x, y, to_float

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.to_float(self.x[i]), self.y[i]


def scaled(x: Tensor) -> Tensor:
    return (x.permute(2, 0, 1).float() / 255 - 0.4) / 0.22


def brighter(x: Tensor) -> Tensor:
    """Standardised after a random change of brightness in floating point."""
    return scaled((x.float() * (0.8 + 0.4 * torch.rand(1)) + 30 * torch.rand(1) - 15).clamp(0, 255))


def arrows(seed: int, n: int = 1080, size: int = 12) -> tuple[Tensor, Tensor]:
    """Arrow heads that point right, left, down or up."""
    g = rng(901, seed)
    y, at = torch.randint(4, (n,), generator=g), torch.arange(size)
    centre = 4.5 + 2 * torch.rand(n, 2, 1, 1, generator=g)
    down, right = at[:, None] - centre[:, 0] + 0 * at, at - centre[:, 1] + 0 * at[:, None]
    along = torch.where((y < 2)[:, None, None], right, down) * (1 - 2 * (y % 2))[:, None, None]
    across = torch.where((y < 2)[:, None, None], down, right)
    mask = ((along.abs() < 3.6) & (across.abs() < (3.6 - along) / 2))[..., None].float()
    paper, ink = 30 + 90 * torch.rand(n, 1, 1, 3, generator=g), 110 + 70 * torch.rand(n, 1, 1, 3, generator=g)
    x = paper * (1 - mask) + (ink + 0.3 * paper) * mask + 25 * torch.randn(n, size, size, 3, generator=g)
    return x.clamp(0, 255).to(torch.uint8), y


@healthy("train_val_mismatch", "bad_data", source="pictures stored as bytes; brightness changed in training only")
def h_j_arrows(seed: int) -> Case:
    x, y = arrows(seed)
    data = Bytes(x[:720], y[:720], brighter), Bytes(x[720:], y[720:], scaled)
    return Case(
        seed=seed, model=convnet(3, norm=nn.BatchNorm2d, bias=False), data=data, optimizer=adam(3e-3), max_steps=160, **CE
    )


@faulty("labels_broken", "bad_data", twin="h_j_arrows", source="random mirroring where left and right are classes")
def f_j_arrows_mirrored(case: Case) -> None:
    case.data[0].to_float = lambda x: brighter(x.flip(1) if torch.rand(1) < 0.5 else x)  # type: ignore[attr-defined]


@faulty("train_val_mismatch", "bad_data", twin="h_j_arrows", source="contrast raised in uint8 arithmetic, which wraps around")
def f_j_arrows_wrapped(case: Case) -> None:
    case.data[0].to_float = lambda x: scaled(x * 3 + 20)  # type: ignore[attr-defined]


@faulty("bias_before_bn", twin="h_j_arrows", note=True, source="convolutions keep the bias that batch norm takes away")
def f_j_arrows_biases(case: Case) -> None:
    case.model = convnet(3, norm=nn.BatchNorm2d)


# ------------------------------------------------------------------------------------------ patches
class Attention(nn.Module):
    def __init__(self, width: int, over: int = -1) -> None:
        super().__init__()
        self.qkv, self.out, self.over = nn.Linear(width, 3 * width), nn.Linear(width, width), over
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        score = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        return x + self.out(score.softmax(self.over) @ v)


class Patches(nn.Module):
    """A small vision transformer on 2 x 2 patches with a class token."""

    def __init__(self, width: int = 32, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.1 * torch.randn(17, width))
        self.mixers = nn.ModuleList(Attention(width) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def tokens(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            x = mixer(x)
            x = x + mlp(x)
        return self.head(x[:, 0])


@healthy(source="a tiny vision transformer on digits, AdamW")
def h_j_patches(seed: int) -> Case:
    return Case(seed=seed, model=Patches(), data=digits(seed, flat=False), optimizer=adamw(3e-3), max_steps=260, **CE)


@faulty(
    "init_exploding", "bad_gain", "saturation", twin="h_j_patches", source="qkv drawn from N(0, 1): a softmax of one winner"
)
def f_j_patches_loud(case: Case) -> None:
    for mixer in case.model.mixers:  # type: ignore[union-attr]
        nn.init.normal_(mixer.qkv.weight, std=1.0)
        nn.init.normal_(mixer.out.weight, std=1.0)


@faulty("dropout_active_in_eval", twin="h_j_patches", source="F.dropout called without training=self.training")
def f_j_patches_functional_dropout(case: Case) -> None:
    model: Any = case.model
    plain = model.tokens
    model.tokens = lambda x: F.dropout(plain(x), 0.5)


@faulty("not_in_optimizer", twin="h_j_patches", source="decay groups built by name; one half of them never handed over")
def f_j_patches_no_matrices(case: Case) -> None:
    case.optimizer = lambda model: torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=3e-3, weight_decay=0.0)


@faulty("lr_too_high", twin="h_j_patches", source="rate of plain SGD kept when the optimiser became AdamW")
def f_j_patches_rate_of_sgd(case: Case) -> None:
    case.optimizer = adamw(0.1)


# ------------------------------------------------------------------------------------------ masks
class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv_block(1, width, nn.BatchNorm2d, nn.ReLU, bias=False))
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), *conv_block(width, 2 * width, nn.BatchNorm2d, nn.ReLU, bias=False), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(*conv_block(3 * width, width, nn.BatchNorm2d, nn.ReLU, bias=False), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.up(torch.cat([skip, self.deep(skip)], 1))


def dice(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid()
    return (2 * (p * target).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + target.sum((1, 2, 3)) + 1)


def dice_and_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target) + (1 - dice(output, target)).mean()


@healthy("class_imbalance", source="U-Net with cross entropy and Dice loss on small discs")
def h_j_discs(seed: int) -> Case:
    return Case(
        seed=seed, model=UNet(), data=masks(seed, 480), loss=dice_and_entropy, metric="jaccard", optimizer=adam(3e-3),
        batch_size=16, max_steps=160,
    )  # fmt: skip


@faulty("loss_sign", twin="h_j_discs", source="Dice coefficient added to the loss instead of one minus it")
def f_j_discs_dice_added(case: Case) -> None:
    case.loss = lambda output, target: F.binary_cross_entropy_with_logits(output, target) + dice(output, target).mean()


@faulty("labels_broken", twin="h_j_discs", source="masks written as (x, y), pictures as (row, column)")
def f_j_discs_transposed(case: Case) -> None:
    x, y = case.data[0].tensors  # type: ignore[attr-defined]
    case.data = TensorDataset(x, y.transpose(2, 3).contiguous()), case.data[1]


@faulty("lr_schedule", twin="h_j_discs", source="decay of 0.9 meant for epochs, stepped with each batch")
def f_j_discs_decay_per_step(case: Case) -> None:
    case.scheduler = lambda optimizer: {
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8), "interval": "step",
    }  # fmt: skip
