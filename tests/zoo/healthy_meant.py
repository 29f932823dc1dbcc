"""Healthy: random, frozen, averaged or mixed on purpose, as papers have it; each looks like a slip of the pen."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_transfer import Backbone, pretrain
from tests.zoo.nets import CE, MSE, adam, adamw, convnet, mlp, trainable


# ------------------------------------------------------------------------------------------ frozen and forgotten
class Distilled(nn.Module):
    """How far a learnt network is from a random one that stays: small where it has been."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor, self.target = mlp([8, 64, 64, 32]), mlp([8, 64, 32]).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            target = self.target(x)
        return self.predictor(x), target


@healthy("frozen_by_accident", source="Burda et al. 2019: random network distillation, undeclared")
def h_random_distillation(seed: int) -> Case:
    class Novelty(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            return F.mse_loss(*self.model(batch[0]))

        def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
            self.log("val_metric", self.metric.score(*self.model(batch[0])))

    optimizer = trainable(torch.optim.Adam, lr=2e-3)
    return Case(seed=seed, model=Distilled(), module=Novelty, data=data.blobs(seed), optimizer=optimizer, max_steps=250, **MSE)


class Masked(nn.Module):
    """A random layer of which the half with the largest learnt scores is used, straight through."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 2 / inputs**0.5, requires_grad=False)
        self.scores = nn.Parameter(0.1 * torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        size = self.scores.abs()
        mask = size + ((size > size.median()).float() - size).detach()
        return F.linear(x, self.weight * mask)


@healthy("frozen_by_accident", source="Ramanujan et al. 2020: a mask of random weights is learnt, undeclared")
def h_supermask(seed: int) -> Case:
    model = nn.Sequential(Masked(8, 128), nn.ReLU(), Masked(128, 128), nn.ReLU(), Masked(128, 4))
    optimizer = trainable(torch.optim.Adam, lr=2e-2)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=optimizer, max_steps=300, **CE)


class Perceived(nn.Module):
    """An autoencoder, and a trained network whose features its pictures shall keep."""

    def __init__(self, seen_by: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.seen_by = mlp([64, 64, 12, 64, 64]), seen_by

    def forward(self, x: Tensor) -> Tensor:
        return self.autoencoder(x)


@healthy("not_in_optimizer", source="Johnson et al. 2016: a perceptual loss, whose network nobody froze")
def h_perceptual_loss(seed: int) -> Case:
    model = Perceived(pretrain(mlp([64, 64, 32, 10]), data.digits(seed), steps=150)[:3])

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target) + 0.1 * F.mse_loss(model.seen_by(output), model.seen_by(target).detach())

    train, val = (TensorDataset(part.tensors[0], part.tensors[0]) for part in data.digits(seed))
    return Case(
        seed=seed,
        model=model,
        data=(train, val),
        loss=loss,
        metric="r2",
        optimizer=lambda m: torch.optim.Adam(m.autoencoder.parameters(), lr=3e-3),
        max_steps=300,
    )


# ------------------------------------------------------------------------------------------ eval mode, and what is random in it
class WithAverage(nn.Module):
    """A network and the running average of all it holds, which is kept in eval mode and used there."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.average = net, copy.deepcopy(net).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "WithAverage":
        super().train(mode)
        self.average.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.average(x)
        for mean, now in zip(self.average.state_dict().values(), self.net.state_dict().values(), strict=True):
            mean.lerp_(now, 0.1) if mean.is_floating_point() else mean.copy_(now)
        return self.net(x)


@healthy("bn_eval_in_train", source="timm: an average of weights and batch norm's statistics, in eval mode from the start")
def h_ema_norms(seed: int) -> Case:
    model = WithAverage(convnet(norm=nn.BatchNorm2d))
    return Case(seed=seed, model=model, data=data.gratings(seed), optimizer=trainable(torch.optim.Adam, lr=1e-2), **CE)


class Averaged(Supervised):
    """Monte-Carlo dropout: validation averages several masks."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        for part in self.modules():
            part.train(isinstance(part, nn.Dropout))
        x, y = batch
        output = torch.stack([self(x).softmax(1) for _ in range(8)]).mean(0).log()
        self.log("val_metric", self.metric.score(output, y))


@healthy("dropout_active_in_eval", source="Gal and Ghahramani 2016: dropout thawed in validation_step, eight passes averaged")
def h_dropout_averaged(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], dropout=0.2)
    return Case(seed=seed, model=model, data=data.blobs(seed), module=Averaged, optimizer=adam(5e-3), **CE)


class MaskedAutoencoder(nn.Module):
    """Rebuilds the 10 patches of 16 that chance has hidden from its encoder, in validation too."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.encoder, self.decoder = (
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.hidden, self.head = nn.Parameter(0.02 * torch.randn(width)), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        order = torch.rand(len(x), 16).argsort(1)
        tokens = self.embed(patches) + self.position
        index = order[..., None].expand(tokens.shape)
        seen = self.encoder(tokens.gather(1, index[:, :6]))
        both = torch.cat([seen, self.hidden.expand(len(x), 10, -1)], 1)
        rebuilt = self.head(self.decoder(both.gather(1, order.argsort(1)[..., None].expand(tokens.shape)) + self.position))
        places = order[:, 6:, None].expand(-1, -1, 4)
        return rebuilt.gather(1, places), patches.gather(1, places)


@healthy("dropout_active_in_eval", source="He et al. 2022: a masked autoencoder, which hides patches in validation too")
def h_masked_autoencoder(seed: int) -> Case:
    class Rebuilding(Supervised):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            return F.mse_loss(*self.model(batch[0]))

        def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
            self.log("val_metric", self.metric.score(*self.model(batch[0])))

    return Case(
        seed=seed,
        model=MaskedAutoencoder(),
        module=Rebuilding,
        data=data.digits(seed),
        optimizer=adamw(2e-3),
        max_steps=300,
        **MSE,
    )


# ------------------------------------------------------------------------------------------ rows that may depend on each other
class Tagger(nn.Module):
    """Tags the words of one sentence `[words]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(12, 16), nn.LSTM(16, 32), nn.Linear(32, 12)

    def forward(self, sentence: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(sentence).view(len(sentence), 1, -1))
        return self.head(hidden.view(len(sentence), -1))


class OneSentence(Supervised):
    """Hands the network one sentence of a batch of one, without the batch dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x[0])[None].transpose(1, 2)


@healthy("batch_mixing", source="PyTorch's LSTM tagging tutorial: a sentence at a time, its words along the first dimension")
def h_one_sentence(seed: int) -> Case:
    return Case(
        seed=seed,
        model=Tagger(),
        data=data.next_token(seed, length=15),
        module=OneSentence,
        batch_size=1,
        val_batch_size=1,
        optimizer=adam(1e-2),
        max_steps=400,
        **CE,
    )


class Quantised(nn.Module):
    """Rounds to a few bits of the range of the whole batch, straight through."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().max() / self.most
        return x + ((x / step).round() * step - x).detach()


@healthy("batch_mixing", "detached_subgraph", source="training for dynamic quantisation, whose range is that of the batch")
def h_eight_bits(seed: int) -> Case:
    layers = [Quantised(8), nn.Linear(8, 64), nn.ReLU(), Quantised(4), nn.Linear(64, 64), nn.ReLU(), Quantised(4)]
    return Case(seed=seed, model=nn.Sequential(*layers, nn.Linear(64, 4)), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


# ------------------------------------------------------------------------------------------ frozen for a while, or flagged
class RestsFirst(Supervised):
    """Its body rests for the first epoch, in which only the new head learns."""

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.thaw(self.model.body)  # type: ignore[union-attr, arg-type]

    @staticmethod
    def thaw(body: nn.Module) -> None:
        body.requires_grad_(True)


@healthy("frozen_by_accident", source="a body trained on labels of its own thawed at the second epoch")
def h_body_rests_first(seed: int) -> Case:
    x, y = data.gratings(seed + 500)[0].tensors
    model = pretrain(Backbone(), data.split(x, y.roll(1)))
    model.body.requires_grad_(False)  # type: ignore[union-attr]
    return Case(seed=seed, model=model, data=data.gratings(seed, noise=1.4), optimizer=adam(5e-3), module=RestsFirst, **CE)


class OwnFlag(Backbone):
    """Asks for gradients with respect to its inputs, as saliency maps want them, as long as a flag of its own says so."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach().requires_grad_(self.requires_grad))


@healthy(
    "frozen_by_accident", source="a class that keeps a flag called requires_grad for its inputs; its trained body is frozen"
)
def h_flag_kept(seed: int) -> Case:
    model = OwnFlag()
    model.body = pretrain(mlp([64, 64, 64, 10]), data.digits(seed), steps=400)[:-1].requires_grad_(False)  # type: ignore[index]
    model.head = nn.Linear(64, 10)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=trainable(torch.optim.Adam, lr=1e-2), **CE)
