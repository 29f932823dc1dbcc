"""Pictures: classification and segmentation, and what goes wrong in them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import gratings, masks, replace, rng, stamps
from tests.zoo.more_data import centred, shapes
from tests.zoo.nets import CE, UNet, adam, conv_block, plain_deep, sgd


class Icons(nn.Module):
    """Features of three strided convolutions, average pooling, a head of two layers."""

    def __init__(self, width: int = 12, classes: int = 4, norm: Any = nn.BatchNorm2d) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_block(3, width, norm, nn.ReLU, False),
            nn.MaxPool2d(2),
            *conv_block(width, 2 * width, norm, nn.ReLU, False),
            nn.MaxPool2d(2),
            *conv_block(2 * width, 2 * width, norm, nn.ReLU, False),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32 * width, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


@healthy(source="everyday icon recognition, CNN with batch norm and Adam")
def h_icon_recogniser(seed: int) -> Case:
    return Case(seed=seed, model=Icons(), data=centred(shapes(seed)), optimizer=adam(2e-3), max_steps=160, **CE)


@faulty("init_symmetry", twin="h_icon_recogniser", source="MuNN/DeepCrime: weights initialised to a constant")
def f_icons_constant_kernels(case: Case) -> None:
    for p in case.model.parameters():
        if p.ndim > 1:
            nn.init.constant_(p, 0.02)


@faulty(
    "dropout_active_in_eval", "dropout_too_high", twin="h_icon_recogniser", source="F.dropout without training=self.training"
)
def f_icons_functional_dropout(case: Case) -> None:
    model = case.model
    model.features, model.classifier = (
        nn.Sequential(
            *(layer for module in part for layer in (module, *([AlwaysDrop()] if isinstance(module, nn.ReLU) else [])))
        )
        for part in (model.features, model.classifier)
    )


class AlwaysDrop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


@faulty("bn_stats", twin="h_icon_recogniser", source="TensorFlow's momentum convention (0.999) carried over as 0.001")
def f_icons_foreign_momentum(case: Case) -> None:
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0005


@faulty("lr_too_high", twin="h_icon_recogniser", source="DeepCrime: learning rate changed by orders of magnitude")
def f_icons_hasty_adam(case: Case) -> None:
    case.optimizer = adam(0.8)


@faulty("bias_before_bn", twin="h_icon_recogniser", source="code review: the bias is cancelled by batch norm", note=True)
def f_icons_idle_bias(case: Case) -> None:
    for name, module in list(case.model.features.named_children()):
        if isinstance(module, nn.Conv2d):
            conv = nn.Conv2d(module.in_channels, module.out_channels, 3, padding=1)
            setattr(case.model.features, name, conv)


# ------------------------------------------------------------------------------------------ segmentation
@healthy(source="lesion segmentation in miniature: U-Net, BCE per pixel, SGD with momentum")
def h_lesion_unet_m(seed: int) -> Case:
    return Case(
        seed=seed, model=UNet(), data=masks(seed), loss=F.binary_cross_entropy_with_logits, metric="jaccard",
        optimizer=sgd(0.2), max_steps=180,
    )  # fmt: skip


def soft_dice(output: Tensor, target: Tensor) -> Tensor:
    p = output.sigmoid().flatten(1)
    t = target.flatten(1)
    return (2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + 1)).mean()


@faulty("loss_sign", "wrong_loss", twin="h_lesion_unet_m", source="the Dice coefficient is minimised, not 1 - Dice")
def f_lesion_dice_itself_m(case: Case) -> None:
    case.loss = soft_dice


@faulty("labels_broken", twin="h_lesion_unet_m", source="augmentation flips the picture and not its mask")
def f_lesion_flipped_alone(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: x.flip(-1), val=False)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ textures, deep plain stacks
@healthy(source="texture classifier: eight plain convolutions with batch norm, SGD with momentum")
def h_fabric_stack(seed: int) -> Case:
    model = plain_deep(8, norm=nn.BatchNorm2d)
    return Case(seed=seed, model=model, data=gratings(seed, noise=0.4), optimizer=sgd(0.03), max_steps=180, **CE)


class EvalThroughout(Supervised):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.model.eval()
        return super().training_step(batch, batch_idx)


@faulty("bn_eval_in_train", twin="h_fabric_stack", source="model.eval() in a helper that the training step calls")
def f_fabric_eval_helper(case: Case) -> None:
    case.module = EvalThroughout


@faulty("init_vanishing", "bad_gain", twin="h_fabric_stack", source="batch norm taken out, N(0, 0.01) initialisation kept")
def f_fabric_faint_kernels(case: Case) -> None:
    case.model = plain_deep(8)
    for p in case.model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=0.01)


@faulty("clip_too_small", "lr_too_low", twin="h_fabric_stack", source="gradient_clip_val copied from an RL project")
def f_fabric_tight_clip(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 3e-4}


# ------------------------------------------------------------------------------------------ rare defects
def defect_net() -> nn.Sequential:
    return nn.Sequential(
        *conv_block(1, 12, nn.BatchNorm2d, nn.ReLU), *conv_block(12, 12, nn.BatchNorm2d, nn.ReLU),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


@healthy(source="defect inspection on a balanced set")
def h_defect_inspection(seed: int) -> Case:
    data = stamps(seed, n=1200, noise=2.0)
    return Case(
        seed=seed, model=defect_net(), data=data, loss=F.cross_entropy, metric="balanced_accuracy", optimizer=adam(5e-3),
        max_steps=240,
    )  # fmt: skip


@faulty("class_imbalance", twin="h_defect_inspection", source="good parts photographed far more often than bad ones")
def f_defect_mostly_good(case: Case) -> None:
    train, val = stamps(case.seed, n=1200, noise=2.0)
    x, y = train.tensors
    keep = (y == 0) | (torch.rand(len(y), generator=rng(901, case.seed)) < 0.03)
    case.data = TensorDataset(x[keep], y[keep]), val


@faulty("bad_data", "unnormalised_input", twin="h_defect_inspection", source="most files failed to load and came back blank")
def f_defect_blank_files(case: Case) -> None:
    blank = torch.rand(len(case.data[0]), 1, 1, 1, generator=rng(902, case.seed)) < 0.95  # type: ignore[arg-type]
    case.data = replace(case.data, 0, lambda x: x.masked_fill(blank, 0.0), val=False)  # type: ignore[arg-type]
