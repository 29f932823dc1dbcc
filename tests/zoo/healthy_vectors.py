"""Healthy: classifiers of vectors, with every usual activation, depth and initialisation."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import data
from tests.zoo.case import Case, healthy
from tests.zoo.nets import BCE, CE, Lambda, ResidualMLP, adam, adamw, he, init_weights, lecun, mlp, normal, sgd, weighted


@healthy("bad_gain", source="control: plain MLP with torch's default init, SGD with momentum")
def h_mlp_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("lr_too_high", source="a high but stable rate: the loss is bumpy and ends low")
def h_brisk_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 4]), data=data.blobs(seed), optimizer=sgd(0.5, momentum=0.0), **CE)


@healthy("lr_too_low", source="a modest rate on an easy task: slow at first, good in the end")
def h_patient_sgd(seed: int) -> Case:
    model = mlp([64, 64, 10])
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.01), max_steps=240, **CE)


@healthy("init_vanishing", "init_exploding", source="He et al. 2015: ten ReLU layers with He init")
def h_deep_he(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 9 + [4]), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.02), max_steps=260, **CE)


@healthy("init_vanishing", "bad_gain", source="eight tanh layers with Glorot init: the signal shrinks gently")
def h_deep_tanh_glorot(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 7 + [4], nn.Tanh), nn.init.xavier_normal_)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("init_vanishing", "bad_gain", source="Klambauer et al. 2017: SELU with LeCun init, eight layers")
def h_deep_selu(seed: int) -> Case:
    model = init_weights(mlp([8] + [48] * 7 + [4], nn.SELU), lecun)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.02), **CE)


@healthy("init_vanishing", "wrong_hidden_activation", source="GELU nets contract at init; four layers train well")
def h_gelu(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 64, 4], nn.GELU), data=data.blobs(seed), optimizer=adamw(3e-3), **CE)


@healthy("init_vanishing", "wrong_hidden_activation", source="SiLU nets contract at init; four layers train well")
def h_silu(seed: int) -> Case:
    return Case(seed=seed, model=mlp([8, 64, 64, 64, 4], nn.SiLU), data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("saturation", "wrong_hidden_activation", source="LeCun et al. 1998: one sigmoid hidden layer is fine")
def h_sigmoid_shallow(seed: int) -> Case:
    return Case(seed=seed, model=mlp([2, 48, 3], nn.Sigmoid), data=data.rings(seed), optimizer=adam(3e-2), **CE)


@healthy("saturation", "wrong_hidden_activation", source="two sigmoid layers scaled for it (gain 4), Adam")
def h_sigmoid_scaled(seed: int) -> Case:
    model = init_weights(mlp([8, 48, 48, 4], nn.Sigmoid), lambda w: nn.init.xavier_normal_(w, gain=4.0))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(1e-2), **CE)


@healthy("saturation", "init_exploding", source="tanh features wide open (gain 2): some units are near +-1, and it learns")
def h_tanh_wide_open(seed: int) -> Case:
    model = init_weights(mlp([2, 64, 64, 2], nn.Tanh), lambda w: nn.init.xavier_normal_(w, gain=2.0))
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("dead_relu", source="a wide ReLU layer on two inputs: some units never fire on a batch")
def h_wide_relu_some_dead(seed: int) -> Case:
    model = mlp([2, 256, 32, 3])
    with torch.no_grad():
        model[0].bias[:64] = -3.0
    return Case(seed=seed, model=model, data=data.rings(seed), optimizer=adam(5e-3), **CE)


@healthy("dead_relu", "bad_bias_init", source="Goodfellow et al. 2016: small positive biases under ReLU")
def h_positive_bias(seed: int) -> Case:
    model = init_weights(mlp([8, 64, 64, 4]), he)
    for layer in weighted(model)[:-1]:
        nn.init.constant_(layer.bias, 0.1)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("bad_bias_init", "class_imbalance", source="Lin et al. 2017, Karpathy: head bias at the log prior of rare classes")
def h_prior_bias(seed: int) -> Case:
    model = mlp([6, 48, 48, 2])
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.15, 0.85]).log())
    split = data.replace(data.rare_blobs(seed, rare=0.15, overlap=0.35), 1, lambda y: 1 - y)
    return Case(
        seed=seed,
        model=model,
        data=split,
        optimizer=adam(5e-3),
        loss=F.cross_entropy,
        metric="balanced_accuracy",
        val_batch_size=512,
    )


@healthy("init_symmetry", "init_vanishing", source="zero-initialised head: uniform prediction at step 0")
def h_zero_head(seed: int) -> Case:
    model = mlp([8, 64, 64, 4])
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy(
    "init_symmetry", "init_vanishing", source="Goyal et al. 2017, Zhang et al. 2019 (Fixup): last layer of each branch zero"
)
def h_zero_branches(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=5)
    for branch in model.branches:
        nn.init.zeros_(branch[-1].weight)
        nn.init.zeros_(branch[-1].bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.03), **CE)


@healthy(
    "init_vanishing",
    "frozen_by_accident",
    source="Bachlechner et al. 2020 (ReZero): branches scaled by 0 get no gradient at step 0",
)
def h_rezero(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=6, scale=0.0)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("init_vanishing", source="Touvron et al. 2021 (LayerScale): branches scaled by 1e-4")
def h_layer_scale(seed: int) -> Case:
    model = ResidualMLP(8, 48, 4, depth=6, scale=1e-4, norm=nn.LayerNorm)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adamw(3e-3), **CE)


@healthy("init_exploding", source="pre-norm residual stream grows with depth by design; the last norm takes it back")
def h_prenorm_growing(seed: int) -> Case:
    model = init_weights(ResidualMLP(8, 48, 4, depth=10, norm=nn.LayerNorm), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adamw(2e-3), max_steps=160, **CE)


@healthy("batch_mixing", "bias_before_bn", source="Ioffe and Szegedy 2015: batch norm mixes a batch while training only")
def h_batch_norm_mlp(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d, bias=False)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy("bias_before_bn", "dead_relu", source="batch norm after the activation: the bias before it has its use")
def h_batch_norm_after_relu(seed: int) -> Case:
    layers: list[nn.Module] = []
    for a, b in ((8, 64), (64, 64)):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b)]
    return Case(seed=seed, model=nn.Sequential(*layers, nn.Linear(64, 4)), data=data.blobs(seed), optimizer=sgd(0.1), **CE)


@healthy("bias_before_bn", "init_vanishing", source="Ba et al. 2016: layer norm takes any scale; tiny weights are harmless")
def h_layer_norm_tiny_weights(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.LayerNorm)
    for layer in weighted(model)[:-1]:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("init_exploding", "bad_gain", source="Ioffe and Szegedy 2015: batch norm forgives weights of unit variance")
def h_batch_norm_unit_weights(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], norm=nn.BatchNorm1d, bias=False)
    for layer in weighted(model)[:-1]:
        nn.init.normal_(layer.weight)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(1e-2), **CE)


@healthy("dropout_too_high", "overfit_no_regularisation", source="Srivastava et al. 2014: half of a wide layer dropped")
def h_dropout_half(seed: int) -> Case:
    model = mlp([8, 256, 256, 4], dropout=0.5)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=adam(3e-3), **CE)


@healthy("dropout_too_high", "dropout_active_in_eval", source="a fifth of the inputs and 0.7 of a very wide layer dropped")
def h_dropout_strong_wide(seed: int) -> Case:
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(64, 512), nn.ReLU(), nn.Dropout(0.7), nn.Linear(512, 10))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(3e-3), **CE)


@healthy("missing_activation", source="low-rank factorised layers: two linear maps in a row on purpose")
def h_low_rank(seed: int) -> Case:
    model = nn.Sequential(
        nn.Linear(64, 12, bias=False), nn.Linear(12, 96), nn.ReLU(), nn.Linear(96, 12, bias=False), nn.Linear(12, 10)
    )
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(5e-3), **CE)


@healthy("missing_activation", source="softmax regression: one linear layer is a model")
def h_softmax_regression(seed: int) -> Case:
    return Case(seed=seed, model=nn.Linear(64, 10), data=data.digits(seed), optimizer=sgd(0.1), **CE)


class Gated(nn.Module):
    """Dauphin et al. 2017: each layer is gated by a sigmoid of a second linear map."""

    def __init__(self, sizes: list[int], classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, 2 * b) for a, b in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.glu(layer(x))
        return self.head(x)


@healthy("missing_activation", "saturation", source="gated linear units: the nonlinearity is a product")
def h_glu(seed: int) -> Case:
    return Case(seed=seed, model=Gated([8, 64, 64], 4), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


class Highway(nn.Module):
    """Srivastava et al. 2015: gates start nearly closed, so that each layer starts as the identity."""

    def __init__(self, dim: int, width: int, classes: int, depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(dim, width), nn.Linear(width, classes)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for value, gate in zip(self.values, self.gates, strict=True):
            t = gate(x).sigmoid()
            x = t * value(x).relu() + (1 - t) * x
        return self.head(x)


@healthy("bad_bias_init", "saturation", source="highway net: gate biases of -2 on purpose")
def h_highway(seed: int) -> Case:
    return Case(seed=seed, model=Highway(8, 40, 4, depth=6), data=data.blobs(seed), optimizer=adam(5e-3), **CE)


@healthy("dead_relu", "wrong_hidden_activation", source="PReLU and leaky ReLU mixed")
def h_prelu(seed: int) -> Case:
    model = nn.Sequential(nn.Linear(8, 64), nn.PReLU(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 4))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_hidden_activation", "missing_activation", source="Sitzmann et al. 2020: sine activations")
def h_sine(seed: int) -> Case:
    model = nn.Sequential(
        nn.Linear(2, 64), Lambda(lambda x: (3 * x).sin()), nn.Linear(64, 64), Lambda(torch.sin), nn.Linear(64, 2)
    )
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(5e-3), **CE)


@healthy("bad_gain", "init_vanishing", source="wide He-uniform net with a narrow waist")
def h_bottleneck(seed: int) -> Case:
    model = init_weights(mlp([64, 128, 6, 128, 10]), lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu"))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=adam(3e-3), max_steps=240, **CE)


@healthy("wrong_last_activation", "wrong_loss", source="log-softmax in the model and NLL: the older spelling of cross-entropy")
def h_log_softmax_nll(seed: int) -> Case:
    model = mlp([64, 64, 64, 10], last=nn.LogSoftmax(dim=1))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.05), loss=F.nll_loss, metric="accuracy")


@healthy("batch_mixing", "wrong_last_activation", source="validated a few samples at a time, as it will be served")
def h_served_in_fours(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], last=nn.LogSoftmax(dim=1))
    split = data.blobs(seed)
    return Case(seed=seed, model=model, data=split, optimizer=sgd(0.05), loss=F.nll_loss, metric="accuracy", val_batch_size=4)


@healthy("frozen_by_accident", "bad_gain", source="six narrow ReLU layers with He init")
def h_narrow_deep(seed: int) -> Case:
    model = init_weights(mlp([64] + [20] * 5 + [10]), he)
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.02), max_steps=260, **CE)


@healthy("wrong_last_activation", "wrong_loss", source="log-softmax twice is once: cross-entropy of log-probabilities is exact")
def h_log_softmax_ce(seed: int) -> Case:
    model = mlp([8, 64, 64, 4], last=nn.LogSoftmax(dim=1))
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_loss", source="one logit and BCE with logits")
def h_binary_logit(seed: int) -> Case:
    return Case(seed=seed, model=mlp([6, 64, 64, 1]), data=data.binary(seed), optimizer=adam(5e-3), **BCE)


@healthy("wrong_loss", "class_imbalance", source="several yes-or-no labels at once: BCE with logits, unequal frequencies")
def h_multi_label(seed: int) -> Case:
    return Case(seed=seed, model=mlp([10, 96, 96, 6]), data=data.attributes(seed), optimizer=adam(5e-3), **BCE)


@healthy("bad_gain", "init_symmetry", source="Le et al. 2015: identity initialisation of square ReLU layers")
def h_identity_init(seed: int) -> Case:
    model = mlp([8, 64, 64, 64, 4])
    for layer in weighted(model)[1:-1]:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.05), **CE)


@healthy("bad_gain", "init_vanishing", source="Saxe et al. 2014: orthogonal init, tanh, ten layers")
def h_orthogonal_tanh(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 9 + [4], nn.Tanh), nn.init.orthogonal_)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.03), **CE)


@healthy("init_vanishing", source="two hidden layers with N(0, 0.05): small and good enough")
def h_small_normal_shallow(seed: int) -> Case:
    model = init_weights(mlp([64, 64, 10]), normal(0.05))
    return Case(seed=seed, model=model, data=data.digits(seed), optimizer=sgd(0.1), **CE)


@healthy("unnormalised_input", source="binary features in {0, 1}: not standardised, and fine")
def h_binary_features(seed: int) -> Case:
    split = data.replace(data.digits(seed), 0, lambda x: (x > 0).float())
    return Case(seed=seed, model=mlp([64, 64, 10]), data=split, optimizer=adam(5e-3), **CE)


@healthy("unnormalised_input", "bad_data", source="pixels in [0, 1], several of them always zero")
def h_unit_pixels(seed: int) -> Case:
    split = data.replace(data.digits(seed), 0, lambda x: (x - x.min()) / (x.max() - x.min()))
    return Case(seed=seed, model=mlp([64, 64, 10]), data=split, optimizer=sgd(0.2), **CE)


@healthy("unnormalised_input", source="raw physical units behind a batch norm on the input")
def h_raw_behind_batch_norm(seed: int) -> Case:
    split = data.replace(data.blobs(seed), 0, lambda x: 300 + x * torch.logspace(-1, 3, 8))
    model = nn.Sequential(nn.BatchNorm1d(8), mlp([8, 64, 64, 4]))
    return Case(seed=seed, model=model, data=split, optimizer=sgd(0.05), **CE)


@healthy(
    "labels_broken",
    "overfit_no_regularisation",
    source="a fifth of the labels is noise: the loss stays high, the accuracy does not suffer",
)
def h_noisy_labels(seed: int) -> Case:
    train, val = data.blobs(seed)
    x, y = train.tensors
    g = data.rng(90, seed)
    y = torch.where(torch.rand(len(y), generator=g) < 0.2, torch.randint(4, y.shape, generator=g), y)
    return Case(seed=seed, model=mlp([8, 48, 48, 4]), data=(type(train)(x, y), val), optimizer=adam(3e-3), **CE)


@healthy("labels_broken", "class_imbalance", source="forty classes, of which a batch of 32 shows less than half")
def h_many_classes(seed: int) -> Case:
    split = data.blobs(seed, classes=40, per_class=1, spread=0.25)
    return Case(seed=seed, model=mlp([8, 96, 96, 40]), data=split, optimizer=adam(5e-3), **CE)


@healthy("saturation", source="tanh features on spirals")
def h_spirals_tanh(seed: int) -> Case:
    model = init_weights(mlp([2, 64, 64, 2], nn.Tanh), nn.init.xavier_normal_)
    return Case(seed=seed, model=model, data=data.spirals(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("init_vanishing", "init_exploding", source="twenty ReLU layers with He init")
def h_deep_he_twenty(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 19 + [4]), he)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), max_steps=260, **CE)


@healthy("init_vanishing", "bad_gain", source="SELU with LeCun init, sixteen layers, SGD")
def h_deep_selu_sgd(seed: int) -> Case:
    model = init_weights(mlp([8] + [40] * 15 + [4], nn.SELU), lecun)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), **CE)


@healthy("init_exploding", "init_vanishing", source="twenty unnormalised residual branches, each scaled down from the start")
def h_residual_scaled(seed: int) -> Case:
    model = ResidualMLP(8, 40, 4, depth=20, scale=0.05)
    return Case(seed=seed, model=model, data=data.blobs(seed), optimizer=sgd(0.01), **CE)


@healthy("lr_too_high", source="digits, plain MLP, SGD")
def h_digits_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([64, 64, 64, 10]), data=data.digits(seed), optimizer=sgd(0.05), **CE)


@healthy("wrong_loss", source="one logit, BCE with logits, SGD")
def h_binary_logit_sgd(seed: int) -> Case:
    return Case(seed=seed, model=mlp([6, 64, 64, 1]), data=data.binary(seed), optimizer=sgd(0.1), max_steps=240, **BCE)


@healthy("wrong_loss", "wrong_last_activation", source="a sigmoid unit and BCE on probabilities: a pair that belongs together")
def h_binary_sigmoid(seed: int) -> Case:
    model = mlp([6, 64, 64, 1], last=nn.Sigmoid())
    return Case(
        seed=seed,
        model=model,
        data=data.binary(seed),
        optimizer=adam(5e-3),
        loss=F.binary_cross_entropy,
        metric="probability_accuracy",
    )


class Prototypes(nn.Module):
    """Snell et al. 2017: the logit of a class falls with the distance to its prototype; here the prototypes are learnt."""

    def __init__(self, dim: int, code: int, classes: int) -> None:
        super().__init__()
        self.body, self.prototypes = mlp([dim, 32, code]), nn.Parameter(0.01 * torch.randn(classes, code))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x), self.prototypes)


@healthy("not_in_optimizer", "init_symmetry", source="learnt prototypes, all near the origin at first")
def h_prototypes(seed: int) -> Case:
    return Case(seed=seed, model=Prototypes(64, 2, 10), data=data.digits(seed), optimizer=adam(1e-2), max_steps=260, **CE)


@healthy("overfit_no_regularisation", "dropout_too_high", source="few digits with noisy labels, dropout, decay and a short run")
def h_noisy_digits_regularised(seed: int) -> Case:
    train, val = data.digits(seed)
    x, y = train.tensors
    wrong = torch.rand(len(y), generator=data.rng(98, seed)) < 0.15
    y = torch.where(wrong, y[torch.randperm(len(y), generator=data.rng(99, seed))], y)
    model = mlp([64, 128, 10], dropout=0.5)
    return Case(seed=seed, model=model, data=(type(train)(x, y), val), optimizer=adamw(3e-3, weight_decay=0.1), **CE)
