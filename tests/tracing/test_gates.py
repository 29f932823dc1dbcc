"""What goes on inside recurrent layers, computed anew."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lit_training.tracing.gates import _first_steps, _run, stuck_gates


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.GRU, {"bias": False}),
        (nn.RNN, {"nonlinearity": "tanh"}),
        (nn.RNN, {"nonlinearity": "relu"}),
        (nn.LSTM, {"proj_size": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_the_steps_are_those_of_torch(kind, options):
    rnn, x = kind(5, 7, **options), torch.randn(9, 4, 5)
    output, _ = _run(rnn, "_l0", list(x))
    torch.testing.assert_close(output, rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("factor", "low", "high"), [(1, 0, 0.01), (3, 0, 0.3), (10, 0.1, 0.8), (100, 0.8, 1)])
def test_the_larger_the_weights_the_more_gates_are_stuck(kind, factor, low, high):
    torch.manual_seed(0)
    rnn = kind(8, 64, num_layers=2, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            if "weight" in name:
                weight.mul_(factor)
    levels = stuck_gates(rnn, torch.randn(32, 20, 8)).mean(0)
    assert levels.shape == (4,)
    assert low <= levels.max() <= high


def test_inputs_of_any_form_give_the_same_share():
    torch.manual_seed(0)
    first, last = nn.LSTM(5, 7, batch_first=True), nn.LSTM(5, 7)
    last.load_state_dict(first.state_dict())
    x = 20 * torch.randn(3, 6, 5)
    share = stuck_gates(first, x)
    assert share.min() > 0
    torch.testing.assert_close(stuck_gates(last, x.transpose(0, 1)), share)
    torch.testing.assert_close(stuck_gates(first, pack_padded_sequence(x, torch.tensor([6, 6, 6]), batch_first=True)), share)
    torch.testing.assert_close(stuck_gates(first, x[0]), share[:1])


def test_few_samples_and_steps_are_looked_at():
    assert _first_steps(torch.randn(100, 50, 5), batch_first=True).shape == (16, 8, 5)
    packed = pack_padded_sequence(torch.randn(3, 9, 5), torch.tensor([9, 4, 2]), batch_first=True)
    assert _first_steps(packed, batch_first=True).shape == (2, 3, 5)


@pytest.mark.parametrize("bias", [3.0, -7.0])
def test_what_a_bias_opens_or_closes_is_not_stuck(bias):
    rnn = nn.LSTM(8, 32)
    nn.init.constant_(rnn.bias_ih_l0, bias)
    assert stuck_gates(rnn, torch.randn(10, 4, 8)).max() < 0.01
