"""What is frozen and was never trained, and what is frozen with good reason."""

import copy
from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import InitAuditor
from tests.diagnosis.rules.looking import adam, alarms, findings, mlp, vectors


@pytest.mark.parametrize("draw", [None, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.orthogonal_])
def test_fresh_frozen_weights_are_found_however_they_were_drawn(draw: object) -> None:
    model = mlp(16, 64, 64, 4)
    if draw is not None:
        draw(model[2].weight)  # type: ignore[operator]
    model[2].requires_grad_(False)
    found = findings(model)
    assert [f.rule for f in found if f.severity != "note"] == ["frozen_by_accident"]
    assert found[0].where == "2.weight"


def test_declared_freezing_is_silent() -> None:
    model = mlp(16, 64, 64, 4)
    model[2].requires_grad_(False)
    assert alarms(model, expect_frozen=("2",)) == []


def test_trained_frozen_weights_are_silent() -> None:
    model, (x, _) = mlp(16, 64, 4), vectors(256)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model[0].requires_grad_(False)
    assert alarms(model, optimizer=adam) == []


def test_a_constant_frozen_weight_is_not_fresh() -> None:
    model = mlp(16, 64, 64, 4)
    model[2].weight.data = torch.eye(64) + 0.5
    model[2].requires_grad_(False)
    assert "frozen_by_accident" not in alarms(model)


class Guided(nn.Module):
    """Learns beside a frozen network that runs under no_grad."""

    def __init__(self, guide: nn.Module | None) -> None:
        super().__init__()
        self.net = mlp(16, 64, 64, 4)
        self.guide = copy.deepcopy(self.net) if guide is None else guide
        self.guide.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.guide(x)
        return self.net(x) + 0.1 * goal


def with_a_direction(net: nn.Sequential) -> nn.Sequential:
    """Give all layers but the last what training leaves in them."""
    with torch.no_grad():
        for layer in net[:-1:2]:
            layer.weight += 0.2 * torch.outer(torch.randn(len(layer.weight)), torch.randn(layer.in_features))
    return net


@pytest.mark.parametrize("guide", [None, with_a_direction(mlp(16, 64, 64, 4, seed=1))])
def test_frozen_copies_and_heads_of_trained_teachers_are_silent(guide: nn.Module | None) -> None:
    assert alarms(Guided(guide)) == []


@pytest.mark.parametrize(("gains", "said"), [(1.0, ["frozen_by_accident"]), ((0.9, 1.1), [])])
def test_weights_that_hardly_left_their_start_are_trained_if_gains_beside_them_have_moved(gains, said: list[str]) -> None:
    guide = nn.Sequential(mlp(16, 64, seed=1), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    nn.init.uniform_(guide[1].weight, *gains) if isinstance(gains, tuple) else nn.init.constant_(guide[1].weight, gains)
    assert alarms(Guided(guide)) == said


class Novelty(nn.Module):
    """How far a network is from a random one, or the sum of both."""

    def __init__(self, compares: bool) -> None:
        super().__init__()
        self.net, self.other, self.compares = mlp(16, 32, 4), mlp(16, 32, 4, seed=1).requires_grad_(False), compares

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.other(x) if self.compares else self.net(x) + self.other(x)


@pytest.mark.parametrize(("compares", "said"), [(True, []), (False, ["frozen_by_accident"])])
def test_a_random_network_may_be_the_target(compares: bool, said: list[str]) -> None:
    found = findings(Novelty(compares), loss=lambda output, target: output.square().mean())
    assert [f.rule for f in found if f.severity == "error" and f.rule == "frozen_by_accident"] == said


def test_a_frozen_teacher_that_was_never_trained_is_found() -> None:
    assert alarms(Guided(mlp(16, 64, 64, 4, seed=1))) == ["frozen_by_accident"]


class Distilled(nn.Module):
    """Logits of a student, and of a network that is to teach it and was never loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = mlp(16, 32, 4), mlp(16, 64, 64, 4, seed=1).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(x), self.teacher(x)


def of_probabilities(output: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    student, teacher = output
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


def of_squares(output: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    return F.mse_loss(*(logits.softmax(1) for logits in output))


def beside_labels(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    student, teacher = output
    return F.cross_entropy(student, target) + 0.1 * F.mse_loss(student, teacher)


@pytest.mark.parametrize(("moved", "said"), [(5e-7, []), (0.01, ["frozen_by_accident"])])
def test_an_average_of_the_weights_that_rounding_has_moved_is_a_copy(moved: float, said: list[str]) -> None:
    model = Distilled()
    model.teacher = copy.deepcopy(model.student).requires_grad_(False)
    with torch.no_grad():
        for mean in model.teacher.parameters():
            mean.mul_(1 + moved)
    assert alarms(model, loss=of_probabilities) == said


@pytest.mark.parametrize("loss", [of_probabilities, of_squares, beside_labels])
def test_a_teacher_that_was_never_loaded_is_no_random_target(loss) -> None:
    assert alarms(Distilled(), loss=loss) == ["frozen_by_accident"]


class OwnFlag(nn.Sequential):
    """Keeps a flag for itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.requires_grad = True


@pytest.mark.parametrize(("kind", "told"), [(nn.Sequential, True), (OwnFlag, False)])
def test_a_class_may_keep_a_flag_for_itself(kind: type[nn.Sequential], told: bool) -> None:
    body = kind(nn.Linear(16, 32), nn.ReLU()).requires_grad_(False)
    nn.init.constant_(body[0].weight, 0.1)
    body.requires_grad = True
    assert ("frozen_by_accident" in alarms(nn.Sequential(body, nn.Linear(32, 4)))) == told


@pytest.mark.parametrize("batches", [0, 1, 20])
def test_a_frozen_layer_beside_a_norm_that_was_trained_is_kept_on_purpose(batches: int) -> None:
    body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU())
    for _ in range(batches):
        body(torch.randn(8, 16))
    body.requires_grad_(False)
    watch = InitAuditor(verbose=False)
    module = LitModule(nn.Sequential(OrderedDict(body=body, head=nn.Linear(32, 4))), lr=0.01)
    pl.Trainer(callbacks=[watch], max_steps=4, barebones=True, accelerator="cpu").fit(
        module, DataLoader(TensorDataset(*vectors()), 8)
    )
    said = [f.rule for f in watch.findings if f.severity != "note"]
    assert ("frozen_by_accident" in said) == (batches < 10)


def test_a_fresh_head_that_is_frozen_is_found_behind_a_body_that_was_trained() -> None:
    body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32))
    for _ in range(20):
        body(torch.randn(8, 16))
    net = nn.Sequential(*body, nn.ReLU(), nn.Linear(32, 4))
    net[3].requires_grad_(False)
    watch = InitAuditor(verbose=False)
    trainer = pl.Trainer(callbacks=[watch], max_steps=4, barebones=True, accelerator="cpu")
    trainer.fit(LitModule(net, lr=0.01), DataLoader(TensorDataset(*vectors()), 8))
    assert ("frozen_by_accident", "network.3.weight") in [(f.rule, f.where) for f in watch.findings]


class Projected(nn.Module):
    """A frozen projection of patches in front of a normalised network, or of something else."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv1d(1, 16, 4, 1 if way == "overlapping" else 4)
        if way == "narrow":
            self.patches = nn.Conv1d(1, 8, 32, 32)
        self.between = nn.ReLU() if way == "bent" else nn.Identity()
        self.norm, self.net = nn.LayerNorm(self.patches.out_channels), mlp(self.patches.out_channels, 32, 4)
        self.patches.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(self.between(self.patches(x[:, None])).transpose(1, 2))).mean(1)


@pytest.mark.parametrize(
    ("way", "said"),
    [("", []), *((way, ["frozen_by_accident"]) for way in ("narrow", "overlapping", "bent"))],
)
def test_a_projection_that_loses_nothing_may_stay_as_it_was_drawn(way: str, said: list[str]) -> None:
    x, y = torch.randn(32, 256), torch.arange(32) % 4
    assert alarms(Projected(way), (x, y), optimizer=adam)[:1] == said


class Corrected(nn.Module):
    """A trained layer and a product of two factors, the first one frozen; or the product alone."""

    def __init__(self, *, zero: bool, alone: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.a, self.b, self.alone = mlp(16, 64, 64), nn.Linear(16, 8, bias=False), nn.Linear(8, 64), alone
        self.head = nn.Linear(64, 4)
        self.a.requires_grad_(False)
        if zero:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        correction = self.b(self.a(x))
        return self.head((correction if self.alone else self.body(x) + correction).relu())


@pytest.mark.parametrize(("zero", "alone", "told"), [(True, False, False), (False, False, True), (True, True, True)])
def test_one_factor_of_a_correction_may_stay_as_it_was_drawn(zero: bool, alone: bool, told: bool) -> None:
    assert ("frozen_by_accident" in alarms(Corrected(zero=zero, alone=alone), optimizer=adam)) == told


@pytest.mark.parametrize(
    ("orthogonal", "body", "said"),
    [(True, False, []), (False, False, ["frozen_by_accident"]), (True, True, ["frozen_by_accident"])],
)
def test_a_fixed_classifier_is_orthogonal_and_all_else_learns(orthogonal: bool, body: bool, said: list[str]) -> None:
    model = mlp(16, 64, 32, 4)
    if orthogonal:
        nn.init.orthogonal_(model[4].weight, 4.0)
    model[4].requires_grad_(False)
    model[2].requires_grad_(not body)
    assert alarms(model, optimizer=adam) == said
