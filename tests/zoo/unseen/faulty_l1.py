"""Pictures, as classifiers and segmenters are written by hand."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import digits, masks, replace
from tests.zoo.more_data import shapes
from tests.zoo.nets import CE, adam, adamw, sgd


# ------------------------------------------------------------------------------------------ digits
class PostboxNet(nn.Module):
    """The tutorial's LeNet, for 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 16, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.relu(self.conv2(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.features(x)))
        return self.fc3(F.relu(self.fc2(x)))


class PostboxReluEverywhere(PostboxNet):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.features(x)))
        return F.relu(self.fc3(F.relu(self.fc2(x))))


class PostboxSigmoid(PostboxNet):
    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.sigmoid(self.conv1(x)), 2)
        return torch.sigmoid(self.conv2(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.fc1(self.features(x)))
        return self.fc3(torch.sigmoid(self.fc2(x)))


class PostboxAlwaysDropping(PostboxNet):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(self.features(x))), 0.6)
        return self.fc3(F.dropout(F.relu(self.fc2(x)), 0.6))


@healthy(source="the PyTorch beginners' tutorial: LeNet, SGD with momentum")
def h_postbox(seed: int) -> Case:
    return Case(
        seed=seed, model=PostboxNet(), data=digits(seed, flat=False), optimizer=sgd(0.05), batch_size=32, max_steps=220, **CE
    )


@faulty(
    "wrong_last_activation", "dead_relu", twin="h_postbox", source="StackOverflow: ReLU after the last layer too", margin=0.06
)
def f_postbox_relu_everywhere(case: Case) -> None:
    case.model = PostboxReluEverywhere()


@faulty("wrong_hidden_activation", "init_vanishing", twin="h_postbox", source="lecture exercise: LeNet of 1989 with sigmoids")
def f_postbox_sigmoid(case: Case) -> None:
    case.model = PostboxSigmoid()


@faulty(
    "dropout_active_in_eval",
    twin="h_postbox",
    source="discuss.pytorch.org: F.dropout without training=self.training",
    margin=0.05,
)
def f_postbox_always_dropping(case: Case) -> None:
    case.model = PostboxAlwaysDropping()


@faulty(
    "train_val_mismatch",
    twin="h_postbox",
    source="Kaggle: the validation pictures are divided by 255 where the training pictures are normalised",
)
def f_postbox_val_transform(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: (6 * x + 4.9) / 255, train=False)


@faulty("wrong_loss", "wrong_last_activation", twin="h_postbox", source="discuss.pytorch.org: NLLLoss on raw scores")
def f_postbox_nll_of_scores(case: Case) -> None:
    case.loss = F.nll_loss


@faulty("labels_broken", twin="h_postbox", source="np.random.shuffle on images and on labels, one after the other")
def f_postbox_two_shuffles(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: y[torch.randperm(len(y))], val=False)


@faulty("unnormalised_input", twin="h_postbox", source="ToTensor, and a division by 255 once more; no Normalize")
def f_postbox_divided_twice(case: Case) -> None:
    case.data = replace(case.data, 0, lambda x: (6 * x + 4.9) / 16 / 255)


# ------------------------------------------------------------------------------------------ colour pictures
class Folder(Dataset[Any]):
    """Pictures as a folder holds them, bytes, and the usual transform to floats."""

    def __init__(self, data: Dataset[Any], scale: float = 255.0) -> None:
        x, self.labels = data.tensors  # type: ignore[attr-defined]
        self.pictures, self.scale = (255 * x).to(torch.uint8), scale

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return (self.pictures[i].float() / self.scale - 0.35) / 0.25, self.labels[i]


class ShapeNet(nn.Module):
    """Four blocks of convolution, batch norm, ReLU; global average pooling."""

    def __init__(self, width: int = 12, bias: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for i, (a, b) in enumerate([(3, width), (width, width), (width, 2 * width), (2 * width, 2 * width)]):
            self.blocks.append(
                nn.Sequential(nn.Conv2d(a, b, 3, stride=1 + i % 2, padding=1, bias=bias), nn.BatchNorm2d(b), nn.ReLU())
            )
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def momentum(model: nn.Module, value: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = value


@healthy(source="an everyday conv-BN-ReLU net with AdamW and a one-cycle schedule on bytes scaled by the Dataset")
def h_poster(seed: int) -> Case:
    train, val = shapes(seed, n=600)
    return Case(
        seed=seed, model=ShapeNet(), data=(Folder(train), Folder(val)), optimizer=adamw(3e-3), batch_size=20, max_steps=180,
        scheduler=lambda o: {"scheduler": torch.optim.lr_scheduler.OneCycleLR(o, 8e-3, 180), "interval": "step"}, **CE,
    )  # fmt: skip


@faulty("bn_stats", twin="h_poster", source="port from Keras, where momentum is the share that is kept", margin=0.05)
def f_poster_keras_momentum(case: Case) -> None:
    momentum(case.model, 1e-3)


class FrozenNorms(Supervised):
    """The detection recipe: batch norm stays in eval mode."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@faulty(
    "bn_eval_in_train",
    "bn_stats",
    twin="h_poster",
    source="'freeze BN' of a fine-tuning recipe in a net from scratch",
    margin=0.08,
)
def f_poster_frozen_norms(case: Case) -> None:
    case.module = FrozenNorms


@faulty("bias_before_bn", twin="h_poster", source="conv blocks with the default bias before batch norm", note=True)
def f_poster_biased(case: Case) -> None:
    case.model = ShapeNet(bias=True)


# ------------------------------------------------------------------------------------------ segmentation
class Hourglass(nn.Module):
    """Encoder, decoder, a skip; one logit per pixel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.mid = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.dec = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enc(x)
        return self.dec(torch.cat([skip, F.interpolate(self.mid(skip), scale_factor=2.0)], 1))


def focal(logit: Tensor, target: Tensor, gamma: float = 1.0) -> Tensor:
    p = logit.sigmoid()
    right = p * target + (1 - p) * (1 - target)
    return (-((1 - right) ** gamma) * right.clamp_min(1e-6).log()).mean()


def dice(logit: Tensor, target: Tensor) -> Tensor:
    p = logit.sigmoid()
    both, guess, truth = (t.flatten(1).sum(1) for t in (p * target, p, target))
    return ((2 * both + 1) / (guess + truth + 1)).mean()


def focal_dice(logit: Tensor, target: Tensor) -> Tensor:
    return focal(logit, target) + 1 - dice(logit, target)


@healthy("class_imbalance", "wrong_loss", source="lesion segmentation with focal plus dice loss")
def h_lesion(seed: int) -> Case:
    return Case(
        seed=seed, model=Hourglass(), data=masks(seed), loss=focal_dice, metric="jaccard", optimizer=adam(4e-3), batch_size=16,
        max_steps=150,
    )  # fmt: skip


@faulty("loss_sign", twin="h_lesion", source="GitHub issues: the dice coefficient returned as the loss")
def f_lesion_dice_itself(case: Case) -> None:
    case.loss = lambda logit, target: 0.2 * focal(logit, target) + dice(logit, target)


@faulty(
    "shape_broadcast",
    twin="h_lesion",
    source="masks without channel dimension against [N, 1, H, W] in hand-written losses",
)
def f_lesion_no_channel(case: Case) -> None:
    case.data = replace(case.data, 1, lambda y: y[:, 0])
