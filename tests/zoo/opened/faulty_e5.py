"""Faulty scales in a policy and in a signal net."""

from torch import Tensor, nn

from tests.zoo import data, more_data
from tests.zoo.case import Case, faulty, healthy
from tests.zoo.nets import CE, adam, he, init_weights, mlp, sgd, weighted


# ------------------------------------------------------------------------------------------ a policy's habits
@healthy("init_vanishing", "bad_gain", source="behaviour cloning with the habits of PPO: orthogonal, a last layer of gain 0.01")
def h_cloned_policy(seed: int) -> Case:
    model = init_weights(mlp([8, 48, 48, 48, 4], nn.Tanh), lambda weight: nn.init.orthogonal_(weight, 5 / 3))
    nn.init.orthogonal_(model[-1].weight, 0.01)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), max_steps=300, **CE)


@faulty("bad_gain", "init_vanishing", twin="h_cloned_policy", source="gain of a policy's last layer given to all its layers")
def f_cloned_policy_all_hushed(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.orthogonal_(weight, 0.01))


@faulty("saturation", "bad_gain", "init_exploding", twin="h_cloned_policy", source="tanh layers with a gain of 60")
def f_cloned_policy_all_shouting(case: Case) -> None:
    for layer in weighted(case.model)[:-1]:
        nn.init.orthogonal_(layer.weight, 60.0)


# ------------------------------------------------------------------------------------------ a plain signal net
def signal_net(width: int = 16, depth: int = 7) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv1d(width if i else 2, width, 5, padding=2), nn.ReLU()]
        layers += [nn.MaxPool1d(2)] if i in (1, 3) else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 3))


@healthy(source="plain 1-D convnet without normalisation, He initialisation")
def h_pulse_column(seed: int) -> Case:
    model = init_weights(signal_net(), he)
    return Case(seed=seed, model=model, data=more_data.pulses(seed), optimizer=adam(2e-3), max_steps=200, **CE)


def truncated(weight: Tensor) -> Tensor:
    return nn.init.trunc_normal_(weight, std=0.02)


@faulty(
    "init_vanishing",
    "bad_gain",
    twin="h_pulse_column",
    source="trunc_normal_(std=0.02) of vision transformers in a plain convnet",
)
def f_pulse_column_of_a_transformer(case: Case) -> None:
    init_weights(case.model, truncated)


@faulty("init_symmetry", twin="h_pulse_column", source="every kernel filled with one over its fan-in")
def f_pulse_column_of_averages(case: Case) -> None:
    init_weights(case.model, lambda weight: nn.init.constant_(weight, 1 / weight[0].numel()))
