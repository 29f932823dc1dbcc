"""`Standardize`: exact far from zero, safe on constants, the same everywhere, and fitted without a trace."""

import copy
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lit_training import LitModule, Standardize


@pytest.mark.parametrize("shape", [(4096, 3), (256, 3, 8, 8)])
def test_far_from_zero_it_equals_float64_in_two_passes(shape):
    x = (1e4 + 1e-2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).float()
    fitted = Standardize.fit(DataLoader(TensorDataset(x), batch_size=100))
    dims = [d for d in range(x.ndim) if d != 1]
    mean, std = x.double().mean(dims), x.double().std(dims, correction=0)
    assert torch.allclose(fitted.std.double(), std, rtol=1e-4)
    view = [1, -1] + [1] * (x.ndim - 2)
    expected = (x.double() - mean.view(view)) / std.view(view)
    assert torch.allclose(fitted(x).double(), expected, atol=2e-3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_batches_do_not_matter_and_the_result_is_standard(sizes, offset, scale, seed):
    x = offset + scale * torch.randn(sum(sizes) + 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole, parts = Standardize.fit(x), Standardize.fit(list(x.split([*sizes, 2])))
    assert torch.allclose(whole.std, parts.std, rtol=1e-5)
    y = whole(x)
    assert y.mean().abs() < 1e-3
    assert torch.allclose(y.std(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-3)


def test_a_constant_feature_becomes_zero_also_far_from_zero():
    x = torch.stack([torch.randn(100), torch.full((100,), 12345.678), torch.zeros(100)], 1)
    y = Standardize.fit(x)(x)
    assert torch.equal(y[:, 1:], torch.zeros(100, 2))


def test_images_of_bytes_and_half_precision():
    x = torch.randint(256, (32, 3, 4, 4), dtype=torch.uint8)
    fitted = Standardize.fit(DataLoader(TensorDataset(x, torch.zeros(32, dtype=torch.long)), batch_size=8))
    assert fitted(x).dtype == torch.float32
    assert fitted(x.half()).dtype == torch.float16
    assert torch.equal(copy.deepcopy(fitted).half()(x), fitted(x))  # the statistics stay float32


class Noisy(Dataset):
    """Draws from every global generator."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(2) + random.random() + np.random.rand(), i % 2  # noqa: NPY002


def test_fitting_leaves_every_generator_and_the_running_loader_as_they_were():
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(Noisy(), batch_size=5, shuffle=True, generator=generator)
    before = torch.get_rng_state(), random.getstate(), generator.get_state()
    expected = np.random.RandomState(4).rand()
    np.random.seed(4)  # noqa: NPY002
    Standardize.fit(loader)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert torch.equal(before[2], generator.get_state())
    assert np.random.rand() == expected  # noqa: NPY002


class Stream(IterableDataset):
    def __init__(self):
        self.rows = iter(range(12))

    def __iter__(self):
        return (torch.tensor([float(i)]) for i in self.rows)


def test_a_stream_is_not_consumed():
    data = Stream()
    assert Standardize.fit(DataLoader(data, batch_size=4)).mean.item() == 5.5
    assert len(list(data)) == 12


def test_it_is_saved_and_loaded_with_the_network():
    fitted = nn.Sequential(Standardize.fit(torch.randn(50, 3) * 4 + 2), nn.Linear(3, 1))
    other = nn.Sequential(Standardize(), nn.Linear(3, 1))
    other.load_state_dict(fitted.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(other(x), fitted(x))


def test_never_fitted_it_warns_once_and_changes_nothing():
    x = torch.randn(2, 3)
    standardize = Standardize()
    with pytest.warns(UserWarning, match="never fitted"):
        assert torch.equal(standardize(x), x)
    standardize(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Standardize(mean=[0.0]), "both mean and std"),
        (lambda: Standardize([0.0], [-1.0]), "not negative"),
        (lambda: Standardize([0.0, 1.0], [1.0]), "one shape"),
        (lambda: Standardize.fit([]), "no batch"),
        (lambda: Standardize.fit(torch.tensor([[1.0, torch.nan], [0.0, 0.0]])), r"channels \[1\]"),
        (lambda: Standardize([0.0], [1.0])(torch.zeros(2, 3)), "fitted to 1 channels"),
    ],
)
def test_bad_input_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def data(n: int = 64) -> TensorDataset:
    x = 50 + 7 * torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 50).long())


def fit(module: LitModule, **kwargs) -> pl.Trainer:
    trainer = pl.Trainer(accelerator="cpu", barebones=True, max_epochs=2, **kwargs)
    trainer.fit(module, DataLoader(data(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0)))
    return trainer


class Own(LitModule):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("make", [lambda: LitModule(nn.Linear(4, 2), normalize="fit"), lambda: Own(normalize="fit")])
def test_normalize_fit_equals_standardising_by_hand_and_holds_in_forward_predict_and_export(make, tmp_path):
    torch.manual_seed(0)
    module = make()
    torch.manual_seed(0)
    network = nn.Linear(4, 2)
    by_hand = LitModule(nn.Sequential(Standardize.fit(data().tensors[0]), network))
    trainer = fit(module)
    fit(by_hand)
    x = data().tensors[0]
    assert torch.allclose(module(x), by_hand(x), atol=1e-6)
    predicted = torch.cat(trainer.predict(module, DataLoader(TensorDataset(x), batch_size=32)))
    assert torch.allclose(predicted, module(x))
    exported = torch.export.export(module.eval(), (x,)).module()
    assert torch.allclose(exported(x), module(x))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(other(x), module(x))


def test_a_fitted_module_is_taken_as_it_is_and_others_refused():
    given_module = Standardize([1.0] * 4, [2.0] * 4)
    module = LitModule(nn.Linear(4, 2), normalize=given_module)
    fit(module)
    assert given_module.mean.tolist() == [1.0] * 4
    with pytest.raises(TypeError, match="normalize must be"):
        LitModule(nn.Linear(4, 2), normalize=True)
