"""A first step that raises is explained at the layer that was given what it cannot take."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_training import LitModule
from lit_training.callbacks import Diagnostics, InitAuditor
from lit_training.diagnosis.crash import explain_crash


def explain(net: nn.Module, x: torch.Tensor):
    try:
        net(x)
    except Exception as error:
        return explain_crash(error, net)
    raise AssertionError("it did not raise")


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: nn.Sequential(nn.Identity(), nn.Sequential(net))])
@pytest.mark.parametrize(
    ("net", "x", "message", "advice"),
    [
        (nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "given torch.uint8 of shape", "float() / 255"),
        (nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8, dtype=torch.long), "given torch.int64 of shape", "x.float()."),
        (nn.Linear(4, 2), torch.zeros(3, 4, dtype=torch.float64), "given torch.float64", "torch.float32"),
        (nn.Linear(4, 2), torch.zeros(3, 2, 2), "last dimension is 2; it takes 4 features", "in_features=2"),
        (nn.Conv2d(3, 2, 3), torch.zeros(2, 8, 8, 3), "it takes (N, 3, H, W)", "permute(0, 3, 1, 2)"),
        (nn.Conv1d(3, 2, 3), torch.zeros(2, 4, 9), "it takes (N, 3, W)", "channels second"),
        (nn.Embedding(10, 2), torch.tensor([[3, 10]]), "indices from 3 to 10, its table has 10 rows", "at least 11"),
        (nn.Embedding(10, 2), torch.zeros(2, 3), "it takes indices", "x.long()"),
        (nn.LSTM(4, 2), torch.zeros(3, 2, 4, dtype=torch.long), "given torch.int64", "x.float()"),
    ],
)  # fmt: skip
def test_what_a_layer_cannot_take_is_named(wrap, net, x, message, advice) -> None:
    (finding,) = explain(wrap(net), x)
    assert message in finding.message
    assert advice in finding.advice
    assert finding.where in ("", "1.0")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        raise ValueError("something of the user's")


def test_what_the_user_raises_is_not_explained() -> None:
    assert explain(Own(), torch.zeros(2, 2)) == []


class Tokens(nn.Module):
    """Takes token numbers, and has a table of its own to add to what it looks up."""

    def __init__(self, table: torch.Tensor, error: str = "") -> None:
        super().__init__()
        self.embed, self.places, self.error = nn.Embedding(5, 3), nn.Parameter(table), error

    def forward(self, x):
        if self.error:
            raise RuntimeError(self.error)
        return self.embed(x) + self.places


@pytest.mark.parametrize(
    ("table", "error"),
    [
        (torch.zeros(7, 3), ""),
        (torch.zeros(4, 3), "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
        (torch.zeros(4, 3), "expected scalar type Float but found Half"),
    ],
)
def test_token_numbers_are_no_mistake_of_a_module_that_looks_them_up(table: torch.Tensor, error: str) -> None:
    assert explain(Tokens(table, error), torch.zeros(2, 4, dtype=torch.long)) == []


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        return x @ self.weight


def test_a_layer_of_the_users_own_is_explained_where_types_are_the_matter() -> None:
    (finding,) = explain(Table(), torch.zeros(2, 4, dtype=torch.long))
    assert "torch.int64" in finding.message
    assert explain(Table(), torch.zeros(2, 5)) == []


@pytest.mark.parametrize("make", [InitAuditor, Diagnostics])
def test_the_run_ends_with_its_own_error_and_the_explanation(make, capsys: pytest.CaptureFixture[str]) -> None:
    net = LitModule(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)))
    data = torch.utils.data.TensorDataset(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.long))
    watch = make()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[watch])
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.fit(net, torch.utils.data.DataLoader(data, 4))
    (finding,) = watch.findings
    assert (finding.rule, finding.where) == ("bad_data", "network.0")
    assert "torch.uint8" in capsys.readouterr().out
