"""What gets no gradient, is held by nobody, or never moves; and what only looks so."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import Diagnostics, InitAuditor
from lit_training.diagnosis.later import FirstSteps
from tests.diagnosis.rules.looking import alarms, findings, mlp, numbers, vectors


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


class TakesTurns(pl.LightningModule):
    """A critic steps first; the encoder, which the painter's optimiser may have been told of, gets its gradient after that."""

    automatic_optimization = False

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.encode, self.decode, self.critic = mlp(16, 32, 8), mlp(8, 32, 16, seed=1), mlp(16, 32, 1, seed=2)
        self.whole = whole

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        critic, painter = self.optimizers()
        made = self.decode(self.encode(batch[0]))
        critic.zero_grad()
        self.manual_backward(F.softplus(self.critic(made.detach())).mean() + F.softplus(-self.critic(batch[0])).mean())
        critic.step()
        painter.zero_grad()
        self.manual_backward(F.softplus(-self.critic(made)).mean() + F.mse_loss(made, batch[0]))
        painter.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        painted = [*self.encode.parameters(), *self.decode.parameters()] if self.whole else self.decode.parameters()
        return [torch.optim.Adam(self.critic.parameters(), lr=1e-3), torch.optim.Adam(painted, lr=1e-3)]


@pytest.mark.parametrize(("whole", "said"), [(True, []), (False, [("not_in_optimizer", "encode.0.weight")])])
def test_an_encoder_whose_turn_comes_later_is_missed_all_the_same(whole: bool, said: list[tuple[str, str]]) -> None:
    watch = InitAuditor(verbose=False)
    trainer = pl.Trainer(callbacks=[watch], max_steps=16, barebones=True, accelerator="cpu")
    trainer.fit(TakesTurns(whole), DataLoader(TensorDataset(*vectors(128)), 16))
    assert [(f.rule, f.where) for f in watch.findings if f.severity == "error"] == said
