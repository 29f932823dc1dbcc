"""Healthy: sets, graphs, experts, alignments, masks; and validation data that differ from training data for a reason."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.zoo import data
from tests.zoo.case import Case, Supervised, healthy
from tests.zoo.healthy_transfer import transferred
from tests.zoo.nets import CE, MSE, adam, adamw, convnet, mlp, sgd


# ------------------------------------------------------------------------------------------ structures
class DeepSet(nn.Module):
    """Zaheer et al. 2017: embed each element, add up, read out."""

    def __init__(self) -> None:
        super().__init__()
        self.element, self.whole = mlp([3, 48, 24]), mlp([24, 48, 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.element(x).mean(1))


@healthy("init_vanishing", "batch_mixing", source="a set network: mean pooling shrinks the signal by design")
def h_deep_set(seed: int) -> Case:
    return Case(seed=seed, model=DeepSet(), data=data.walks(seed), optimizer=adam(6e-3), **CE)


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017 on a ring of eight nodes per sample."""

    def __init__(self, nodes: int = 8) -> None:
        super().__init__()
        ring = torch.eye(nodes)
        self.register_buffer("adjacency", (ring + ring.roll(1, 0) + ring.roll(-1, 0)) / 3)
        self.first, self.second, self.head = nn.Linear(1, 32), nn.Linear(32, 32), nn.Linear(8 * 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.adjacency @ x[:, :, None]).relu()
        return self.head(self.second(self.adjacency @ x).relu().flatten(1))


@healthy("init_vanishing", "batch_mixing", source="graph convolutions: neighbours are averaged, samples are not")
def h_graph(seed: int) -> Case:
    g = data.rng(40, seed)
    x = torch.randn(1536, 8, generator=g)
    y = (x * x.roll(1, 1)).sum(1) / 8**0.5 + x.roll(2, 1)[:, 0]
    return Case(
        seed=seed,
        model=GraphConvolution(),
        data=data.split(x, data.standardise(y)[:, None]),
        optimizer=adam(8e-3),
        max_steps=300,
        **MSE,
    )


class Experts(nn.Module):
    """Shazeer et al. 2017: each sample goes to its best expert; the others get no gradient from it."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(8, experts)
        self.experts = nn.ModuleList(mlp([8, 32, 4]) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(1).max(1)
        output = x.new_zeros(len(x), 4)
        for i, expert in enumerate(self.experts):
            mine = chosen == i
            if mine.any():
                output = output.index_put((mine.nonzero()[:, 0],), weight[mine, None] * 4 * expert(x[mine]))
        return output


@healthy(
    "frozen_by_accident",
    "detached_subgraph",
    "batch_mixing",
    source="mixture of experts: an expert without samples has no gradient in that step",
)
def h_experts(seed: int) -> Case:
    return Case(seed=seed, model=Experts(), data=data.blobs(seed), optimizer=adam(1e-2), max_steps=260, **CE)


class MaskedAttention(nn.Module):
    """Padding is masked with minus infinity before the softmax."""

    def __init__(self, vocabulary: int, classes: int, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.score, self.head = nn.Linear(width, 1), mlp([width, 48, classes])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        scores = self.score(hidden)[:, :, 0].masked_fill(x == 0, float("-inf"))
        return self.head((scores.softmax(1)[:, :, None] * hidden).sum(1))


@healthy("nan_loss", "bad_data", source="minus infinity inside a masked softmax is right")
def h_masked_attention(seed: int) -> Case:
    split = data.replace(
        data.words(seed), 0, lambda x: (x + 1).masked_fill(torch.arange(12) >= 6 + x.sum(1, keepdim=True) % 7, 0)
    )
    return Case(seed=seed, model=MaskedAttention(31, 3), data=split, optimizer=adam(1e-2), **CE)


def known_only(output: Tensor, target: Tensor) -> Tensor:
    known = ~target.isnan()
    return (output[known] - target[known]).square().mean()


@healthy("nan_loss", "bad_data", "loss_reduction", source="missing targets are NaN and masked out of the loss")
def h_missing_targets(seed: int) -> Case:
    train, val = data.several(seed)
    hidden = torch.rand(train.tensors[1].shape, generator=data.rng(41, seed)) < 0.3
    train = TensorDataset(train.tensors[0], train.tensors[1].masked_fill(hidden, float("nan")))
    return Case(seed=seed, model=mlp([8, 64, 64, 3]), data=(train, val), optimizer=adam(5e-3), loss=known_only, metric="r2")


class Reader(nn.Module):
    """Log-probabilities per step, for CTC."""

    def __init__(self, symbols: int = 5) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(symbols, 32, batch_first=True, bidirectional=True), nn.Linear(64, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0]).log_softmax(2)


def ctc(output: Tensor, target: Tensor) -> Tensor:
    steps, symbols = (torch.full((len(target),), n) for n in (output.shape[1], target.shape[1]))
    return F.ctc_loss(output.transpose(0, 1), target, steps, symbols, zero_infinity=True)


@healthy(
    "nan_loss",
    "batch_mixing",
    "wrong_loss",
    source="Graves et al. 2006: connectionist temporal classification, time first in the loss",
)
def h_ctc(seed: int) -> Case:
    g = data.rng(42, seed)
    target = torch.randint(1, 5, (768, 4), generator=g)
    signal = torch.zeros(768, 12, 5).scatter_(2, target.repeat_interleave(3, 1)[:, :, None], 1.0)
    signal[:, 2::3] = 0
    noisy = signal + 0.3 * torch.randn(signal.shape, generator=g)
    return Case(
        seed=seed,
        model=Reader(),
        data=data.split(noisy, target),
        optimizer=adam(1e-2),
        loss=ctc,
        metric="decoded",
        max_steps=200,
    )


class Seq2Seq(nn.Module):
    """An encoder's last state starts a decoder that is fed the shifted target (teacher forcing)."""

    def __init__(self, vocabulary: int = 8, width: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.encoder, self.decoder = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        _, state = self.encoder(self.embed(source))
        return self.head(self.decoder(self.embed(shifted), state)[0]).transpose(1, 2)


@healthy("batch_mixing", "labels_broken", "bad_gain", source="Sutskever et al. 2014: encoder and decoder, teacher forcing")
def h_seq2seq(seed: int) -> Case:
    def with_shift(part: TensorDataset) -> TensorDataset:
        x, y = (t[:, :3] for t in part.tensors)
        y = x.flip(1)
        return TensorDataset(x, F.pad(y[:, :-1], (1, 0), value=8), y)

    train, val = data.mirrored(seed, n=1536)
    return Case(
        seed=seed, model=Seq2Seq(), data=(with_shift(train), with_shift(val)), optimizer=adam(1e-2), max_steps=300, **CE
    )


# ------------------------------------------------------------------------------------------ batch norm in evaluation mode
class NormsKeptInEval(Supervised):
    """Batch norm uses the statistics that it came with; everything else learns."""

    def on_train_epoch_start(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@healthy(
    "bn_eval_in_train",
    "bn_stats",
    source="fine-tuning all of a pretrained net with its batch-norm statistics kept, as detection nets do",
)
def h_fine_tuning_norms_kept(seed: int) -> Case:
    return Case(
        seed=seed,
        model=transferred(seed),
        data=data.gratings(seed),
        optimizer=adam(3e-3),
        module=NormsKeptInEval,
        max_steps=140,
        **CE,
    )


class EvaluatesAndReturns(Supervised):
    """Evaluates on the training batch every tenth step, and goes back to training mode."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        if batch_idx % 10 == 0:
            self.model.eval()
            with torch.no_grad():
                self.log("train_metric", self.metric.score(self(batch[0]), batch[1]))
            self.model.train()
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


@healthy(
    "bn_eval_in_train", "dropout_active_in_eval", source="eval() for a metric inside training_step, and train() right after"
)
def h_evaluates_and_returns(seed: int) -> Case:
    model = convnet(norm=nn.BatchNorm2d)
    return Case(
        seed=seed, model=model, data=data.gratings(seed), optimizer=sgd(0.05), module=EvaluatesAndReturns, max_steps=160, **CE
    )


@healthy("bn_stats", "no_update", source="an exponential moving average of the weights is validated")
def h_moving_average(seed: int) -> Case:
    return Case(
        seed=seed,
        model=mlp([8, 64, 64, 4]),
        data=data.blobs(seed),
        optimizer=adam(5e-3),
        trainer={"callbacks": [EMAWeightAveraging(decay=0.95)]},
        **CE,
    )


# ------------------------------------------------------------------------------------------ validation that differs
class Augmented(Supervised):
    """Random shifts and brightness, in training only."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        x = x.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3))
        x = (1 + 0.3 * torch.randn(len(x), 1, 1, 1)) * x + 0.4 * torch.randn(len(x), 1, 1, 1)
        loss: Tensor = super().training_step([x, y], batch_idx)
        return loss


@healthy("train_val_mismatch", "bad_data", source="strong augmentation of the training pictures only")
def h_augmented(seed: int) -> Case:
    return Case(
        seed=seed, model=convnet(norm=nn.BatchNorm2d), data=data.stamps(seed), optimizer=adam(5e-3), module=Augmented, **CE
    )


@healthy(
    "train_val_mismatch",
    "class_imbalance",
    source="training drawn evenly over the classes, validation as rare as life: other proportions on purpose",
)
def h_other_proportions(seed: int) -> Case:
    x, y = (
        torch.cat(pair)
        for pair in zip(*(part.tensors for part in data.rare_blobs(seed, rare=0.3, n=2400, overlap=0.5)), strict=True)
    )
    rare, common = (y == 1).nonzero()[:, 0], (y == 0).nonzero()[:, 0]
    train = torch.cat([rare[:500], common[:500]])
    val = torch.cat([rare[500:550], common[500:1000]])
    split = (TensorDataset(x[train], y[train]), TensorDataset(x[val], y[val]))
    return Case(
        seed=seed,
        model=mlp([6, 48, 48, 2]),
        data=split,
        optimizer=adam(4e-3),
        loss=F.cross_entropy,
        metric="balanced_accuracy",
        val_batch_size=550,
    )


@healthy("train_val_mismatch", "overfit_no_regularisation", source="a later period, drifted by a tenth of a deviation")
def h_drifted_validation(seed: int) -> Case:
    split = data.replace(data.surface(seed), 0, lambda x: 1.05 * x + 0.1, train=False)
    return Case(seed=seed, model=mlp([8, 64, 64, 1]), data=split, optimizer=adam(5e-3), **MSE)


@healthy("train_val_mismatch", "labels_broken", source="a validation set of forty samples in order of class")
def h_small_validation(seed: int) -> Case:
    train, (x, y) = data.digits(seed)[0], data.digits(seed)[1][:40]
    order = y.argsort()
    return Case(
        seed=seed,
        model=mlp([64, 64, 10]),
        data=(train, TensorDataset(x[order], y[order])),
        optimizer=adamw(4e-3),
        val_batch_size=16,
        **CE,
    )
