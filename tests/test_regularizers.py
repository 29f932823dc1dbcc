"""L2, L1 and elastic net: the formulas, and where steps end: scikit-learn's solutions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_training import LitModule, decay_audit
from lit_training.callbacks import WeightDecay
from lit_training.regularizers import decay_, elastic_net_penalty, l1_penalty, l2_penalty, soft_threshold_, sparsity


@given(st.integers(0, 99), st.floats(0, 2))
def test_penalties_are_their_formulas_and_gradients_their_steps(seed, strength):
    w = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    assert l2_penalty([w], strength).item() == pytest.approx(strength / 2 * w.square().sum().item())
    assert l1_penalty([w], strength).item() == pytest.approx(strength * w.abs().sum().item())
    assert elastic_net_penalty([w], 1.0, strength).item() == pytest.approx((w.abs().sum() + strength * w.square().sum()).item())
    (gradient,) = torch.autograd.grad(strength / 2 * w.square().sum(), w)
    shrunk = w.detach().clone()
    decay_([shrunk], 0.1 * strength)
    assert torch.allclose(shrunk, w.detach() - 0.1 * gradient)


@given(st.integers(0, 99), st.floats(0, 2))
def test_the_soft_threshold_minimises_its_proximal_objective(seed, threshold):
    w = torch.randn(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = w.clone()
    soft_threshold_([result], threshold)

    def objective(v):
        return 0.5 * (v - w).square() + threshold * v.abs()

    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)[:, None]
    assert (objective(result) <= objective(grid).amin(0) + 1e-12).all()
    assert torch.equal(result == 0, w.abs() <= threshold)


def test_nan_stays_visible_and_zeros_are_counted():
    w = torch.tensor([torch.nan, 0.2, 3.0])
    soft_threshold_([w], 1.0)
    assert w[0].isnan()
    assert sparsity([w]).item() == pytest.approx(1 / 3)


def solve(callback, x, y, steps=3000, **optimizer):
    from lightning.pytorch import Trainer

    torch.manual_seed(0)
    settings = {"lr": 0.1, **optimizer}
    module = LitModule(
        nn.Linear(x.shape[1], 1, bias=False).double(),
        loss=lambda output, target: 0.5 * nn.functional.mse_loss(output, target),
        metrics=[],
        optimizer=lambda groups: torch.optim.SGD(groups, **settings),
        lr=settings["lr"],
        weight_decay=0,
    )
    data = [(x, y)]
    trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=[callback], barebones=True)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return module.network.weight.detach()[0]


@pytest.mark.parametrize(("decoupled", "momentum"), [(True, 0.0), (False, 0.9)])
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_it_ends_where_scikit_learn_does_with_the_same_zeros(decoupled, momentum, l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 12, generator=g, dtype=torch.float64)
    true = torch.zeros(12, dtype=torch.float64)
    true[:4] = torch.tensor([2.0, -1.5, 1.0, 0.5])
    y = (x @ true + 0.1 * torch.randn(60, generator=g, dtype=torch.float64))[:, None]
    l1, decay = 0.1, 2 * l2
    if l2:  # alpha * l1_ratio = l1, alpha * (1 - l1_ratio) = weight_decay
        model = linear_model.ElasticNet(alpha=l1 + decay, l1_ratio=l1 / (l1 + decay), fit_intercept=False, tol=1e-10)
    else:
        model = linear_model.Lasso(alpha=l1, fit_intercept=False, tol=1e-10)
    expected = torch.tensor(model.fit(x.numpy(), y[:, 0].numpy()).coef_)
    rate = 0.1 if not momentum else 0.02
    callback = WeightDecay(decay, l1=l1, decoupled=decoupled)
    found = solve(callback, x, y, steps=1500, lr=rate, momentum=momentum)
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.equal(found == 0, expected == 0)
    assert (expected == 0).any()


def test_the_decay_audit_says_what_decays_and_why():
    net = nn.ModuleDict(
        {
            "layer": nn.Linear(4, 4),
            "norm": nn.LayerNorm((4, 4, 4)),
            "words": nn.Embedding(9, 4),
            "head": nn.Linear(4, 9, bias=False),
        }
    )
    net["head"].weight = net["words"].weight
    net.register_parameter("cls_token", nn.Parameter(torch.zeros(1, 1, 4)))
    net["layer"].bias.requires_grad_(False)
    rows = {row.name: row for row in decay_audit(net).rows}
    assert rows["layer.weight"].decayed
    assert not rows["norm.weight"].decayed
    assert "3 dimensions" in rows["norm.weight"].flags[0]
    assert "token" in rows["cls_token"].flags
    assert rows["layer.bias"].flags == ("frozen: left alone",)
    assert [name for name in rows if "words" in name or "head" in name] == ["words.weight"]
    assert "tied with head.weight" in rows["words.weight"].flags
    text = str(decay_audit(net))
    assert "cls_token" in text
    assert "parameters decay" in text
