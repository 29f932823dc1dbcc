"""Held-out healthy cases: keypoints, depth, counting, segmentation, defects, robots, decisions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.data import Split, rng, split, standardise
from tests.zoo.nets import BCE, CE, MSE, ResNet, adam, adamw, mlp, sgd
from tests.zoo.unseen.healthy_g1 import conv_bn, per_step, warmed


def distance(centre: Tensor, size: int) -> Tensor:
    """Distance `[n, size, size]` of each pixel from a centre `[n, 2]`."""
    at = torch.arange(size)
    return ((at[:, None] - centre[:, 0, None, None]).square() + (at - centre[:, 1, None, None]).square()).sqrt()


# ------------------------------------------------------------------------------------------ pictures
def joints(seed: int, n: int = 1200, size: int = 16) -> Split:
    """A disc and a ring in noise; their centres `[n, 4]`, the edges of the picture being -1 and 1."""
    g = rng(7501, seed)
    spots = [3 + (size - 7) * torch.rand(n, 2, generator=g) for _ in range(2)]
    disc, ring = (distance(spot, size) for spot in spots)
    x = 2 * (disc < 1.8) + 1.6 * ((ring - 2.5).abs() < 0.6) + 0.3 * torch.randn(n, size, size, generator=g)
    return split(standardise(x, None)[:, None], torch.cat(spots, 1) / (size - 1) * 2 - 1)


class SoftArgmax(nn.Module):
    """One heat map per joint, its expected place (integral regression)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.maps = nn.Sequential(*conv_bn(1, width), *conv_bn(width, width), nn.Conv2d(width, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        heat = self.maps(x)
        weight = heat.flatten(2).softmax(2).view_as(heat)
        at = torch.linspace(-1, 1, x.shape[-1], device=x.device)
        return torch.stack([(weight.sum(3) * at).sum(2), (weight.sum(2) * at).sum(2)], 2).flatten(1)


def rooms(seed: int, n: int = 750, size: int = 12) -> Split:
    """Two channels, brightness that fades with depth and the height in the picture; the depth, 2 to 12 metres."""
    g = rng(7502, seed)
    row = torch.linspace(0, 1, size)[:, None].expand(size, size)
    floor = (3 + 3 * torch.rand(n, 1, 1, generator=g)) + 5 * (1 - row)
    near = distance(size * (0.25 + 0.5 * torch.rand(n, 2, generator=g)), size) < 3.2
    depth = torch.where(near, 2 + 2 * torch.rand(n, 1, 1, generator=g), floor)
    bright = (-depth / 5).exp() * (1 + 0.1 * torch.randn(n, size, size, generator=g))
    x = torch.stack([standardise(bright, None), standardise(row, None).expand(n, -1, -1)], 1)
    return split(x, depth[:, None])


def scale_invariant(output: Tensor, target: Tensor) -> Tensor:
    """Eigen 2014: variance and half the squared mean of the error of the log depth."""
    off = (output - target.log()).flatten(1)
    return (off.square().mean(1) - 0.5 * off.mean(1).square()).mean()


def colonies(seed: int, n: int = 1500, size: int = 16) -> Split:
    """None to eight small discs in noise; how many, `[n, 1]`."""
    g = rng(7503, seed)
    y, x = torch.randint(9, (n,), generator=g), torch.zeros(n, size, size)
    for k in range(8):
        spot = 2 + (size - 5) * torch.rand(n, 2, generator=g)
        x += (y > k)[:, None, None] * (-distance(spot, size).square() / 2).exp()
    x = 2 * x + 0.25 * torch.randn(n, size, size, generator=g)
    return split(standardise(x, None)[:, None], y.float()[:, None])


class Density(nn.Module):
    """A non-negative density per pixel, summed; the density starts thin."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )
        nn.init.constant_(self.body[-1].bias, -4.0)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.body(x)).sum((2, 3))


def lesions(seed: int, n: int = 750, size: int = 16) -> Split:
    """An ellipse of its own brightness on skin; which pixels it covers, `[n, 1, 16, 16]`."""
    g = rng(7504, seed)
    at, centre = torch.arange(size), 4 + 8 * torch.rand(n, 2, 1, 1, generator=g)
    axes = 2 + 2.5 * torch.rand(n, 2, 1, 1, generator=g)
    y = ((at[:, None] - centre[:, 0]) / axes[:, 0]).square() + ((at - centre[:, 1]) / axes[:, 1]).square() < 1
    skin = 0.4 * (0.3 * at + 6.3 * torch.rand(n, 1, 1, generator=g)).sin()
    x = skin + (1.3 + 0.3 * torch.randn(n, 1, 1, generator=g)) * y + 0.5 * torch.randn(n, size, size, generator=g)
    return split(standardise(x, None)[:, None], y.float()[:, None])


class SmallUNet(nn.Module):
    """Two levels, upsampling by interpolation, one skip connection."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.down, self.bottom = nn.Sequential(*conv_bn(1, width)), nn.Sequential(nn.MaxPool2d(2), *conv_bn(width, 2 * width))
        self.out = nn.Sequential(*conv_bn(3 * width, width), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, F.interpolate(self.bottom(skip), scale_factor=2)], 1))


def dice_and_bce(output: Tensor, target: Tensor) -> Tensor:
    chance = output.sigmoid().flatten(1)
    truth = target.flatten(1)
    dice = (2 * (chance * truth).sum(1) + 1) / (chance.sum(1) + truth.sum(1) + 1)
    return 0.5 * F.binary_cross_entropy_with_logits(output, target) + 0.5 * (1 - dice).mean()


def tiles(seed: int, n: int = 1200, size: int = 16) -> Split:
    """A woven texture of random phase; a third have a scratch across, `[n, 1]`."""
    g = rng(7505, seed)
    y, at = (torch.rand(n, generator=g) < 0.35).float(), torch.arange(size)
    phase = 6.3 * torch.rand(n, 2, 1, 1, generator=g)
    weave = 0.6 * ((1.6 * at[:, None] + phase[:, 0]).sin() + (1.6 * at + phase[:, 1]).sin())
    turn = 3.14 * torch.rand(n, 1, 1, generator=g)
    centre = 5 + 6 * torch.rand(n, 2, 1, 1, generator=g)
    off = turn.cos() * (at[:, None] - centre[:, 0]) + turn.sin() * (at - centre[:, 1])
    x = weave + 2.5 * y[:, None, None] * (off.abs() < 0.7) + 0.3 * torch.randn(n, size, size, generator=g)
    return split(standardise(x, None)[:, None], y[:, None])


@healthy(
    "wrong_last_activation",
    "saturation",
    "frozen_by_accident",
    source="pose: heat maps and soft-argmax (Sun 2018)",
)
def h_joint_heatmaps(seed: int) -> Case:
    return Case(seed=seed, model=SoftArgmax(), data=joints(seed), optimizer=adam(8e-3), max_steps=200, **MSE)


@healthy("wrong_loss", "unnormalised_target", source="depth from one picture: scale-invariant loss (Eigen 2014) of log depth")
def h_room_depth(seed: int) -> Case:
    model = nn.Sequential(*conv_bn(2, 12), *conv_bn(12, 16), nn.Conv2d(16, 1, 3, padding=1))
    return Case(
        seed=seed, model=model, data=rooms(seed), loss=scale_invariant, metric="log_r2", optimizer=adamw(5e-3),
        scheduler=warmed(10, 180), batch_size=16, max_steps=180,
    )  # fmt: skip


@healthy("bad_bias_init", "unnormalised_target", source="counting by a density map that is summed (Lempitsky 2010)")
def h_colony_density(seed: int) -> Case:
    return Case(seed=seed, model=Density(), data=colonies(seed), optimizer=adam(3e-3), max_steps=250, **MSE)


@healthy("wrong_loss", source="skin lesions: U-Net, half Dice, half binary cross entropy, Adam with cosine decay")
def h_lesion_unet(seed: int) -> Case:
    cosine = per_step(lambda o: CosineAnnealingLR(o, 150))
    return Case(
        seed=seed, model=SmallUNet(), data=lesions(seed), loss=dice_and_bce, metric="jaccard", optimizer=adam(5e-3),
        scheduler=cosine, batch_size=16, max_steps=150,
    )  # fmt: skip


@healthy(
    source="scratches on tiles: a small residual network, SGD with momentum and weight decay, gradient accumulation over 2"
)
def h_tile_scratches(seed: int) -> Case:
    return Case(
        seed=seed, model=ResNet(1, 10, 2, 1), data=tiles(seed), optimizer=sgd(0.03, weight_decay=1e-4), max_steps=150,
        trainer={"accumulate_grad_batches": 2}, **BCE,
    )  # fmt: skip


@healthy(source="scratches on tiles: three convolutions, max pooling, leaky ReLU, Adamax")
def h_tile_plain(seed: int) -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(12, 20, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(20, 24, 3, padding=1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 1),
    )  # fmt: skip
    return Case(
        seed=seed, model=model, data=tiles(seed), optimizer=lambda m: torch.optim.Adamax(m.parameters(), lr=5e-3),
        max_steps=220, **BCE,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ robots and decisions
def demonstrations(seed: int, n: int = 2400) -> Split:
    """Standardised states `[n, 8]` of an arm; what the expert commands, three bounded actions in [-1, 1]."""
    g = rng(7506, seed)
    x = torch.randn(n, 8, generator=g)
    goal = x[:, :3] - x[:, 3:6]
    action = (0.8 * goal - 0.4 * x[:, 5:8] + 0.3 * (2 * x[:, :3]).sin()).tanh()
    return split(x, (action + 0.03 * torch.randn(n, 3, generator=g)).clamp(-1, 1))


def arms(seed: int, n: int = 2100) -> Split:
    """Three joint angles in [-1.5, 1.5], standardised; where the hand is, standardised."""
    g = rng(7507, seed)
    q = 3 * torch.rand(n, 3, generator=g) - 1.5
    turn = q.cumsum(1)
    hand = torch.stack(
        [(turn.cos() * torch.tensor([1.0, 0.8, 0.5])).sum(1), (turn.sin() * torch.tensor([1.0, 0.8, 0.5])).sum(1)], 1
    )
    return split(standardise(q), standardise(hand + 0.02 * torch.randn(n, 2, generator=g)))


def logged(seed: int, n: int = 4500, actions: int = 4) -> Split:
    """Contexts, the action that a uniform policy took, the reward; and which action would have been best."""
    g = rng(7508, seed)
    x, taken = torch.randn(n, 6, generator=g), torch.randint(actions, (n,), generator=g)
    value = (x @ torch.randn(6, 8, generator=g) / 2).tanh() @ torch.randn(8, actions, generator=g)
    value = standardise(value)
    reward = value.gather(1, taken[:, None])[:, 0] + 0.3 * torch.randn(n, generator=g)
    return split(x, taken, reward, value.argmax(1))


class OffPolicy(Supervised):
    """The loss: minus the importance-weighted reward above its mean, minus a little entropy."""

    def objective(self, batch: Any) -> Tensor:
        x, taken, reward, _ = batch
        policy = self(x).log_softmax(1)
        weight = policy.gather(1, taken[:, None])[:, 0].exp() * policy.shape[1]
        entropy = -(policy.exp() * policy).sum(1).mean()
        return -(weight.clamp_max(4) * (reward - reward.mean())).mean() - 0.02 * entropy

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.objective(batch)
        self.log("train_loss", loss, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.objective(batch), batch_size=len(batch[0]))
        self.log("val_metric", self.metric.score(self(batch[0]), batch[-1]), batch_size=len(batch[0]))


def returns(seed: int, n: int = 2400) -> Split:
    """States of a cart `[n, 4]`, the noisy discounted return from there, standardised."""
    g = rng(7509, seed)
    x = torch.randn(n, 4, generator=g)
    y = -(x[:, 0] + 0.5 * x[:, 1]).square() - 2 * (x[:, 2] + 0.3 * x[:, 3]).abs() + 0.5 * (2 * x[:, 3]).cos()
    return split(x, standardise(y + 0.5 * torch.randn(n, generator=g))[:, None])


@healthy(
    "wrong_last_activation", "saturation", source="behaviour cloning of bounded actions: layer norm, tanh at the end, AdamW"
)
def h_demonstration_cloning(seed: int) -> Case:
    model = mlp([8, 48, 48, 3], nn.ReLU, norm=nn.LayerNorm, last=nn.Tanh())
    return Case(seed=seed, model=model, data=demonstrations(seed), optimizer=adamw(3e-3), batch_size=64, max_steps=250, **MSE)


@healthy(source="forward kinematics of an arm: plain MLP with Mish, Adam, inverse square root schedule")
def h_arm_kinematics(seed: int) -> Case:
    schedule = per_step(lambda o: LambdaLR(o, lambda t: min((t + 1) / 20, (20 / (t + 1)) ** 0.5)))
    model = mlp([3, 48, 48, 2], nn.Mish)
    return Case(seed=seed, model=model, data=arms(seed), optimizer=adam(1e-2), scheduler=schedule, max_steps=300, **MSE)


@healthy(
    "loss_sign",
    "labels_broken",
    "wrong_loss",
    source="off-policy policy gradient: importance weights, entropy bonus",
)
def h_logged_policy(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([6, 48, 48, 4], nn.Tanh), data=logged(seed), module=OffPolicy, optimizer=adam(4e-3),
        batch_size=128, max_steps=300, **CE,
    )  # fmt: skip


@healthy(source="value network from a batch of returns: two hidden layers, Huber loss, Adam, clipped gradients")
def h_cart_value(seed: int) -> Case:
    return Case(
        seed=seed, model=mlp([4, 64, 64, 1], nn.LeakyReLU), data=returns(seed), loss=nn.SmoothL1Loss(), metric="r2",
        optimizer=adam(2e-3), batch_size=64, max_steps=250, trainer={"gradient_clip_val": 1.0},
    )  # fmt: skip
