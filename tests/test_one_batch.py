"""`audit` and `overfit_one_batch`: without a Trainer, and without a trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_training import audit, overfit_one_batch
from lit_training.diagnosis.parts import summary
from tests.nets import NETS, batch_for, loss_for


def batch(n=32):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 8, generator=g), torch.randint(3, (n,), generator=g)


def net(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3), *more)


def state(model):
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return copy.deepcopy(model.state_dict()), gradients, torch.get_rng_state(), [m.training for m in model.modules()]


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("check", [audit, overfit_one_batch])
def test_it_leaves_no_trace(check):
    model = net()
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    before = state(model)
    check(model, batch(), F.cross_entropy)
    assert same(before, state(model))


@pytest.mark.parametrize("name", NETS)
def test_common_nets_have_no_alarm(name):
    torch.manual_seed(0)
    model = NETS[name]()
    assert [str(alarm) for alarm in audit(model, batch_for(model), loss_for(model)).alarms] == []


def test_the_report_has_findings_layers_and_a_table():
    report = audit(net(nn.Softmax(1)), batch(), F.cross_entropy)
    assert report.alarms[0].rule == "wrong_last_activation"
    assert [row.name for row in report.layers] == ["0", "4"]
    assert report.layers[0].std > 0
    assert "wrong_last_activation" in str(report)


def test_the_optimizer_is_judged_too():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rules = [alarm.rule for alarm in audit(model, batch(), F.cross_entropy, optimizer=optimizer).alarms]
    assert rules == ["not_in_optimizer"]


def test_the_samples_of_the_batch_are_judged_too():
    x, y = batch()
    x[:4, 0], x[5:8, 3] = -999, -999
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    assert audit(model, (x, y), F.cross_entropy).alarms[0].rule == "bad_data"


class Lstm(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=batch_first), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class FixedBatch(nn.Module):
    """Takes 32 samples, no more and no fewer, and turns them by one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x.view(32, 8).roll(1, 0) + x)


class Noisy(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.layer, self.p = nn.Linear(8, 3), p

    def forward(self, x):
        return self.layer(F.dropout(x, 0.2, training=self.training or self.p))


class MonteCarlo(Noisy):
    """Averages several masks in eval mode, on purpose."""

    def forward(self, x):
        return (
            super().forward(x) if self.training else torch.stack([super(MonteCarlo, self).forward(x) for _ in range(8)]).mean(0)
        )


@pytest.mark.parametrize(
    ("model", "inputs", "rules"),
    [
        (lambda: Lstm(False), torch.randn(32, 6, 8), ["batch_mixing"]),
        (lambda: Lstm(True), torch.randn(32, 6, 8), []),
        (lambda: Noisy(True), torch.randn(32, 8), ["dropout_active_in_eval"]),
        (lambda: Noisy(False), torch.randn(32, 8), []),
        (lambda: MonteCarlo(True), torch.randn(32, 8), []),
        (lambda: nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3, track_running_stats=False)), torch.randn(32, 8), []),
        (lambda: FixedBatch(), torch.randn(32, 8), ["batch_mixing"]),
    ],
)
def test_what_eval_mode_shows(model, inputs, rules):
    report = audit(model(), (inputs, torch.randint(3, (32,))), F.cross_entropy)
    assert [alarm.rule for alarm in report.alarms] == rules


def test_time_first_nets_do_not_mix_samples():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 16), nn.Linear(16, 3)

        def forward(self, x):  # [time, batch, features]
            return self.head(self.lstm(x)[0])

    x, y = torch.randn(6, 32, 8), torch.randint(3, (6, 32))
    report = audit(Tagger(), (x, y), lambda output, target: F.cross_entropy(output.flatten(0, 1), target.flatten()))
    assert "batch_mixing" not in [alarm.rule for alarm in report.alarms]


def test_one_batch_is_memorised_or_not():
    result = overfit_one_batch(net(), batch(), F.cross_entropy)
    assert result
    assert "memorised" in str(result)
    deaf = net()
    deaf[4].weight.requires_grad_(False).zero_()
    result = overfit_one_batch(deaf, batch(), F.cross_entropy, steps=60)
    assert not result
    assert "not memorised" in str(result)


@pytest.mark.parametrize("check", [audit, overfit_one_batch])
def test_bad_losses_say_what_to_write(check):
    with pytest.raises(ValueError, match=r"must return a scalar tensor, got a tensor of shape \(32,\); write loss.mean"):
        check(net(), batch(), lambda output, target: F.cross_entropy(output, target, reduction="none"))
    with pytest.raises(ValueError, match="has no gradient"):
        check(net(), batch(), lambda output, target: (output.argmax(1) == target).float().mean())
    with pytest.raises(TypeError, match="batch must be a tensor"):
        check(net(), 3, F.cross_entropy)


class Counts(nn.Module):
    """Takes sparse rows, as of words counted or of a graph's neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(0.2 * torch.randn(16, 8)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sparse.mm(x, self.weight).relu())


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_inputs_are_audited_like_others(layout: torch.layout) -> None:
    torch.manual_seed(0)
    net, x = Counts(), (torch.rand(32, 16) > 0.7).float()
    audited = audit(net, (x.to_sparse(layout=layout), torch.randint(3, (32,))), nn.CrossEntropyLoss())
    assert [row.name for row in audited.layers] == ["weight", "head"]
    assert not audited.alarms


class Spectral(nn.Module):
    """Mixes channels frequency by frequency (Li et al. 2021): its weights are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(1, 8), nn.Linear(8, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("bfi,io->bfo", torch.fft.rfft(self.lift(x[:, :, None]), dim=1), self.weight)
        return self.head(torch.fft.irfft(mixed, n=x.shape[1], dim=1).relu())[:, :, 0]


@pytest.mark.filterwarnings("error")
def test_complex_weights_are_audited_like_others() -> None:
    torch.manual_seed(0)
    net, x = Spectral(), torch.randn(32, 16)
    audited = audit(net, (x, x.cumsum(1)), nn.MSELoss(), optimizer=torch.optim.Adam(net.parameters()))
    assert [row.name for row in audited.layers] == ["lift", "weight", "head"]
    assert not audited.alarms


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_tensors_are_not_summed_up(layout: torch.layout) -> None:
    x = torch.eye(3).to_sparse(layout=layout)
    assert summary((x, torch.eye(3)), [(x.clone(), None)])[0] is None
