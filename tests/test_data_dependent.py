"""Schemes that look at data: LSUV divides to variance 1, Kraehenbuehl's evens out how fast layers learn."""

import pytest
import torch
from torch import nn

from lit_training import audit, initialize_
from tests.audits import digits, made, relu_stack
from tests.nets import batch_for


@pytest.mark.parametrize("build", ["linear", "conv"])
def test_lsuv_gives_variance_1_in_at_most_two_divisions(build):
    torch.manual_seed(0)
    if build == "linear":
        net, x = relu_stack(), digits()
    else:
        parts = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        for _ in range(14):
            parts += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        net, x = nn.Sequential(*parts), digits().view(-1, 1, 8, 8)
    report = initialize_(net, "lsuv", batch=x)
    assert max(row.divisions for row in report) <= 2
    for layer in net:
        if not isinstance(layer, nn.ReLU):
            assert layer(x).var(correction=0).sub(1).abs() <= 0.04
        x = layer(x).detach()


def test_one_pass_lsuv_equals_the_loop_layer_by_layer():
    """The paper divides only where the variance is off by the tolerance; here, and in this loop, each layer at least once."""

    @torch.no_grad()
    def layer_by_layer(net, x):
        for i, layer in enumerate(net):
            if isinstance(layer, nn.Linear):
                for _ in range(10):
                    layer.weight.div_(net[: i + 1](x).var(correction=0).sqrt())
                    if abs(net[: i + 1](x).var(correction=0) - 1) < 0.1:
                        break

    torch.manual_seed(0)
    net, other = relu_stack(10), relu_stack(10)
    initialize_(other, "orthogonal", nonlinearity="linear", generator=torch.Generator().manual_seed(3))
    layer_by_layer(other, digits())
    initialize_(net, "lsuv", batch=digits(), generator=torch.Generator().manual_seed(3))
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def classifier(depth, width=128):
    return nn.Sequential(*relu_stack(depth - 1, width), nn.Linear(width, 10))


@pytest.mark.parametrize(("depth", "width"), [(8, 128), (20, 32), (30, 128), (40, 64)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kraehenbuehl_evens_out_how_fast_layers_learn_and_the_audit_is_silent(depth, width, seed):
    from sklearn.datasets import load_digits

    torch.manual_seed(seed)
    net, x, y = classifier(depth, width), digits(), torch.tensor(load_digits().target[:256])
    history = initialize_(net, "data_dependent", batch=x).gradient_rates
    spread = [torch.tensor(list(rates.values())).log().std().item() for rates in history]
    assert spread[-1] <= spread[0] / 10
    optimizer = torch.optim.SGD(net.parameters(), 0.003, momentum=0.9)
    assert [str(alarm) for alarm in audit(net, (x, y), nn.functional.cross_entropy, optimizer=optimizer).alarms] == []


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "generator"])
def test_rates_are_equal_behind_skip_connections_and_batch_norm(name):
    net = made(name)
    history = initialize_(net, "data_dependent", batch=batch_for(net)).gradient_rates
    spread = [torch.tensor(list(rates.values())).log().std().item() for rates in history]
    assert spread[-1] <= spread[0] / 10


def test_rates_that_cannot_be_made_equal_are_left_as_they_were():
    """The logits of an attention that is written by hand grow with the square of its projection's scale."""
    net = made("vit")
    report = initialize_(net, "data_dependent", batch=batch_for(net))
    assert len(report.gradient_rates) == 1
    assert "gradient rates left as they were" in report.summary
    assert report["layers.1.fc1.weight"].std == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("mean", "growth"), [(0.0, 1.15), (1.0, 1.02)])
def test_units_in_front_of_a_rectifier_are_raised_so_that_gradients_keep_their_length(mean, growth):
    torch.manual_seed(0)
    net, x = classifier(30), digits()
    initialize_(net, "data_dependent", batch=x, mean=mean, between_layers=False)
    gradients = []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            torch.testing.assert_close(
                x.mean(0), torch.full_like(x[0], mean if layer is not net[-1] else 0.0), rtol=0, atol=1e-4
            )
            x.retain_grad()
            gradients.append(x)
    x.square().mean().backward()
    per_layer = (gradients[0].grad.norm() / gradients[28].grad.norm()).item() ** (1 / 28)
    assert growth < per_layer < growth + 0.1
