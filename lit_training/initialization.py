"""`initialize_`: draw all weights of a model by a published scheme, right for each layer and for what follows it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, nn

from lit_training.data_dependent import equalize_gradient_rates_, lsuv_, normalize_units_
from lit_training.forward_pass import Site
from lit_training.gains import RECTIFIERS, Nonlinearity, gain
from lit_training.init_plan import choose_layers, forward_graph, plan_row, warn_of_overwriting
from lit_training.init_report import InitReport
from lit_training.layers import Layer, read, write_
from lit_training.running import Runner, restored_on_error, runner_for
from lit_training.schemes import NEEDS_DATA, check_scheme, draw_
from lit_training.selection import classify
from lit_training.tracing.following import Following, following, last_layers, residual_branch_ends
from lit_training.tracing.graph import Graph

__all__ = ["OutputPrior", "check_output_prior", "initialize_", "initialize_with_"]

Patterns = str | Sequence[str] | None
OutputPrior = float | Sequence[float] | None


def initialize_(
    model: nn.Module,
    scheme: str = "he",
    *,
    batch: Any = None,
    nonlinearity: Nonlinearity = "auto",
    include: Patterns = None,
    exclude: Patterns = None,
    zero_init_residual: bool = False,
    forget_gate_bias: float = 1.0,
    output_prior: OutputPrior = None,
    generator: Generator | None = None,
    **scheme_options: Any,
) -> InitReport:
    """Draw all weights of a model anew, in place: each with the fan its layer has and the gain of what follows it.

    Biases become zero. Normalisation layers, tokens, position tables and other parameters that are no layer's weight stay as
    they are, and so does what is frozen. Recurrent layers have gain 1, so that a step repeated neither grows nor shrinks the
    state.

    | scheme | weights | source |
    |---|---|---|
    | `normal` | normal with `std` (default .01) | the lecture's bad example |
    | `glorot`, `glorot_uniform` | variance 2 / (fan_in + fan_out) | Glorot and Bengio 2010 |
    | `he`, `he_uniform` | variance gain² / fan_in | He et al. 2015 |
    | `orthogonal` | orthogonal times gain | Saxe et al. 2014 |
    | `random_walk` | unbiased logarithm of the norm | Sussillo and Abbott 2014 |
    | `lsuv` | orthonormal, then output variance 1 (`tolerance`, `max_iterations`) | Mishkin and Matas 2016 |
    | `data_dependent` | units normalised, layers learn equally fast (options below) | Kraehenbuehl et al. 2016 |

    Options of `data_dependent`: `mean` (1) of units in front of a rectifier, `weights` (`"random"`, `"pca"` or `"kmeans"` of the
    layer's input), `between_layers` (True), `max_iterations` (10), `loss_fn(output, target)` (a random linear function of the
    outputs).

    Args:
        model: any module. It is run in the mode it is in; buffers and random generators are left as they were.
        scheme: a name from the table.
        batch: inputs, or `(inputs, targets)` as a loader gives it. `lsuv` and `data_dependent` need it; the others use it, if
            given, to see what follows each layer in a real forward. Without it `torch.fx` is asked.
        nonlinearity: what follows all layers, as `lit_training.gain` takes it; `"auto"` finds out. Where that fails ReLU is
            assumed, and the report says so.
        include: patterns of what to initialise; see `lit_training.select`.
        exclude: patterns of what to leave alone, such as pretrained parts.
        zero_init_residual: let each residual branch start as zero: by its last norm's scale, or else its last layer.
        forget_gate_bias: of LSTMs. 1 lets a fresh cell remember (Jozefowicz et al. 2015); 0 is torch's.
        output_prior: sets the last layer's bias for imbalanced classes: class frequencies (or counts) for a softmax, or one
            probability for sigmoid outputs that are rarely 1 (Lin et al. 2017, section 4.1).
        generator: source of randomness; `None` is torch's global one. Data-dependent statistics need none.
        **scheme_options: the scheme's own, see the table.

    Returns:
        A report with a row for each weight: fan, gain, what follows, std aimed at and got.

    Raises:
        ValueError: for an unknown scheme or option, a scheme that needs data without a batch, a pattern that matches nothing, a
            lazy layer without weights, `zero_init_residual` or `output_prior` where no branch or no single last layer is found.
        UnusableBatchError: a `ValueError` naming the layer that a batch makes constant or not finite; weights are restored.

    Warns:
        UserWarning: listing weights that do not look freshly constructed and are overwritten.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> report = initialize_(net, "he")
    >>> [(row.name, row.follows, row.fan, round(row.gain, 2)) for row in report]
    [('0.weight', 'relu', 8, 1.41), ('2.weight', 'linear', 32, 1.0)]
    """
    options = check_scheme(scheme, scheme_options)
    if scheme in NEEDS_DATA and batch is None:
        raise ValueError(f"scheme {scheme!r} looks at data: pass batch=, inputs as the model takes them, or (inputs, targets)")
    runner = None if batch is None else runner_for(model, batch, options.get("loss_fn"))
    return initialize_with_(
        model,
        scheme,
        runner,
        options=options,
        nonlinearity=nonlinearity,
        include=include,
        exclude=exclude,
        zero_init_residual=zero_init_residual,
        forget_gate_bias=forget_gate_bias,
        output_prior=output_prior,
        generator=generator,
    )


def initialize_with_(
    model: nn.Module,
    scheme: str,
    runner: Runner | None,
    *,
    options: Mapping[str, Any],
    nonlinearity: Nonlinearity,
    include: Patterns,
    exclude: Patterns,
    zero_init_residual: bool,
    forget_gate_bias: float,
    output_prior: OutputPrior,
    generator: Generator | None,
) -> InitReport:
    """Do what `initialize_` does, with `runner` to run the network.

    Args, returns, raises, warns: as `initialize_`; `options` are complete, see `lit_training.schemes.check_scheme`.
    """
    check_output_prior(output_prior)
    fixed = None if nonlinearity == "auto" else Following(str(nonlinearity), gain(nonlinearity))
    report = InitReport(scheme)
    layers = choose_layers(model, include, exclude, report)
    warn_of_overwriting(layers, report, stacklevel=3)
    graph, how = forward_graph(model, runner)
    found = {} if graph is None else following(graph, dict(model.named_parameters(remove_duplicate=False)))
    with restored_on_error(model):
        for layer in layers:
            _reset_biases_(layer, forget_gate_bias)
            for weight in layer.weights:
                row = plan_row(layer, weight, scheme, fixed, found, how)
                row.std_aimed = draw_(weight, scheme, gain=row.gain, follows=row.follows, options=options, generator=generator)
                report.layers.append(row)
        zeroed = _zero_residual_branches_(model, graph, layers, report) if zero_init_residual else set()
        for layer in layers:
            for weight in layer.weights:
                report[weight.name].std = float(weight.read().std(correction=0))
        if runner is not None and scheme in NEEDS_DATA:
            ends = set() if graph is None else {*last_layers(graph), *residual_branch_ends(graph)}
            _normalize_(_without(layers, zeroed), ends, scheme, runner, options, generator, report)
        if output_prior is not None:
            _set_output_prior_(layers, graph, output_prior)
    order = {name: i for i, name in enumerate(found)}
    report.layers.sort(key=lambda row: order.get(row.name.partition("[")[0], len(order)))
    return report


def check_output_prior(output_prior: OutputPrior) -> None:
    """Raise ValueError unless this is a probability, or positive class frequencies or counts.

    >>> check_output_prior([0.9, 0.1])
    """
    if isinstance(output_prior, (int, float)):
        if not 0 < output_prior < 1:
            raise ValueError(f"output_prior must be a probability between 0 and 1, or class frequencies, got {output_prior}")
    elif output_prior is not None and (len(output_prior) < 2 or not all(p > 0 for p in output_prior)):
        raise ValueError(f"output_prior must be at least two positive class frequencies or counts, got {list(output_prior)}")


def _reset_biases_(layer: Layer, forget_gate_bias: float) -> None:
    """Set a layer's biases to zero, and an LSTM's forget gate (once: two biases are added) to what is asked for."""
    for name, bias in layer.biases.items():
        value = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        leaf = name.rpartition(".")[2]
        if leaf.startswith("bias_ih") and bias.shape[0] == 4 * getattr(layer.module, "hidden_size", 0):
            value.chunk(4)[1].fill_(forget_gate_bias)
        write_(bias, value)


def _zero_residual_branches_(model: nn.Module, graph: Graph | None, layers: Sequence[Layer], report: InitReport) -> set[str]:
    """Set what ends each residual branch to zero and return its names."""
    ends = set() if graph is None else set(residual_branch_ends(graph))
    if not ends:
        how = (
            "a forward could not be followed; pass batch="
            if graph is None
            else "the forward adds no branch to what it is made of"
        )
        raise ValueError(f"zero_init_residual: no residual branch was found: {how}")
    weights = {holder: weight for layer in layers for weight in layer.weights for holder in weight.parameters}
    named = {info.name: info.parameter for info in classify(model)}
    for name, parameter in named.items():
        if name in ends and name in weights:
            weights[name].write_(torch.zeros_like(weights[name].read()))
            report[weights[name].name].notes.append("zero: it ends a residual branch")
            report[weights[name].name].std_aimed = 0.0
        elif name in ends and name not in report.left_alone:
            write_(parameter, torch.zeros_like(read(parameter)))
    return ends


def _without(layers: Sequence[Layer], names: set[str]) -> list[Layer]:
    """Return the layers without weights of these names."""
    kept = [replace(layer, weights=[w for w in layer.weights if names.isdisjoint(w.parameters)]) for layer in layers]
    return [layer for layer in kept if layer.weights]


def _normalize_(
    layers: Sequence[Layer],
    ends: set[str],
    scheme: str,
    runner: Runner,
    options: Mapping[str, Any],
    generator: Generator | None,
    report: InitReport,
) -> None:
    """Apply what a scheme does with data, and put into the report's rows what came out."""
    forward, reduce = runner.forward, runner.reduce
    if scheme == "lsuv":
        tolerance, most = options["tolerance"], options["max_iterations"]
        _report_sites(lsuv_(layers, forward, tolerance=tolerance, max_iterations=most, reduce=reduce), report)
        return
    raised = {row.name for row in report if row.follows in RECTIFIERS and row.found != "assumed"} - ends
    means = dict.fromkeys(raised, options["mean"])
    sites = normalize_units_(layers, forward, means=means, weights=options["weights"], generator=generator, reduce=reduce)
    _report_sites(sites, report)
    if options["between_layers"]:
        report.gradient_rates, scaled = equalize_gradient_rates_(
            layers, forward, runner.objective, means=means, max_iterations=options["max_iterations"], reduce=reduce
        )
        for site in scaled:
            if site.adjustment is not None:
                report[site.name].std, report[site.name].std_aimed = site.adjustment.std, math.nan


def _report_sites(sites: Sequence[Site], report: InitReport) -> None:
    """Replace the rows of the weights that were normalised by what their outputs became."""
    for site in sites:
        row = report[site.weight.name]
        done = site.adjustment
        if done is None:
            row.notes.append("not called in the forward: not rescaled")
            continue
        notes = [*row.notes, done.note] if done.note else list(row.notes)
        if site.calls > 1:
            notes.append(f"called {site.calls} times: scaled at the first")
        new = replace(row, name=site.name, of="output", std_aimed=1.0, std=done.std, divisions=done.divisions, notes=notes)
        report.layers.insert(report.layers.index(row), new)
    measured = {site.weight.name for site in sites if site.adjustment is not None}
    report.layers = [row for row in report.layers if row.of == "output" or row.name not in measured]


def _set_output_prior_(layers: Sequence[Layer], graph: Graph | None, output_prior: float | Sequence[float]) -> None:
    """Set the last layer's bias so that the first predictions are the prior."""
    last = set() if graph is None else set(last_layers(graph))
    biases = [
        bias
        for layer in layers
        if any(not last.isdisjoint({*weight.parameters, *weight.tied}) for weight in layer.weights)
        for bias in layer.biases.values()
    ]
    if len(biases) != 1:
        raise ValueError(
            f"output_prior needs one last layer with a bias, found {len(biases)} of them in {sorted(last) or 'no graph'}"
        )
    if isinstance(output_prior, (int, float)):
        value = torch.full(biases[0].shape, math.log(output_prior / (1 - output_prior)))
    else:
        frequencies = torch.tensor([float(p) for p in output_prior], dtype=torch.float64)
        value = (frequencies / frequencies.sum()).log()
        if value.shape != biases[0].shape:
            raise ValueError(f"output_prior has {len(value)} classes, the last layer {len(biases[0])} outputs")
    write_(biases[0], value)
