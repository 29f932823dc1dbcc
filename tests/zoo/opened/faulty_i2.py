"""Pictures: classifiers, residual networks, masks, transfer, normalisation."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import digits, gratings, masks, reorder, replace, stamps
from tests.zoo.more_data import centred, shapes
from tests.zoo.nets import CE, ResNet, UNet, adam, adamw, convnet, normal, plain_deep, sgd


# ------------------------------------------------------------------------------------------ a small colour classifier
class Snapshot(nn.Module):
    """Convolutions with batch norm, written out, dropout before the head."""

    drop = 0.2

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=bias), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 24, 3, padding=1, bias=bias), nn.BatchNorm2d(24)
        self.dropout, self.fc = nn.Dropout(self.drop), nn.Linear(24 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(self.dropout(x.flatten(1)))


@healthy(source="everyday convolutional classifier of colour pictures: BN, ReLU, pooling, dropout, Adam")
def h_snapshots(seed: int) -> Case:
    return Case(seed=seed, model=Snapshot(), data=centred(shapes(seed)), optimizer=adam(2e-3), max_steps=150, **CE)


@faulty("bias_before_bn", twin="h_snapshots", source="Karpathy: no bias=False for Conv2d in front of BatchNorm", note=True)
def f_snapshots_biased(case: Case) -> None:
    case.model = Snapshot(bias=True)


class EvalStep(Supervised):
    """Calls eval at the start of each training step, left over from a debugging session."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        self.model.eval()
        return super().training_step(batch, batch_idx)


@faulty("dropout_too_high", twin="h_snapshots", source="TensorFlow's keep_prob handed to PyTorch's p")
def f_snapshots_keep_prob(case: Case) -> None:
    case.model.dropout.p = 0.97  # type: ignore[union-attr]


@faulty("dropout_active_in_eval", twin="h_snapshots", source="PyTorch forum: F.dropout without training=self.training")
def f_snapshots_functional(case: Case) -> None:
    class Functional(Snapshot):
        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.bn1(self.conv1(F.dropout(x)))), 2)
            x = F.max_pool2d(F.relu(self.bn2(self.conv2(F.dropout(x)))), 2)
            return self.fc(F.dropout(x.flatten(1)))

    case.model = Functional()


@faulty("bn_stats", twin="h_snapshots", source="momentum of batch norm far too small: the statistics never leave their start")
def f_snapshots_slow_stats(case: Case) -> None:
    for bn in (case.model.bn1, case.model.bn2):
        bn.momentum = 0.0005  # type: ignore[union-attr]


@faulty("bad_data", twin="h_snapshots", source="augmentation that cuts out nearly the whole picture")
def f_snapshots_cut_out(case: Case) -> None:
    def collate(rows: list[Any]) -> Any:
        x, y = default_collate(rows)
        keep = torch.zeros(len(x), 1, 16, 16)
        for i, (top, left) in enumerate(torch.randint(13, (len(x), 2)).tolist()):
            keep[i, :, top : top + 4, left : left + 4] = 1
        return (x * keep if len(rows) == case.batch_size else x), y

    case.collate = collate


# ------------------------------------------------------------------------------------------ digits, a deep plain stack
class Channels(nn.Module):
    """Takes pictures with their channel last, as NumPy stores them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 3, 1, 2))


@healthy(source="pictures stored channel last and permuted in forward; SGD with momentum")
def h_numpy_order(seed: int) -> Case:
    data = replace(centred(shapes(seed)), 0, lambda x: x.permute(0, 2, 3, 1).contiguous())
    model = Channels(convnet(3, 10, 4, 16, norm=nn.BatchNorm2d, bias=False))
    return Case(seed=seed, model=model, data=data, optimizer=sgd(0.03), max_steps=200, **CE)


@faulty(
    "data_not_shuffled", twin="h_numpy_order", source="TrainCheck, forum: ImageFolder lists class by class and shuffle is off"
)
def f_numpy_order_by_folder(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False


@faulty("clip_too_small", twin="h_numpy_order", source="gradient_clip_val 1e-4: a typing error in a configuration file")
def f_numpy_order_strangled(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-4}


@healthy("init_vanishing", source="plain convolutions, ten deep, He initialisation and Adam")
def h_ten_storeys(seed: int) -> Case:
    model = plain_deep(10, 12)
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=gratings(seed, noise=0.4), optimizer=adam(2e-3), max_steps=220, **CE)


@faulty("init_vanishing", twin="h_ten_storeys", source="CS231n: small random numbers, std 0.01, in every layer")
def f_ten_storeys_small(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            normal(0.01)(layer.weight)


@faulty("init_exploding", twin="h_ten_storeys", source="DeepCrime: weights drawn from N(0, 1)")
def f_ten_storeys_unit(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)


@faulty("bad_gain", "init_vanishing", twin="h_ten_storeys", source="xavier initialisation with a gain of 0.4 under ReLU")
def f_ten_storeys_meek(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight, gain=0.4)


@faulty("dead_relu", twin="h_ten_storeys", source="AUTOTRAINER: dying ReLU after a careless bias")
def f_ten_storeys_dry(case: Case) -> None:
    for layer in case.model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.bias, -2.5)


# ------------------------------------------------------------------------------------------ residual, with a schedule
@healthy("lr_schedule", source="residual network, SGD, linear warm-up and cosine to zero, stepped once a batch")
def h_warm_cosine(seed: int) -> Case:
    def schedule(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
        cool = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 180)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [20])
        return {"scheduler": both, "interval": "step"}

    model = ResNet(1, 10, 2)
    return Case(
        seed=seed, model=model, data=stamps(seed), optimizer=sgd(0.05, weight_decay=1e-4), scheduler=schedule,
        max_steps=200, **CE,
    )  # fmt: skip


@faulty("lr_schedule", twin="h_warm_cosine", source="ExponentialLR meant for epochs, stepped every batch")
def f_warm_cosine_collapsed(case: Case) -> None:
    case.scheduler = lambda optimizer: {
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7), "interval": "step"
    }  # fmt: skip


@faulty("lr_too_high", twin="h_warm_cosine", source="DeepFD: learning rate of SGD a hundred times too large")
def f_warm_cosine_scorched(case: Case) -> None:
    case.optimizer, case.scheduler = sgd(20.0), None


@faulty("weight_decay_too_strong", twin="h_warm_cosine", source="decay 0.5, a number for AdamW, in SGD")
def f_warm_cosine_shrunk(case: Case) -> None:
    case.optimizer = sgd(0.05, weight_decay=0.5)


# ------------------------------------------------------------------------------------------ masks
def dice(output: Tensor, target: Tensor) -> Tensor:
    """One minus the soft overlap of probabilities and mask."""
    p = output.sigmoid()
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum() + 1.0)


@healthy("wrong_loss", source="U-Net with the sum of cross-entropy and soft Dice")
def h_nuclei(seed: int) -> Case:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, target) + dice(output, target)

    return Case(seed=seed, model=UNet(8), data=masks(seed), loss=loss, metric="jaccard", optimizer=adam(3e-3), max_steps=100)


@faulty("loss_sign", twin="h_nuclei", source="the Dice coefficient itself is minimised, the minus forgotten")
def f_nuclei_least_overlap(case: Case) -> None:
    case.loss = lambda output, target: 1 - dice(output, target)


# ------------------------------------------------------------------------------------------ transfer
class Transfer(nn.Module):
    """A pretrained body, kept fixed, under a new head."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@healthy(source="digits: convolution and batch norm, head with weight decay, all trained")
def h_postcodes(seed: int) -> Case:
    body = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    model = Transfer(body, nn.Linear(32, 10))
    return Case(seed=seed, model=model, data=digits(seed, flat=False), optimizer=adamw(3e-3), max_steps=150, **CE)


@faulty(
    "frozen_by_accident", twin="h_postcodes", source="code of a transfer tutorial kept, but the body has no pretrained weights"
)
def f_postcodes_untaught(case: Case) -> None:
    for p in case.model.body.parameters():  # type: ignore[union-attr]
        p.requires_grad_(False)


@faulty(
    "bn_eval_in_train",
    twin="h_postcodes",
    source="model.eval() stays on, statistics never learnt",
    margin=0.03,
)
def f_postcodes_eval(case: Case) -> None:
    case.module = EvalStep
