"""How many gates of a recurrent layer are stuck at their bounds: what goes on inside torch's fused operation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lit_training.layers import read

__all__ = ["stuck_gates"]

_SAMPLES = 8
_STEPS = 16
_SIGMOID = math.log(0.99 / 0.01)
_TANH = math.atanh(0.98)
_BOUNDS = {
    "LSTM": (_SIGMOID, _SIGMOID, _TANH, _SIGMOID),
    "GRU": (_SIGMOID, _SIGMOID, _TANH),
    "RNN_TANH": (_TANH,),
    "RNN_RELU": (math.inf,),
}


@torch.no_grad()
def stuck_gates(rnn: nn.RNNBase, inputs: Tensor | PackedSequence) -> Tensor:
    """Return the share of gate values within 1 % of their range from a bound, where the weights and not the bias put them.

    The first steps of a few samples are computed anew from a state of zeros. A gate that its bias alone opens or closes is not
    stuck: it is meant so (Tallec and Ollivier 2018 start forget gates at log(T)).

    Args:
        rnn: an LSTM, GRU or RNN.
        inputs: as it was called with.

    Returns:
        `[samples, levels]`, a level for each layer and direction.

    >>> rnn = nn.GRU(3, 4, num_layers=2, bidirectional=True)
    >>> stuck_gates(rnn, torch.randn(10, 5, 3)).shape, stuck_gates(rnn, 1e4 * torch.randn(10, 5, 3))[:, 0].mean() > 0.9
    (torch.Size([5, 4]), tensor(True))
    """
    values = _first_steps(inputs, rnn.batch_first)
    shares = []
    for layer in range(rnn.num_layers):
        outputs = []
        for suffix in ("", "_reverse") if rnn.bidirectional else ("",):
            steps = list(values.flip(0) if suffix else values)
            output, share = _run(rnn, f"_l{layer}{suffix}", steps)
            outputs.append(output.flip(0) if suffix else output)
            shares.append(share)
        values = torch.cat(outputs, -1)
    return torch.stack(shares, 1)


def _first_steps(inputs: Tensor | PackedSequence, batch_first: bool) -> Tensor:
    """Return `[steps, samples, features]` of a few samples; of packed ones, which are sorted, the steps they all have."""
    if isinstance(inputs, PackedSequence):
        few = min(_SAMPLES, int(inputs.batch_sizes[0]))
        steps = inputs.data.split(inputs.batch_sizes.tolist())[:_STEPS]
        return torch.stack([step[:few] for step in steps if len(step) >= few]).float()
    if inputs.ndim == 2:
        return inputs[:_STEPS, None].float()
    return (inputs.transpose(0, 1) if batch_first else inputs)[:_STEPS, :_SAMPLES].float()


def _run(rnn: nn.RNNBase, suffix: str, steps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the outputs `[steps, samples, units]` of one level, and its share of stuck gates `[samples]`."""
    of_input, of_state = (read(getattr(rnn, f"weight_{part}{suffix}")).float() for part in ("ih", "hh"))
    zero = of_input.new_zeros(())
    bias_input, bias_state = (read(getattr(rnn, f"bias_{part}{suffix}")).float() if rnn.bias else zero for part in ("ih", "hh"))
    projection = read(getattr(rnn, f"weight_hr{suffix}")).float() if rnn.proj_size else None
    bounds = of_input.new_tensor(_BOUNDS[rnn.mode]).repeat_interleave(rnn.hidden_size)
    hidden = of_input.new_zeros(len(steps[0]), of_state.shape[1])
    cell = of_input.new_zeros(len(steps[0]), rnn.hidden_size)
    outputs, stuck = [], []
    for step in steps:
        arriving, kept = step @ of_input.T, hidden @ of_state.T
        gates = _gates(rnn.mode, arriving + bias_input, kept + bias_state)
        moved = _gates(rnn.mode, arriving, kept)
        stuck.append(((gates.abs() > bounds) & (moved.abs() > bounds)).float().mean(1))
        hidden, cell = _next(rnn.mode, gates, hidden, cell)
        hidden = hidden if projection is None else hidden @ projection.T
        outputs.append(hidden)
    return torch.stack(outputs), torch.stack(stuck).mean(0)


def _gates(mode: str, arriving: Tensor, kept: Tensor) -> Tensor:
    """Return what goes into the gates; a GRU's last one takes from the state what its reset gate lets through."""
    if mode != "GRU":
        return arriving + kept
    size = arriving.shape[1] // 3
    switches = (arriving + kept)[:, : 2 * size]
    reset = switches[:, :size].sigmoid()
    return torch.cat([switches, arriving[:, 2 * size :] + reset * kept[:, 2 * size :]], 1)


def _next(mode: str, gates: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    if mode == "LSTM":
        take, keep, new, show = gates.chunk(4, 1)
        cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        _, update, new = gates.chunk(3, 1)
        return torch.lerp(new.tanh(), hidden, update.sigmoid()), cell
    return (gates.tanh() if mode == "RNN_TANH" else gates.relu()), cell
