"""Weights that are drawn too small."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.diagnosis.rules.looking import adam, alarms, fill, findings, mlp, numbers, vectors


def he(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


DEEP = [16] + [64] * 10 + [4]


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU])
def test_a_small_std_in_a_deep_net_vanishes(act: Callable[[], nn.Module]) -> None:
    found = findings(fill(mlp(*DEEP, act=act), lambda w: nn.init.normal_(w, std=0.01)))
    assert [f.rule for f in found if f.severity != "note"] == ["init_vanishing"]
    assert found[0].where == "0"


def test_he_keeps_the_signal_in_thirty_layers() -> None:
    assert alarms(fill(mlp(16, *[64] * 30, 4), he), optimizer=adam) == []


@pytest.mark.parametrize(("depth", "vanishes"), [(4, False), (12, True)])
def test_default_initialisation_vanishes_in_deep_nets_only(depth: int, vanishes: bool) -> None:
    assert alarms(mlp(16, *[64] * depth, 4)) == (["init_vanishing"] if vanishes else [])


def test_adam_takes_what_sgd_does_not() -> None:
    assert alarms(mlp(16, *[64] * 8, 4)) == ["init_vanishing"]
    assert alarms(mlp(16, *[64] * 8, 4), optimizer=adam) == []


class Residual(nn.Module):
    """Blocks with a skip connection, whose last layers start at zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.blocks = nn.ModuleList(mlp(64, 64, 64, seed=i) for i in range(5))
        for block in self.blocks:
            nn.init.zeros_(block[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_that_start_at_zero_are_silent() -> None:
    assert alarms(Residual()) == []


def test_a_head_that_starts_at_zero_is_silent() -> None:
    model = mlp(16, 64, 64, 4)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    assert alarms(model) == []


class Counting(nn.Module):
    """Units that fire above a threshold, at the second step for the first time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        charge, logits = torch.zeros(1), torch.zeros(1)
        for threshold in (1e3, 0.5, 0.5):
            charge = charge + self.inner(x)
            logits = logits + self.outer((charge - threshold).relu())
        return logits


def test_a_first_step_without_a_signal_is_silent() -> None:
    assert alarms(Counting(), optimizer=adam) == []


class Deep(nn.Module):
    """A deep part of small weights, alone or added to a wide one."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.deep = fill(mlp(16, 64, 64, 4), lambda w: nn.init.normal_(w, std=1e-4))
        self.wide = nn.Linear(16, 4) if wide else None

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(x) if self.wide is None else self.deep(x) + self.wide(x)


def test_small_weights_that_adam_overwrites_are_silent_beside_a_wide_part() -> None:
    assert alarms(Deep(wide=True), optimizer=adam) == []
    assert alarms(Deep(wide=False), optimizer=adam) == ["init_vanishing"]
    assert alarms(Deep(wide=True), optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.05)) == ["init_vanishing"]


class Gated(nn.Module):
    """A body that a gate of a few units weighs; all of them are silent."""

    def __init__(self, *, on_the_way: bool) -> None:
        super().__init__()
        self.body, self.squeeze, self.excite, self.head = mlp(16, 32), nn.Linear(32, 4), nn.Linear(4, 32), nn.Linear(32, 4)
        nn.init.constant_(self.squeeze.bias, -9.0)
        self.on_the_way = on_the_way

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        gate = self.excite(self.squeeze(h).relu()).sigmoid()
        return self.head(gate if self.on_the_way else h * gate)


def test_a_silent_gate_does_not_lose_the_signal_that_it_weighs() -> None:
    torch.manual_seed(0)
    assert alarms(Gated(on_the_way=False), vectors(), optimizer=adam) == []
    lost = findings(Gated(on_the_way=True), vectors(), optimizer=adam)[0]
    assert (lost.rule, lost.message.split(",")[0]) == ("init_vanishing", "By excite")


class Codes(nn.Module):
    """Codes that are chosen by distance and learned straight through (van den Oord et al. 2017): at first all choose one."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.codes, self.decoder = mlp(16, 32, 4), nn.Embedding(8, 4), mlp(4, 32, 1)
        fill(self.encoder, lambda weight: nn.init.normal_(weight, std=1e-4))
        self.straight = straight

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        if self.straight:
            code = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
            z = z + (code - z).detach()
        return self.decoder(z)


@pytest.mark.parametrize(("straight", "vanishes"), [(True, False), (False, True)])
def test_codes_of_which_all_samples_choose_one_are_silent(straight: bool, vanishes: bool) -> None:
    said = alarms(Codes(straight), numbers(), F.mse_loss, optimizer=adam)
    assert ("init_vanishing" in said) == vanishes


class Squeezed(nn.Module):
    """Blocks whose branch starts at zero, with a squeeze layer that reads it (SE-ResNet with zero-initialised last gains)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch, self.gain = nn.Linear(16, 64), mlp(64, 64, 64), nn.Parameter(torch.zeros(64))
        self.squeeze, self.excite, self.head = nn.Linear(64, 16), nn.Linear(16, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        branch = self.gain * self.branch(x)
        return self.head(x + branch * self.excite(self.squeeze(branch).relu()).sigmoid())


@pytest.mark.parametrize("bias", [True, False])
def test_a_squeeze_layer_in_a_branch_that_starts_at_zero_is_silent(bias: bool) -> None:
    model = Squeezed()
    if not bias:
        nn.init.zeros_(model.squeeze.bias)
    assert alarms(model) == []


class Asked(nn.Module):
    """A class token that asks the others late, behind a layer scale (Touvron et al. 2021, Going deeper with image transformers)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.token = nn.Linear(4, 32), nn.LayerNorm(32), nn.Parameter(0.02 * torch.randn(1, 1, 32))
        self.query, self.key, self.value, self.mix = (nn.Linear(32, 32) for _ in range(4))
        self.body, self.head, self.scale = mlp(32, 32, 32), nn.Linear(32, 4), nn.Parameter(scale * torch.ones(32))
        nn.init.normal_(self.body[0].weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.reshape(len(x), 4, 4))], 1)
        normed = self.norm(tokens)
        heard = F.scaled_dot_product_attention(self.query(normed[:, :1]), self.key(normed), self.value(normed))
        token = tokens[:, 0] + self.scale * self.mix(heard[:, 0])
        return self.head(self.norm(token + self.scale * self.body(self.norm(token))))


@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("rate", [1e-3, 1e-7])
def test_a_class_token_that_asks_late_is_silent(scale: float, rate: float) -> None:
    assert "init_vanishing" not in alarms(Asked(scale), optimizer=lambda m: torch.optim.Adam(m.parameters(), rate))


class Mixed(nn.Module):
    """Attention of many tokens whose heads are mixed after the softmax (Touvron et al. 2021)."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = tokens, nn.Linear(16, 4)
        self.query, self.key, self.value, self.embed = (nn.Linear(16, 16) for _ in range(4))
        self.heads = nn.Linear(2, 2, bias=False)
        for part in (self.query, self.key):
            nn.init.normal_(part.weight, std=0.005)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, None] * torch.linspace(-1, 1, self.tokens)[:, None])
        q, k, v = (part(x).unflatten(2, (2, 8)).transpose(1, 2) for part in (self.query, self.key, self.value))
        shares = self.heads((q @ k.mT / 8**0.5).softmax(-1).movedim(1, -1)).movedim(-1, 1)
        return self.head((x + (shares @ v).transpose(1, 2).flatten(2))[:, 0])


@pytest.mark.parametrize("tokens", [8, 512])
def test_shares_of_many_tokens_are_small_by_nature(tokens: int) -> None:
    assert "init_vanishing" not in alarms(Mixed(tokens), optimizer=adam)


class Modulated(nn.Module):
    """A branch of products of small weights, added to what it modulates, as focal modulation is (Yang et al. 2022)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.branch = mlp(64, 64, 64, 64, act=nn.GELU)
        fill(self.branch, lambda weight: nn.init.normal_(weight, std=std))
        for layer in self.branch:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        out: Tensor = self.head(x + self.branch(x))
        return out


@pytest.mark.parametrize(("std", "said"), [(0.005, []), (0.0001, ["init_vanishing"])])
def test_a_small_branch_beside_the_signal_is_silent_under_plain_descent(std: float, said: list[str]) -> None:
    assert alarms(Modulated(std)) == said


class Corner(nn.Module):
    """Shortcuts carry on one pixel that is the same in all pictures, and branches start at zero (RegNet on small pictures)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shortcut, self.branch, self.norm = nn.Linear(1, 16), mlp(16, 64, 16), nn.BatchNorm1d(16)
        self.second, self.head = mlp(16, 32, 32), nn.Linear(32, 4)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(self.shortcut(0 * x[:, :1]) + self.norm(self.branch(x))).relu())
        return out


def test_what_comes_out_of_branches_whose_last_gain_starts_at_zero_is_silent() -> None:
    assert "init_vanishing" not in alarms(Corner(0.0))
