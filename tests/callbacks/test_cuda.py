"""On a GPU, where kernels are others: training is bit-identical, and what the CPU's diagnosis says is said there, too."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training.callbacks import diagnostics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOKENS = torch.randint(1, 9, (128, 12), generator=torch.Generator().manual_seed(0))
LABELS = (TOKENS.float().mean(1) * 2).long() % 4


class Fit(pl.LightningModule):
    def __init__(self, net: nn.Module, loss=F.cross_entropy, optimizer=torch.optim.SGD) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer = net, loss, optimizer

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self.loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=0.01)


class Reader(nn.Module):
    """Word vectors, a recurrent layer of which only the state is read, dropout in the mode it should have or always."""

    def __init__(self, drop: float = 0.2, always: bool = False, outputs: int = 4, attend: bool = True) -> None:
        super().__init__()
        self.embed, self.gru, self.head = nn.Embedding(9, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(16, outputs)
        self.attend = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) if attend else nn.Identity()
        self.drop, self.always = drop, always

    def forward(self, x: Tensor) -> Tensor:
        state = self.gru(self.attend(self.embed(x)))[1][0]
        return self.head(F.dropout(state, self.drop, self.training or self.always))


def fit(module: pl.LightningModule, callbacks=(), data=(TOKENS, LABELS), **settings):
    loader = DataLoader(TensorDataset(*data), 32)
    settings = {"max_steps": 8, "accelerator": "gpu", "devices": 1, "logger": False} | settings
    settings |= {f"enable_{what}": False for what in ("progress_bar", "checkpointing", "model_summary")}
    pl.Trainer(callbacks=list(callbacks), **settings).fit(module, loader, loader)
    return {name: value.cpu() for name, value in module.state_dict().items()} | {"drawn": torch.rand(1, device="cuda").cpu()}


def said(module: pl.LightningModule, **settings) -> list[str]:
    callbacks = diagnostics()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*failed, training goes on")
        fit(module, callbacks, **settings)
    return [finding.rule for callback in callbacks for finding in callback.findings if finding.severity != "note"]


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_is_bit_identical(precision: str, optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    results = []
    for callbacks in ([], diagnostics()):
        torch.manual_seed(0)
        module = Fit(Reader(), optimizer=optimizer)
        results.append(fit(module, callbacks, precision=precision, deterministic="warn", gradient_clip_val=1.0))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_nothing_is_wrong_with_what_is_right(precision: str) -> None:
    torch.manual_seed(0)
    assert said(Fit(Reader()), precision=precision) == []


def test_dropout_that_is_never_off_is_named() -> None:
    torch.manual_seed(0)
    assert said(Fit(Reader(0.5, always=True)))[:1] == ["dropout_active_in_eval"]


def test_lengths_of_ctc_may_be_on_the_cpu() -> None:
    class Spell(Reader):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(self.embed(x))[0]).log_softmax(2).transpose(0, 1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.ctc_loss(output, target, torch.full((len(target),), 12), torch.full((len(target),), 4))

    fit(Fit(Spell(outputs=9), loss), diagnostics(), data=(TOKENS, TOKENS[:, ::3]))


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize(
    ("data", "rule", "message"),
    [
        ((TOKENS, LABELS + 1), "labels_broken", "The labels go from 1 to 4, cross_entropy of 4 classes takes 0 to 3."),
        ((TOKENS + 1, LABELS), "bad_data", "indices from 2 to 9, its table has 9 rows"),
    ],
)
def test_an_index_out_of_range_is_explained_and_not_asserted(data, rule: str, message: str, sanity: int) -> None:
    callbacks = diagnostics()
    with pytest.raises(IndexError):
        fit(Fit(Reader()), callbacks, data=data, num_sanity_val_steps=sanity)
    (finding,) = [finding for callback in callbacks for finding in callback.findings if finding.severity != "note"]
    assert finding.rule == rule
    assert message in finding.message
    assert torch.ones(2, device="cuda").sum().item() == 2
