"""What gets no gradient, is held by nobody, or never moves; and what only looks so."""

import copy
from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics, InitAuditor
from lit_training.diagnosis.later import FirstSteps
from tests.diagnosis.rules.looking import adam, alarms, findings, mlp, numbers, vectors


# ------------------------------------------------------------------------------------------ optimiser
def test_layers_outside_of_the_optimiser_are_found() -> None:
    found = findings(mlp(16, 32, 4), optimizer=lambda m: torch.optim.SGD(m[2].parameters(), lr=0.05))
    assert (found[0].rule, found[0].where) == ("not_in_optimizer", "0.weight")


class Listed(nn.Module):
    """Its hidden layer is in a plain list."""

    def __init__(self, module_list: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(16, 32), nn.ReLU()]
        self.hidden = nn.ModuleList(layers) if module_list else layers
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize(("module_list", "said"), [(False, ["not_in_optimizer"]), (True, [])])
def test_a_plain_list_hides_its_layers(module_list: bool, said: list[str]) -> None:
    assert alarms(Listed(module_list)) == said


class Loose(nn.Module):
    """A tensor that asks for a gradient without being a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = mlp(16, 32, 4), torch.ones(4, requires_grad=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


def test_a_tensor_that_is_no_parameter_is_found() -> None:
    assert "nn.Parameter" in findings(Loose())[0].advice


def test_inputs_may_ask_for_gradients() -> None:
    x, y = vectors()
    assert alarms(mlp(16, 32, 4), (x.clone().requires_grad_(), y)) == []


# ------------------------------------------------------------------------------------------ frozen
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


# ------------------------------------------------------------------------------------------ no update, piling up
def test_a_rate_of_zero_moves_nothing() -> None:
    found = findings(mlp(16, 32, 4), optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.0))
    assert found[0].rule == "no_update"
    assert "learning rate is 0" in found[0].message


def test_gradients_that_were_cleared_before_the_step_are_no_update() -> None:
    model = mlp(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Clearing(torch.optim.SGD):
        pass

    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = F.cross_entropy(output, target)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        return value

    assert "no_update" in alarms(model, loss=loss, optimizer=lambda m: optimizer, steps=1)


class TwoOptimizers(LitModule):
    """Manual optimisation with an optimiser each for body and head, of which some are set back."""

    set_back = (0, 1)

    def __init__(self) -> None:
        super().__init__(mlp(16, 32, 4))
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()
        for i in self.set_back:
            optimizers[i].zero_grad()
        self.manual_backward(F.cross_entropy(self.network(batch[0]), batch[1]))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.network[0], self.network[2])]


@pytest.mark.parametrize(("set_back", "said"), [((0, 1), []), ((0,), ["gradients_not_zeroed"]), ((), ["gradients_not_zeroed"])])
def test_each_optimiser_has_to_be_set_back(set_back: tuple[int, ...], said: list[str]) -> None:
    module, watch = TwoOptimizers(), Diagnostics(verbose=False, select=["gradients_not_zeroed"])
    module.set_back = set_back
    data = DataLoader(TensorDataset(*vectors(160)), 16)
    pl.Trainer(max_steps=20, barebones=True, accelerator="cpu", callbacks=[watch]).fit(module, data)
    assert [finding.rule for finding in watch.findings] == said


def test_gradients_that_pile_up_are_found() -> None:
    found = findings(mlp(16, 32, 1), numbers(), F.mse_loss, zero_grad=False)
    assert [f.rule for f in found if f.severity != "note"] == ["gradients_not_zeroed"]


class StartsAtZero(nn.Module):
    """Most of the weights are in a branch whose gain is zero at first, so that they get no gradient yet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.gain, self.head = (
            nn.Linear(16, 8),
            mlp(8, 64, 8),
            nn.Parameter(torch.zeros(8)),
            nn.Linear(8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(x + self.gain * self.branch(x))
        return out


def test_gradients_that_pile_up_are_found_where_the_largest_starts_at_zero() -> None:
    assert "gradients_not_zeroed" in alarms(StartsAtZero(), numbers(), F.mse_loss, zero_grad=False)


def test_zeroed_gradients_are_silent() -> None:
    assert alarms(mlp(16, 32, 1), numbers(), F.mse_loss) == []


def test_weights_that_are_restored_in_each_step_do_not_move() -> None:
    model = mlp(16, 32, 4)
    kept = copy.deepcopy(model.state_dict())

    class Restoring(torch.optim.SGD):
        def step(self, closure: object = None) -> None:
            super().step()
            model.load_state_dict(kept)

    found = findings(model, optimizer=lambda m: Restoring(m.parameters(), lr=0.1))
    assert found[0].rule == "no_update"
    assert "same to the bit" in found[0].message


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


class Finetuned(nn.Module):
    """A body and a head, as `BackboneFinetuning` leaves them in the first epochs: only the norms of the body are not frozen."""

    def __init__(self, freeze: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32))
        self.head = nn.Linear(32, 4)
        for part in self.body:
            if isinstance(part, nn.Linear):
                part.requires_grad_(not freeze)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).relu())
        return out


def some(model: nn.Module, *kinds: type[nn.Module]) -> torch.optim.Optimizer:
    """Make an optimiser of the parameters of some kinds of modules."""
    return torch.optim.SGD([p for part in model.modules() if isinstance(part, kinds) for p in part.parameters()], lr=0.1)


def test_norms_that_a_frozen_body_leaves_over_are_a_note() -> None:
    found = findings(Finetuned(True), vectors(), F.cross_entropy, optimizer=lambda m: torch.optim.SGD(m.head.parameters(), 0.1))
    assert [f.severity for f in found if f.rule == "not_in_optimizer"] == ["note"]
    found = findings(Finetuned(False), vectors(), F.cross_entropy, optimizer=lambda m: some(m, nn.Linear))
    assert [f.severity for f in found if f.rule == "not_in_optimizer"] == ["error"]


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


class Adapted(nn.Module):
    """A frozen layer and a factor pair, one of which starts at zero (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(0.2 * torch.randn(8, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def adapted() -> nn.Sequential:
    return nn.Sequential(Adapted(nn.Linear(16, 32)), nn.ReLU(), Adapted(nn.Linear(32, 4)))


def test_adapters_that_no_optimiser_holds_are_not_taken_for_trained() -> None:
    held = [["2.down", "2.up"], ["0.down", "0.up", "2.down", "2.up"]]
    for names, said in zip(held, [["not_in_optimizer"], []], strict=True):
        model = adapted()
        chosen = [dict(model.named_parameters())[name] for name in names]
        assert alarms(model, optimizer=lambda _: torch.optim.Adam(chosen, lr=1e-2), expect_frozen=("*.layer.*",)) == said  # noqa: B023


@pytest.mark.parametrize("declared", [True, False])
def test_a_frozen_factor_of_zeros_shuts_off_the_other(declared: bool) -> None:
    model = adapted()
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("down"))
    expect = ("*.layer.*", "*.up") if declared else ("*.layer.*",)
    found = findings(model, optimizer=lambda m: torch.optim.Adam([m[0].down, m[2].down]), expect_frozen=expect)
    said = [(f.rule, f.where) for f in found if f.severity == "error"]
    assert (("frozen_by_accident", "0.up") in said) != declared


def test_what_gets_its_gradient_after_the_first_step_is_missed_too() -> None:
    model = nn.ModuleDict({"encode": mlp(16, 8), "decode": mlp(8, 4), "critic": mlp(4, 1)})
    critic, painter = (torch.optim.SGD(model[name].parameters(), lr=0.01) for name in ("critic", "decode"))
    first = FirstSteps(model, [critic, painter])
    made = model["decode"](model["encode"](torch.randn(8, 16)))
    model["critic"](made.detach()).mean().backward()
    first.before_step(critic)
    assert first.conclude().unheld == ()
    model["critic"](made).mean().backward()
    first.before_step(painter)
    assert first.conclude().unheld == ("encode.0.weight", "encode.0.bias")


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
