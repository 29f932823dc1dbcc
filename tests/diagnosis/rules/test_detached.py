"""What the loss uses and its gradient does not reach; and what is cut off on purpose."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule
from lit_training.callbacks import InitAuditor
from tests.diagnosis.rules.looking import alarms, findings, mlp, numbers, vectors


class Parts(nn.Module):
    """A body and a head, and what happens between them."""

    def __init__(self, between: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = mlp(16, 64, 64), nn.Linear(64, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        if self.between == "no_grad":
            with torch.no_grad():
                return self.head(self.body(x))
        if self.between == "no_grad_body":
            with torch.no_grad():
                h = self.body(x)
            return self.head(h.relu())
        h = self.body(x).relu()
        if self.between == "detach":
            h = h.detach()
        elif self.between == "numpy":
            h = torch.from_numpy(h.detach().numpy().copy())
        elif self.between == "numpy_sum":
            h = torch.from_numpy(h.detach().numpy().reshape(-1, 32, 2).sum(2)).repeat(1, 2)
        elif self.between == "argmax":
            h = F.one_hot(h.argmax(1), 64).float()
        return self.head(h)


@pytest.mark.parametrize("cut", ["detach", "numpy", "numpy_sum", "argmax", "no_grad_body"])
def test_a_cut_between_the_loss_and_fresh_layers_is_found(cut: str) -> None:
    found = findings(Parts(cut))
    assert [f.rule for f in found if f.severity != "note"] == ["detached_subgraph"]
    assert found[0].where == "body.0"


def test_a_whole_net_without_a_cut_is_silent() -> None:
    assert alarms(Parts()) == []


def test_a_new_loss_tensor_cuts_off_everything() -> None:
    def new(output: Tensor, target: Tensor) -> Tensor:
        return torch.tensor(F.cross_entropy(output, target).item(), requires_grad=True)

    assert alarms(mlp(16, 32, 4), loss=new)[0] == "detached_subgraph"


def test_a_loss_of_input_gradients_has_a_history_that_the_trace_does_not_show() -> None:
    x = numbers()[0].requires_grad_()

    def matching(output: Tensor, target: Tensor) -> Tensor:
        return torch.autograd.grad(output.sum(), x, create_graph=True)[0].square().mean()

    assert "detached_subgraph" not in alarms(mlp(16, 32, 1, act=nn.Tanh), (x, numbers()[1]), matching)


class Teacher(nn.Module):
    """A student learns to agree with a teacher of the same build, whose output is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(16, 32, 4)
        self.teacher = copy.deepcopy(self.student)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.teacher(x)
        return self.student(x) + 0 * goal


def test_a_teacher_may_be_detached() -> None:
    assert alarms(Teacher()) == []


class Unused(nn.Module):
    """A head whose output the loss ignores."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = mlp(16, 32, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.other(x)
        return self.net(x)


def test_an_unused_head_is_no_cut() -> None:
    assert alarms(Unused()) == []


class Mining(nn.Module):
    """Samples are weighed by what another network says, in numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.other = mlp(16, 32, 4), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.from_numpy(self.other(x).detach().numpy().clip(0.5, 2).mean(1))
        return self.net(x) * weights[:, None]


def test_numbers_beside_what_the_loss_reads_of_the_batch_are_no_cut() -> None:
    assert alarms(Mining()) == []


def test_a_trained_encoder_may_run_under_no_grad() -> None:
    model = Parts("no_grad_body")
    with torch.no_grad():
        for layer in (model.body[0], model.body[2]):
            layer.weight += torch.outer(torch.randn(64), torch.randn(layer.in_features)) * 0.2
    assert alarms(model) == []


# ------------------------------------------------------------------------------------------ towers and teachers
class Towers(nn.Module):
    """Two networks of one build, the second without gradients."""

    def __init__(self, second: str = "right", *, copied: bool = False, moving: bool = False, same: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left = mlp(8, 32, 8)
        self.add_module(second, copy.deepcopy(self.left) if copied else mlp(8, 32, 8, seed=1))
        self.second, self.moving, self.same = second, moving, same

    def forward(self, x: Tensor) -> Tensor:
        other = self.get_submodule(self.second)
        with torch.no_grad():
            if self.moving:
                for slow, fast in zip(other.parameters(), self.left.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
            goal = other(x[:, :8] if self.same else x[:, 8:])
        return self.left(x[:, :8]) @ goal.t()


def contrast(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, torch.arange(len(output)))


def test_a_second_tower_without_gradients_is_found_once_it_has_not_moved() -> None:
    assert alarms(Towers(), loss=contrast) == ["detached_subgraph"]


@pytest.mark.parametrize("net", [Towers(copied=True), Towers(moving=True), Towers("target"), Towers(same=True)])
def test_copies_averages_targets_and_random_goals_are_silent(net: nn.Module) -> None:
    assert "detached_subgraph" not in alarms(net, loss=contrast)


# ------------------------------------------------------------------------------------------ weights, numbers
class Table(nn.Module):
    """Reads a table of vectors by hand; a codebook is moved by hand."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.net = nn.Parameter(torch.randn(32, 16)), mlp(16, 32, 4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "moved":
            self.table.data.mul_(0.99)
        table = self.table if self.how == "learnt" else self.table.data
        return self.net(x + F.normalize(table, dim=1)[: len(x)])


@pytest.mark.parametrize(("how", "told"), [("data", ["detached_subgraph"]), ("moved", []), ("learnt", [])])
def test_a_table_behind_data_is_found_unless_it_moves(how: str, told: list[str]) -> None:
    assert alarms(Table(how)) == told


@pytest.mark.parametrize(("how", "told"), [("item", True), ("float", True), ("detach", True), ("logged", False), ("", False)])
def test_a_summand_of_the_loss_that_is_a_number_teaches_nothing(how: str, told: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.ModuleDict({"kind": nn.Linear(32, 4), "value": nn.Linear(32, 1)}))
    net.forward = lambda x: (net[2]["kind"](net[1](net[0](x))), net[2]["value"](net[1](net[0](x))))  # type: ignore[method-assign]

    def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        second = (output[1] - 1).square().mean()
        read = {"item": second.item, "float": second.__float__, "detach": second.detach}.get(how)
        if how == "logged":
            second.item()
            return F.cross_entropy(output[0], target)
        return F.cross_entropy(output[0], target) + (second if read is None else read())

    assert ("detached_subgraph" in alarms(net, loss=loss)) == told


# ------------------------------------------------------------------------------------------ samples
class Latent(nn.Module):
    """An autoencoder through a normal sample."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.mean, self.scale = nn.Sequential(nn.Linear(16, 32), nn.ReLU()), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = mlp(4, 32, 1)
        self.draw = draw

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        q = Normal(self.mean(h), (0.5 * self.scale(h)).exp())
        z = q.rsample() if self.draw in ("rsample", "detach") else q.sample()
        if self.draw == "by_hand":
            with torch.no_grad():
                z = q.loc + q.scale * torch.randn_like(q.loc)
        penalty = kl_divergence(q, Normal(0.0, 1.0)).sum(1).mean()
        output = self.decoder(z.detach() if self.draw == "detach" else z)
        if self.draw == "score":
            penalty = penalty + (q.log_prob(z).sum(1) * output.detach()[:, 0]).mean()
        return output, penalty


def elbo(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(output[0], target) + 0.1 * output[1]


@pytest.mark.parametrize("draw", ["sample", "by_hand", "detach"])
def test_an_encoder_that_only_the_penalty_teaches_is_found(draw: str) -> None:
    assert "detached_subgraph" in alarms(Latent(draw), numbers(), elbo)


@pytest.mark.parametrize("draw", ["rsample", "score"])
def test_an_encoder_that_is_taught_through_its_sample_or_its_probability_is_silent(draw: str) -> None:
    assert "detached_subgraph" not in alarms(Latent(draw), numbers(), elbo)


class Critic(Latent):
    """Its decoder reads the sample beside the input, as a critic reads action and state."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = Normal(self.mean(self.encoder(x)), 0.3)
        action = q.sample()
        judged = self.decoder(torch.cat([action, action], 1)[:, 2:6])
        return judged, (q.log_prob(action).sum(1) * judged.detach()[:, 0]).mean()


def test_an_actor_whose_critic_reads_the_action_is_silent() -> None:
    assert "detached_subgraph" not in alarms(Critic("score"), numbers(), elbo)


def test_an_output_that_is_rounded_is_cut_off_from_a_loss_that_is_right() -> None:
    class Rounded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).round()

    model = Rounded(*mlp(16, 32, 1))
    assert alarms(model, numbers(), F.mse_loss)[0] == "detached_subgraph"


class Routed(nn.Module):
    """Picks one of several weights a sample; a gate that the choice is multiplied by teaches the router."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.route, self.experts, self.head = nn.Linear(16, 4), nn.Embedding(4, 16), mlp(16, 32, 4)
        self.gated = gated

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.route(x).softmax(1)
        made = self.head(self.experts(shares.argmax(1)) * x)
        return made * shares.amax(1, keepdim=True) if self.gated else made, shares


@pytest.mark.parametrize(("gated", "said"), [(True, False), (False, True)])
def test_a_gate_teaches_what_chooses(gated: bool, said: bool) -> None:
    def balanced(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(output[0], target) + 0.1 * output[1].mean(0).square().sum()

    assert ("detached_subgraph" in alarms(Routed(gated), loss=balanced)) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(("take", "said"), [(float, True), (lambda loss: loss, False)])
def test_losses_that_are_added_up_as_numbers_are_found(take, said: bool) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.heads = mlp(16, 32, 32), nn.ModuleList(nn.Linear(32, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([head(self.body(x).relu()) for head in self.heads], 1)

    def total(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z[:, :1], y) + take(F.mse_loss(z[:, 1:], y.square()))

    assert ("detached_subgraph" in alarms(Heads(), numbers(), total)) == said


class HeadFirst(nn.Module):
    """A body that is cut off from its head for so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.calls = mlp(16, 64, 64), nn.Linear(64, 4), calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        h = self.body(x).relu()
        return self.head(h.detach() if self.calls >= 0 else h)


@pytest.mark.parametrize(("calls", "severity"), [(20, "note"), (1000, "error")])
def test_a_body_that_joins_its_head_later_was_cut_off_on_purpose(calls: int, severity: str) -> None:
    watch = InitAuditor()
    trainer = pl.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, callbacks=[watch])  # fmt: skip
    trainer.fit(LitModule(HeadFirst(calls), metrics=[]), DataLoader(TensorDataset(*vectors(512)), 32))
    assert [f.severity for f in watch.findings if f.rule == "detached_subgraph"] == [severity]
