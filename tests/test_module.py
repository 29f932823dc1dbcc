"""`LitModule`: what it trains, what a subclass has to override, and what bad input says."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_training import LitModule

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def classes(n: int = 64) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    return TensorDataset(x, (x[:, 0] > 0).long())


def fit(module: pl.LightningModule, data: Any, **kwargs: Any) -> pl.Trainer:
    trainer = pl.Trainer(**QUIET | {"max_epochs": 2} | kwargs)
    trainer.fit(module, DataLoader(data, batch_size=16), DataLoader(data, batch_size=16))
    return trainer


def test_a_run_equals_the_plain_torch_loop_to_the_last_bit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plain.load_state_dict(network.state_dict())
    fit(LitModule(network, lr=0.1, momentum=0.9, weight_decay=0.01), classes())
    velocity = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for _ in range(2):
        for x, y in DataLoader(classes(), batch_size=16):
            loss = nn.functional.cross_entropy(plain(x), y)
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            with torch.no_grad():
                for (name, p), gradient in zip(plain.named_parameters(), gradients, strict=True):
                    if name.endswith("weight"):
                        gradient = gradient.add(p, alpha=0.01)
                    velocity[name].mul_(0.9).add_(gradient)
                    p.add_(velocity[name], alpha=-0.1)
    for (name, trained), expected in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(trained, expected), name


def test_accuracy_is_that_of_all_samples() -> None:
    module = LitModule(nn.Linear(4, 2), lr=0.5)
    trainer = fit(module, classes(50))
    x, y = classes(50).tensors
    expected = (module(x).argmax(1) == y).float().mean()
    assert trainer.callback_metrics["val_accuracy"].item() == pytest.approx(expected.item())


class DictNet(LitModule):
    def __init__(self) -> None:
        super().__init__(loss="mse")
        self.layer = nn.Linear(3, 1)

    def forward(self, signal: Tensor) -> Tensor:
        return self.layer(signal)


class TwoLosses(LitModule):
    def __init__(self) -> None:
        super().__init__(lr=0.1)
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def compute_loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        return super().compute_loss(outputs, target) + 0.1 * outputs.square().mean()


def test_a_subclass_with_dict_batches_and_a_regression_trains() -> None:
    data = [{"signal": torch.ones(3) * i / 16, "target": torch.tensor([i / 8])} for i in range(32)]
    trainer = fit(DictNet(), data, max_epochs=30)
    assert trainer.callback_metrics["val_r2"] > 0.5


def test_a_subclass_with_a_loss_of_its_own_trains() -> None:
    assert fit(TwoLosses(), classes(), max_epochs=5).callback_metrics["val_accuracy"] > 0.8


def test_an_optimiser_class_gets_named_groups_and_the_modules_rate() -> None:
    optimizer = LitModule(nn.Linear(2, 2), optimizer=torch.optim.AdamW, lr=3e-4, weight_decay=0.1).configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("decay", 3e-4, 0.1),
        ("no_decay", 3e-4, 0.0),
    ]


def test_a_checkpoint_loads_with_the_network_given(tmp_path: Any) -> None:
    module = LitModule(nn.Linear(4, 2))
    trainer = fit(module, classes())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = LitModule.load_from_checkpoint(tmp_path / "run.ckpt", network=nn.Linear(4, 2), weights_only=True)
    assert torch.equal(loaded.network.weight, module.network.weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: LitModule(nn.Linear(2, 2), loss="cros_entropy"), "nearest: .*cross_entropy", id="loss"),
        pytest.param(lambda: LitModule(nn.Linear(2, 2), metrics="accuracy"), "must be torchmetrics", id="metrics"),
        pytest.param(lambda: LitModule(nn.Linear(2, 2), lr=-1), "lr must be 0 or more, got -1", id="lr"),
        pytest.param(lambda: LitModule()(torch.zeros(1)), "has no network: pass one", id="network"),
    ],
)
def test_bad_arguments_say_what_to_write(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        pytest.param("mse", torch.zeros(8), r"target.unsqueeze\(1\)", id="broadcast"),
        pytest.param("cross_entropy", torch.full((8,), 3), "target.0. is class 3, but the outputs have 1 class", id="range"),
        pytest.param("cross_entropy", torch.zeros(8), "needs class indices of dtype int64", id="dtype"),
    ],
)
def test_a_target_that_does_not_fit_says_where(loss: str, target: Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(LitModule(nn.Linear(3, 1), loss=loss), TensorDataset(torch.zeros(8, 3), target))


class Rows:
    """A loader that knows where it was, as torchdata's `StatefulDataLoader`."""

    def __init__(self) -> None:
        self.batches, self.next = list(DataLoader(classes(), batch_size=8)), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        start, self.next = self.next, 0
        for i in range(start, len(self.batches)):
            self.next = i + 1
            yield self.batches[i]
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


class Killed(pl.Callback):
    """Saves in mid-epoch and stops the run as a crash would."""

    def __init__(self, path: Any, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


@pytest.mark.parametrize("step", [3, 11])
def test_resuming_in_mid_epoch_equals_the_uninterrupted_run(tmp_path: Any, step: int) -> None:
    def module() -> LitModule:
        torch.manual_seed(0)
        schedule = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # noqa: E731
        return LitModule(nn.Linear(4, 2), lr=0.3, lr_scheduler=schedule)

    def run(net: LitModule, *callbacks: pl.Callback, path: Any = None) -> dict[str, float]:
        trainer = pl.Trainer(**QUIET | {"max_epochs": 3, "callbacks": list(callbacks)})
        trainer.fit(net, Rows(), ckpt_path=path, weights_only=True if path else None)
        return {name: value.item() for name, value in trainer.callback_metrics.items()} | {
            "lr": trainer.optimizers[0].param_groups[0]["lr"]
        }

    whole, resumed = module(), module()
    expected = run(whole)
    with pytest.raises(RuntimeError, match="killed"):
        run(module(), Killed(tmp_path / "mid.ckpt", step))
    result = run(resumed, path=tmp_path / "mid.ckpt")
    assert result == expected
    assert torch.equal(whole.network.weight, resumed.network.weight)


def test_the_metrics_of_an_interrupted_epoch_count_all_its_samples(tmp_path: Any) -> None:
    def run(*callbacks: pl.Callback, path: Any = None) -> float:
        torch.manual_seed(0)
        trainer = pl.Trainer(**QUIET | {"max_epochs": 1, "callbacks": list(callbacks)})
        trainer.fit(LitModule(nn.Linear(4, 2), lr=0.3), Rows(), ckpt_path=path)
        return trainer.callback_metrics["train_accuracy"].item()

    with pytest.raises(RuntimeError, match="killed"):
        run(Killed(tmp_path / "mid.ckpt", 3))
    assert run(path=tmp_path / "mid.ckpt") == run()


def test_lower_layers_learn_more_slowly_with_layer_decay() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    groups = LitModule(net, lr=0.1, layer_decay=0.5).configure_optimizers().param_groups
    assert min(group["lr"] for group in groups) < 0.1
    assert max(group["lr"] for group in groups) == 0.1


class Width(LitModule):
    def __init__(self, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_subclass_loads_without_arguments_under_weights_only(tmp_path: Any) -> None:
    module = Width(2, lr=0.2, optimizer=torch.optim.AdamW)
    fit(module, classes()).save_checkpoint(tmp_path / "run.ckpt")
    loaded = Width.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert torch.equal(loaded.layer.weight, module.layer.weight)
    assert loaded.lr == 0.2


def test_a_checkpoint_without_the_network_says_what_to_write(tmp_path: Any) -> None:
    fit(LitModule(nn.Linear(4, 2)), classes()).save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(TypeError, match=r"LitModule.load_from_checkpoint\(path, network=\.\.\.\)"):
        LitModule.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)


@pytest.mark.parametrize("optimizer", [torch.optim.Rprop, torch.optim.LBFGS])
def test_an_optimiser_without_decay_names_the_callback(optimizer: Any) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.WeightDecay"):
        LitModule(nn.Linear(4, 2), optimizer=optimizer).configure_optimizers()


@pytest.mark.parametrize("optimizer", [torch.optim.Rprop, torch.optim.LBFGS])
def test_an_optimiser_without_decay_trains_with_decay_0(optimizer: Any) -> None:
    trainer = fit(LitModule(nn.Linear(4, 2), optimizer=optimizer, weight_decay=0), classes(), max_epochs=5)
    assert trainer.callback_metrics["val_accuracy"] > 0.8


def test_the_tuner_finds_and_sets_the_learning_rate(tmp_path: Any) -> None:
    module = LitModule(nn.Linear(4, 2), lr=1e-7)
    trainer = pl.Trainer(**QUIET | {"max_epochs": 2, "default_root_dir": tmp_path})
    pl.tuner.Tuner(trainer).lr_find(module, DataLoader(classes(), batch_size=8), num_training=30)
    assert module.lr > 1e-6


def test_multi_label_and_one_logit_binary() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    for target, width in (((x[:, :3] > 0).float(), 3), ((x[:, :1] > 0).float(), 1)):
        module = LitModule(nn.Linear(4, width), loss="binary_cross_entropy_with_logits", lr=0.5)
        trainer = fit(module, TensorDataset(x, target), max_epochs=10)
        expected = ((module(x) > 0) == target.bool()).float().mean()
        assert trainer.callback_metrics["val_accuracy"].item() == pytest.approx(expected.item())
        assert expected > 0.9


def test_a_plateau_schedule_watches_the_validation_loss() -> None:
    schedule = lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10)  # noqa: E731
    trainer = fit(LitModule(nn.Linear(4, 2), lr=0.1, lr_scheduler=schedule), classes(), max_epochs=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1


def test_it_compiles_and_trains_to_the_same_weights() -> None:
    def trained(wrap: Any) -> Tensor:
        torch.manual_seed(0)
        module = LitModule(nn.Linear(4, 2), lr=0.1)
        fit(wrap(module), classes())
        return module.network.weight

    compiled = trained(lambda module: torch.compile(module, backend="eager"))
    assert torch.allclose(compiled, trained(lambda module: module), atol=1e-6)
