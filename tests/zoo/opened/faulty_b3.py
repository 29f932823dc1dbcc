"""Held-out: pictures: segmentation, residual networks, averaged weights, autoencoders, mixing, with their healthy twins."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import digits, gratings, masks, replace, rng, stamps
from tests.zoo.more_data import shapes
from tests.zoo.nets import CE, ResNet, UNet, adam, adamw, convnet, mlp, sgd


# ------------------------------------------------------------------------------------------ cells
class Flipped(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and masks, mirrored at random: together, or only the picture."""

    def __init__(self, data: Any, both: bool = True) -> None:
        (self.x, self.y), self.both = data.tensors, both

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = self.x[i], self.y[i]
        for dim in (1, 2):
            if torch.rand(()) < 0.5:
                x, y = x.flip(dim), y.flip(dim) if self.both else y
        return x, y


def bce_and_dice(output: Tensor, target: Tensor) -> Tensor:
    share = output.sigmoid()
    dice = 2 * (share * target).sum((1, 2, 3)) / (share + target).sum((1, 2, 3)).clamp_min(1e-6)
    return F.binary_cross_entropy_with_logits(output, target) + 1 - dice.mean()


@healthy("labels_broken", "loss_sign", source="cell segmentation: U-Net, BCE + Dice, flips of picture and mask together")
def h_cell_masks(seed: int) -> Case:
    train, val = masks(seed)
    model = UNet()
    model.bottom.append(nn.Dropout2d(0.1))
    model.down.append(nn.Dropout2d(0.1))
    case = Case(seed=seed, model=model, data=(Flipped(train), val), loss=bce_and_dice, metric="jaccard", optimizer=adam(3e-3))
    case.max_steps, case.batch_size = 160, 16
    return case


@faulty("labels_broken", twin="h_cell_masks", source="the transform flips the picture and not the mask")
def f_cell_flips_without_mask(case: Case) -> None:
    case.data[0].both = False


@faulty("train_val_mismatch", twin="h_cell_masks", source="validated on the bright-field channel: dark cells on bright ground")
def f_cell_negative_at_validation(case: Case) -> None:
    case.data = case.data[0], replace((case.data[1],) * 2, 0, torch.neg)[1]


@faulty(
    "dropout_too_high",
    twin="h_cell_masks",
    source="keep probability passed as drop probability, above and below",
)
def f_cell_keep_for_drop(case: Case) -> None:
    case.model.down[-1].p = case.model.bottom[-1].p = 0.9


# ------------------------------------------------------------------------------------------ badges
def badges(seed: int) -> Any:
    return replace(shapes(seed), 0, lambda x: (x - 0.35) / 0.25)


def cosine(optimizer: Any) -> Any:
    return {"scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 220), "interval": "step"}


@healthy("lr_schedule", "lr_too_high", source="everyday picture classifier: small ResNet, Nesterov, cosine to zero")
def h_badge_resnet(seed: int) -> Case:
    model = ResNet(channels=3, width=12, depth=3)
    case = Case(seed=seed, model=model, data=badges(seed), optimizer=sgd(0.05, nesterov=True, weight_decay=5e-4), **CE)
    case.scheduler, case.max_steps = cosine, 220
    return case


class SetToEval(Supervised):
    """Each step begins with a look at the predictions."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        self.model.eval()
        with torch.no_grad():
            self.log("train_metric", self.metric.score(self.model(batch[0]), batch[1]))
        return super().training_step(batch, batch_idx)


@faulty("weight_decay_too_strong", twin="h_badge_resnet", source="SGD with the weight decay of AdamW recipes")
def f_badge_decay_of_another_optimiser(case: Case) -> None:
    case.optimizer = sgd(0.05, nesterov=True, weight_decay=0.3)


@faulty("bad_data", twin="h_badge_resnet", source="except: return torch.zeros(...): most files of a folder cannot be read")
def f_badge_unreadable_files(case: Case) -> None:
    train, val = case.data
    x, y = (t.clone() for t in train.tensors)
    x[torch.rand(len(x), generator=rng(731, case.seed)) < 0.9] = 0.0
    case.data = TensorDataset(x, y), val


@faulty("train_val_mismatch", twin="h_badge_resnet", source="validation pictures stay bytes: no ToTensor, no Normalize")
def f_badge_validated_on_bytes(case: Case) -> None:
    case.data = case.data[0], replace(shapes(case.seed), 0, lambda x: (255 * x).floor())[1]


# ------------------------------------------------------------------------------------------ stripes, narrow and deep
class Deep(nn.Module):
    """Fourteen convolutions with batch norm and no skip."""

    def __init__(self, width: int = 8, depth: int = 14, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for i in range(depth):
            self.body.extend([nn.Conv2d(width if i else 1, width, 3, padding=1, bias=False), norm(width), nn.ReLU()])
        self.head = nn.Linear(4 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(F.max_pool2d(x, 2)), 2).flatten(1))


@healthy("init_vanishing", source="plain deep convolutions held up by batch norm alone")
def h_stripes_deep_norm(seed: int) -> Case:
    case = Case(seed=seed, model=Deep(), data=gratings(seed), optimizer=adamw(3e-3, weight_decay=0.02), **CE)
    case.max_steps = 250
    return case


@faulty(
    "bn_eval_in_train", twin="h_stripes_deep_norm", source="model.eval() for a training accuracy, and never back to train()"
)
def f_stripes_eval_for_a_look(case: Case) -> None:
    case.module = SetToEval


class FrozenNorm(nn.Module):
    """Detection code's batch norm with fixed statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


@faulty("bn_eval_in_train", "init_vanishing", twin="h_stripes_deep_norm", source="FrozenBatchNorm of detectors, from scratch")
def f_stripes_frozen_norm_from_scratch(case: Case) -> None:
    case.model = Deep(norm=FrozenNorm)


# ------------------------------------------------------------------------------------------ a mean teacher
class Averaged(Supervised):
    """Validates with an exponential average of the weights."""

    buffers_too = True

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.teacher = deepcopy(self.model).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.model)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
        if self.buffers_too:
            for slow, fast in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
                slow.copy_(fast)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        output = self.teacher.eval()(batch[0])
        self.log("val_loss", self.loss_fn(output, batch[1]))
        self.log("val_metric", self.metric.score(output, batch[1]))


class AveragedWithoutBuffers(Averaged):
    buffers_too = False


@healthy(
    "not_in_optimizer", "frozen_by_accident", "no_update", "bn_stats", source="EMA of weights and buffers, as timm's ModelEma"
)
def h_stamps_averaged(seed: int) -> Case:
    case = Case(seed=seed, model=convnet(norm=nn.BatchNorm2d), data=stamps(seed), optimizer=adam(3e-3), module=Averaged, **CE)
    case.max_steps = 200
    case.frozen = [f"teacher.{name}" for name, _ in case.model.named_parameters()]
    return case


@faulty("bn_stats", twin="h_stamps_averaged", source="EMA over named_parameters(): batch norm's buffers stay as they began")
def f_stamps_averaged_without_buffers(case: Case) -> None:
    case.module = AveragedWithoutBuffers


# ------------------------------------------------------------------------------------------ noisy digits
class Denoiser(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(width, 1, 2, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Denoise(Supervised):
    """The clean picture from a noisy copy."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        return super().training_step([batch[0] + 0.4 * torch.randn_like(batch[0]), batch[0]], batch_idx)


def clean(seed: int) -> Any:
    return tuple(TensorDataset(part.tensors[0], part.tensors[0]) for part in digits(seed, flat=False))


@healthy("train_val_mismatch", source="denoising autoencoder: noise in training, clean pictures in validation")
def h_scribble_denoiser(seed: int) -> Case:
    case = Case(
        seed=seed, model=Denoiser(), data=clean(seed), loss=F.mse_loss, metric="r2", optimizer=adam(5e-3), module=Denoise
    )
    case.max_steps = 350
    return case


@faulty("wrong_loss", twin="h_scribble_denoiser", source="BCE of autoencoder tutorials on pictures that are standardised")
def f_scribble_cross_entropy_of_greys(case: Case) -> None:
    case.loss = F.binary_cross_entropy_with_logits


# ------------------------------------------------------------------------------------------ mixed digits
class Mixed(Supervised):
    """Mixup: two pictures, two labels, one share."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        share = torch.distributions.Beta(0.3, 0.3).sample().item()
        order = torch.randperm(len(x))
        output = self(share * x + (1 - share) * x[order])
        return share * self.loss_fn(output, y) + (1 - share) * self.loss_fn(output, y[order])


@healthy("labels_broken", "batch_mixing", source="Zhang et al. 2018: mixup")
def h_numerals_mixup(seed: int) -> Case:
    case = Case(seed=seed, model=mlp([64, 48, 10]), data=digits(seed), optimizer=adam(3e-3), module=Mixed, **CE)
    case.max_steps = 250
    return case


@faulty("lr_too_high", twin="h_numerals_mixup", source="SGD's rate left in place when changing to Adam")
def f_numerals_rate_of_sgd(case: Case) -> None:
    case.optimizer = adam(0.3)
