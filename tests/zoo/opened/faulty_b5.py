"""Held-out: graphs, few samples, long tails, sentences, several heads, with their healthy twins."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tests.zoo.case import Case, Supervised, faulty, healthy
from tests.zoo.data import Split, digits, reorder, replace, rng, split, stamps, standardise
from tests.zoo.metrics import r2
from tests.zoo.more_data import reviews
from tests.zoo.nets import CE, adam, adamw, convnet, mlp, sgd


# ------------------------------------------------------------------------------------------ many small graphs
def villages(seed: int, n: int = 1200, nodes: int = 10) -> Split:
    """Features `[n, nodes, 3]`, adjacency `[n, nodes, nodes]` with loops; the class is what neighbours share."""
    g = rng(751, seed)
    y = torch.randint(3, (n,), generator=g)
    x = torch.randn(n, nodes, 3, generator=g)
    group = x[:, :, 0] > 0
    alike = (group[:, :, None] == group[:, None]).float()
    likely = torch.stack([0.1 + 0.6 * alike, 0.7 - 0.6 * alike, torch.full_like(alike, 0.4)])[y, torch.arange(n)]
    edges = (torch.rand(n, nodes, nodes, generator=g) < likely).float().triu(1)
    adjacency = edges + edges.transpose(1, 2) + torch.eye(nodes)
    return split(x, adjacency / adjacency.sum(2, keepdim=True), y)


class GraphNet(nn.Module):
    """Two rounds of messages, the mean over nodes, a head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, width)])
        self.heard = nn.ModuleList([nn.Linear(3, width, bias=False), nn.Linear(width, width, bias=False)])
        self.head = mlp([width, 24, 3])

    def edges(self, adjacency: Tensor) -> Tensor:
        return adjacency

    def pool(self, x: Tensor) -> Tensor:
        return x.mean(1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = self.edges(adjacency)
        for own, heard in zip(self.own, self.heard, strict=True):
            x = F.relu(own(x) + adjacency @ heard(x))
        return self.head(self.pool(x))


@healthy("batch_mixing", source="classification of small graphs as dense matrices")
def h_village_graphs(seed: int) -> Case:
    case = Case(seed=seed, model=GraphNet(), data=villages(seed), optimizer=adamw(5e-3), **CE)
    case.max_steps = 350
    return case


class ReshapedPool(GraphNet):
    def pool(self, x: Tensor) -> Tensor:
        n, nodes, width = x.shape
        return x.reshape(nodes, n, width).mean(0)


@faulty("batch_mixing", twin="h_village_graphs", source="readout over a reshaped tensor: nodes of ten villages in one mean")
def f_village_pooled_across(case: Case) -> None:
    case.model = ReshapedPool()


class DroppedEdges(GraphNet):
    def edges(self, adjacency: Tensor) -> Tensor:
        return F.dropout(adjacency, 0.6)


@faulty("dropout_active_in_eval", twin="h_village_graphs", source="DropEdge by F.dropout, without training=self.training")
def f_village_edges_always_dropped(case: Case) -> None:
    case.model = DroppedEdges()


# ------------------------------------------------------------------------------------------ few digits
class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """Digits moved by up to a pixel and made brighter or darker, at random."""

    def __init__(self, x: Tensor, y: Tensor, move: bool = True) -> None:
        self.x, self.y, self.move = x, y, move

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.x[i]
        if self.move:
            down, right = torch.randint(-1, 2, (2,)).tolist()
            x = (0.8 + 0.4 * torch.rand(())) * x.roll((down, right), (1, 2)) + 0.2 * torch.randn(x.shape)
        return x, self.y[i]


def moved(val: TensorDataset, seed: int) -> TensorDataset:
    """Digits as other people place them: up to a pixel off."""
    g = rng(752, seed)
    x = torch.stack([x.roll(tuple(torch.randint(-1, 2, (2,), generator=g).tolist()), (1, 2)) for x in val.tensors[0]])
    return TensorDataset(x, val.tensors[1])


@healthy("overfit_no_regularisation", "train_val_mismatch", source="150 pictures, augmented at random; dropout before the head")
def h_forms_augmented(seed: int) -> Case:
    train, val = digits(seed, flat=False)
    model = convnet(width=12, classes=10, size=8)
    model.insert(7, nn.Dropout(0.3))
    few = moved(TensorDataset(*(t[:150] for t in train.tensors)), seed + 500)
    data = Shifted(*few.tensors), moved(val, seed)
    case = Case(seed=seed, model=model, data=data, optimizer=adam(3e-3), **CE)
    case.max_steps = 400
    return case


@faulty(
    "overfit_no_regularisation",
    twin="h_forms_augmented",
    source="the same 150 pictures eighty times over",
    margin=0.08,
)
def f_forms_by_heart(case: Case) -> None:
    case.data[0].move = False


# ------------------------------------------------------------------------------------------ a long tail
def species(seed: int, n: int = 2000, repeat: bool = True) -> Split:
    """Five species, each rarer than the last; the validation part is even. Rare ones repeated, if wanted."""
    g = rng(753, seed)
    centres = torch.randn(5, 3, 6, generator=g)
    share = torch.tensor([625.0, 125.0, 40.0, 20.0, 15.0])

    def seen(y: Tensor) -> Tensor:
        return centres[y, torch.randint(3, (len(y),), generator=g)] + 0.55 * torch.randn(len(y), 6, generator=g)

    y, even = share.multinomial(n, replacement=True, generator=g), torch.randint(5, (600,), generator=g)
    train, val = seen(y), seen(even)
    if repeat:
        chosen = (1 / y.bincount(minlength=5).clamp_min(1).float())[y].multinomial(n, replacement=True, generator=g)
        train, y = train[chosen], y[chosen]
    return TensorDataset(train, y), TensorDataset(val, even)


@healthy("class_imbalance", "bad_data", source="iNaturalist-like long tail, rare species drawn more often")
def h_species_resampled(seed: int) -> Case:
    model = mlp([6, 32, 5], dropout=0.2)
    case = Case(seed=seed, model=model, data=species(seed), loss=F.cross_entropy, metric="balanced_accuracy",
                optimizer=adamw(2e-3, weight_decay=0.1))  # fmt: skip
    case.max_steps, case.val_batch_size = 250, 600
    return case


@faulty("class_imbalance", twin="h_species_resampled", source="long tail trained as it comes, judged species by species")
def f_species_as_they_come(case: Case) -> None:
    case.data = species(case.seed, repeat=False)


# ------------------------------------------------------------------------------------------ sentences
class TextCNN(nn.Module):
    """Embeddings, convolutions of two widths, the maximum over time, dropout, a head (Kim 2014)."""

    def __init__(self, share: float = 0.4, vocabulary: int = 40, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(width, 2 * width, k, padding=k // 2) for k in (1, 3))
        self.drop, self.head = nn.Dropout(share), nn.Linear(4 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.embed(x)).transpose(1, 2)
        return self.head(self.drop(torch.cat([F.relu(conv(x)).mean(2) for conv in self.convs], 1)))


@healthy("lr_too_high", source="everyday: small text CNN, SGD with momentum and clipping at 1")
def h_opinion_cnn(seed: int) -> Case:
    case = Case(seed=seed, model=TextCNN(), data=reviews(seed), optimizer=sgd(0.3), trainer={"gradient_clip_val": 1.0}, **CE)
    case.max_steps = 400
    return case


@faulty("dropout_too_high", twin="h_opinion_cnn", source="dropout of 0.9: the share to keep, as TensorFlow 1 had it")
def f_opinion_nine_in_ten_dropped(case: Case) -> None:
    case.model = TextCNN(0.9)


@faulty("data_not_shuffled", twin="h_opinion_cnn", source="folders pos/ and neg/ read one after the other, shuffle=False")
def f_opinion_folder_by_folder(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False


@faulty("clip_too_small", twin="h_opinion_cnn", source="each gradient entry clipped to 1e-5")
def f_opinion_entries_clipped(case: Case) -> None:
    case.trainer = {"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"}


class LeftTraining(Supervised):
    """Monte Carlo dropout for the uncertainty, one sample of it for the prediction."""

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self.model.drop.train()
        super().validation_step(batch, batch_idx)


@faulty("dropout_active_in_eval", twin="h_opinion_cnn", source="Monte Carlo dropout switched on and never off", margin=0.03)
def f_opinion_one_draw_of_dropout(case: Case) -> None:
    case.module = LeftTraining


# ------------------------------------------------------------------------------------------ a probe at each step
class Probed(Supervised):
    """Logs the mean logit of an empty picture."""

    as_in_training = False

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        self.model.train(self.as_in_training)
        self.log("empty", self.model(torch.zeros(8, 1, 12, 12)).mean())
        self.model.train()


class ProbedInTraining(Probed):
    as_in_training = True


@healthy("bn_eval_in_train", "bn_stats", source="logging what an empty picture gives, in eval mode and back")
def h_beacon_probed(seed: int) -> Case:
    data = stamps(seed, noise=1.0)
    return Case(seed=seed, model=convnet(norm=nn.BatchNorm2d), data=data, optimizer=adam(3e-3), module=Probed, **CE)


@faulty("bn_stats", twin="h_beacon_probed", source="example_input_array of zeros run through the network in training mode")
def f_beacon_probed_in_training(case: Case) -> None:
    case.module = ProbedInTraining


# ------------------------------------------------------------------------------------------ two questions at once
def ovens(seed: int, n: int = 1600, length: int = 16) -> Any:
    """Signals `[n, length, 2]`, when they were taken; which programme ran, and the heat at the end."""
    g = rng(754, seed)
    kind, when = torch.randint(3, (n,), generator=g), torch.randn(n, 1, generator=g)
    pace = torch.tensor([0.3, 0.6, 0.9])[kind][:, None] * torch.arange(length)
    strength = 0.6 + torch.rand(n, 1, generator=g)
    x = torch.stack([strength * pace.sin(), strength * pace.cos()], 2) + 0.3 * torch.randn(n, length, 2, generator=g)
    heat = standardise(strength + 0.5 * when + 0.3 * when * (kind == 1)[:, None])
    return split(x, when, kind, heat)


class TwoHeads(nn.Module):
    """A GRU and one more input; a head for the programme, one for the heat."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.rnn, self.mix = nn.GRU(2, width, batch_first=True), nn.Linear(width + 1, 32)
        self.kind, self.heat = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor, when: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.mix(torch.cat([self.rnn(x)[1][0], when], 1)))
        return self.kind(hidden), self.heat(hidden)


class BothHeads(Supervised):
    """Cross entropy and squared error; the metric is what the heat explains."""

    def both(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x, when, kind, heat = batch
        scores, guess = self(x, when)
        return F.cross_entropy(scores, kind) + F.mse_loss(guess, heat), guess

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return self.both(batch)[0]

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        loss, guess = self.both(batch)
        self.log("val_loss", loss)
        self.log("val_metric", r2(guess, batch[3]))


@healthy("shape_broadcast", source="multi-task learning: programme and heat from one GRU")
def h_ovens_two_heads(seed: int) -> Case:
    case = Case(
        seed=seed, model=TwoHeads(), data=ovens(seed), loss=F.mse_loss, metric="r2", optimizer=adam(3e-3), module=BothHeads
    )
    case.max_steps = 300
    return case


@faulty("unnormalised_input", twin="h_ovens_two_heads", source="seconds since 1970 beside a standardised signal")
def f_ovens_seconds_since_1970(case: Case) -> None:
    case.data = replace(case.data, 1, lambda when: 1.6e9 + 2e7 * when)


@faulty("unnormalised_target", twin="h_ovens_two_heads", source="heat in joules beside a cross entropy")
def f_ovens_joules(case: Case) -> None:
    case.data = replace(case.data, -1, lambda heat: 5e5 + 8e4 * heat)
