"""Networks, optimisers and small helpers that the cases are assembled from."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

Activation = Callable[[], nn.Module]
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


# ------------------------------------------------------------------------------------------ recipes
def sgd(lr: float, momentum: float = 0.9, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, **settings)


def adam(lr: float, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr=lr, **settings)


def adamw(lr: float, **settings: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr, **settings)


def trainable(optimizer: Callable[..., Optimizer], **settings: Any) -> Callable[[nn.Module], Optimizer]:
    """An optimiser of what requires a gradient when it is built."""
    return lambda model: optimizer([p for p in model.parameters() if p.requires_grad], **settings)


CE: dict[str, Any] = {"loss": F.cross_entropy, "metric": "accuracy"}
MSE: dict[str, Any] = {"loss": F.mse_loss, "metric": "r2"}
BCE: dict[str, Any] = {"loss": F.binary_cross_entropy_with_logits, "metric": "binary_accuracy"}


def init_weights(model: nn.Module, fill: Callable[[Tensor], object]) -> nn.Module:
    """Fill every weight matrix and kernel and zero the biases."""
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def weighted(model: nn.Module) -> list[Any]:
    """The linear and convolutional layers, in order of registration."""
    return [module for module in model.modules() if isinstance(module, WEIGHTED)]


def he(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def lecun(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="linear")


def normal(std: float) -> Callable[[Tensor], Tensor]:
    return lambda weight: nn.init.normal_(weight, std=std)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ------------------------------------------------------------------------------------------ vectors
def mlp(
    sizes: Sequence[int],
    act: Activation | None = nn.ReLU,
    norm: Callable[[int], nn.Module] | None = None,
    dropout: float = 0.0,
    last: nn.Module | None = None,
    bias: bool = True,
) -> nn.Sequential:
    """Linear layers, each but the last followed by norm, activation and dropout as far as they are wanted."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b, bias=bias or i == len(sizes) - 2))
        if i < len(sizes) - 2:
            layers += [norm(b)] if norm else []
            layers += [act()] if act else []
            layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, *([last] if last is not None else []))


class ResidualMLP(nn.Module):
    """`x + scale * branch(x)`, repeated; `scale` None is no scaling at all, a number is a learnt one that starts there."""

    def __init__(
        self,
        dim: int,
        width: int,
        outputs: int,
        depth: int,
        scale: float | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(dim, width)
        self.branches = nn.ModuleList(
            nn.Sequential(*([norm(width)] if norm else []), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(scale)) for _ in range(depth)) if scale is not None else None
        self.norm = norm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for i, branch in enumerate(self.branches):
            x = x + (branch(x) if self.scales is None else self.scales[i] * branch(x))
        return self.head(self.norm(x))


# ------------------------------------------------------------------------------------------ pictures
def conv_block(
    a: int, b: int, norm: Callable[[int], nn.Module] | None, act: Activation | None, bias: bool = True
) -> list[nn.Module]:
    """A 3 x 3 convolution, then norm and activation as far as they are wanted."""
    return [nn.Conv2d(a, b, 3, padding=1, bias=bias), *([norm(b)] if norm else []), *([act()] if act else [])]


def convnet(
    channels: int = 1,
    width: int = 8,
    classes: int = 4,
    size: int = 12,
    norm: Callable[[int], nn.Module] | None = None,
    act: Activation | None = nn.ReLU,
    bias: bool = True,
) -> nn.Sequential:
    """Two convolutional blocks with max pooling and a linear head."""
    return nn.Sequential(
        *conv_block(channels, width, norm, act, bias),
        nn.MaxPool2d(2),
        *conv_block(width, 2 * width, norm, act, bias),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, classes),
    )


def plain_deep(
    depth: int, width: int = 10, channels: int = 1, classes: int = 4, norm: Callable[[int], nn.Module] | None = None
) -> nn.Sequential:
    """A stack of 3 x 3 convolutions at one resolution, average pooling to 2 x 2, a head."""
    blocks = [layer for i in range(depth) for layer in conv_block(channels if i == 0 else width, width, norm, nn.ReLU)]
    return nn.Sequential(nn.MaxPool2d(2), *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a skip connection."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    """A strided stem, residual blocks, a linear head."""

    def __init__(
        self,
        channels: int = 1,
        width: int = 10,
        depth: int = 3,
        classes: int = 4,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, norm) for _ in range(depth)))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 2).flatten(1))


class UNet(nn.Module):
    """One step down, one step up, a skip connection; one logit per pixel."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(*conv_block(1, width, nn.BatchNorm2d, nn.ReLU))
        self.bottom = nn.Sequential(nn.MaxPool2d(2), *conv_block(width, 2 * width, nn.BatchNorm2d, nn.ReLU))
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.out = nn.Sequential(*conv_block(2 * width, width, None, nn.ReLU), nn.Conv2d(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        return self.out(torch.cat([skip, self.up(self.bottom(skip))], 1))


# ------------------------------------------------------------------------------------------ sequences
class Recurrent(nn.Module):
    """A recurrent cell whose last output feeds a linear head."""

    def __init__(
        self, cell: Callable[..., nn.Module] = nn.LSTM, features: int = 3, hidden: int = 24, outputs: int = 4, **settings: Any
    ) -> None:
        super().__init__()
        self.rnn = cell(features, hidden, **{"batch_first": True} | settings)
        self.head = nn.Linear(hidden * (2 if settings.get("bidirectional") else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@torch.no_grad()
def scale_recurrent(model: nn.Module, factor: float) -> None:
    """Multiply the weights of all recurrent layers."""
    for rnn in model.modules():
        if isinstance(rnn, nn.RNNBase):
            for p in rnn.parameters():
                if p.ndim > 1:
                    p.mul_(factor)


class Transformer(nn.Module):
    """Token and position embeddings, encoder layers, and a head on the mean token or, `per_token`, on each."""

    def __init__(
        self, vocabulary: int = 30, length: int = 12, width: int = 24, heads: int = 4, depth: int = 2, classes: int = 3,
        dropout: float = 0.1, norm_first: bool = True, causal: bool = False, per_token: bool = False, activation: str = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        for copy in self.encoder.layers:  # TransformerEncoder repeats one layer, weights and all
            for p in copy.parameters():
                if p.ndim > 1:
                    nn.init.xavier_uniform_(p)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        self.causal, self.per_token = causal, per_token

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        hidden = self.norm(self.encoder(self.embed(x) + self.position, mask=mask, is_causal=self.causal))
        return self.head(hidden).transpose(1, 2) if self.per_token else self.head(hidden.mean(1))


class WordBag(nn.Module):
    """The mean of the embeddings of a sentence, then an MLP."""

    def __init__(self, vocabulary: int = 30, width: int = 24, classes: int = 3, sparse: bool = False) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(vocabulary, width, mode="mean", sparse=sparse)
        self.top = mlp([width, 32, classes])

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.embed(x))


def conv1d_net(channels: int = 1, width: int = 12, classes: int = 3) -> nn.Sequential:
    """Two 1-D convolutions, global average pooling, a head."""
    return nn.Sequential(
        nn.Conv1d(channels, width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(width, 2 * width, 5, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
