"""Six small networks as people build them, each with a batch of inputs and targets and a loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 16), Block(16, 32, 2), Block(32, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, dim: int = 32):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.layers = nn.Sequential(*[Layer(dim) for _ in range(4)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self.pos_embed
        return self.head(self.norm(self.layers(tokens))[:, 0])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.middle = nn.Conv2d(32, 32, 3, 1, 1)
        self.up, self.merge = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 16, 3, 1, 1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.middle(F.relu(self.down2(a))))
        return self.head(F.relu(self.merge(torch.cat([a, F.relu(self.up(b))], 1))))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.lstm = nn.LSTM(24, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(x))[0]).transpose(1, 2)


class Depthwise(nn.Module):
    """An inverted residual as in MobileNetV2."""

    def __init__(self, width: int):
        super().__init__()
        self.expand, self.depth = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, 4 * width, 3, 1, 1, groups=4 * width)
        self.project, self.norm = nn.Conv2d(4 * width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.project(F.relu6(self.depth(F.relu6(self.expand(x))))))


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.blocks = nn.Sequential(Depthwise(16), Depthwise(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu6(self.stem(x))).mean((2, 3)))


class Generator(nn.Module):
    """A DCGAN generator, fitted to images here."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 32 * 2 * 2)
        self.up1, self.up2 = nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ConvTranspose2d(32, 16, 4, 2, 1)
        self.up3 = nn.ConvTranspose2d(16, 3, 4, 2, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.up1(F.relu(self.project(z)).unflatten(1, (32, 2, 2))))
        return torch.tanh(self.up3(F.relu(self.up2(x))))


def images(n: int = 64) -> Tensor:
    """Smooth random images, standardised."""
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.randn(n, 3, 4, 4, generator=g), size=16, mode="bilinear") + 0.2 * torch.randn(
        n, 3, 16, 16, generator=g
    )
    return (x - x.mean()) / x.std()


def batch_for(net: nn.Module) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x = images()
    if isinstance(net, Tagger):
        words = torch.randint(50, (64, 12), generator=g)
        return words, words % 5
    if isinstance(net, Generator):
        return torch.randn(64, 16, generator=g), x.clamp(-0.95, 0.95)
    if isinstance(net, UNet):
        return x, (x.mean(1) * 2).round().long().clamp(-2, 2) + 2
    return x, (x.mean((2, 3)).argmax(1) + 2 * (x[:, 0].mean((1, 2)) > 0)).long()


def loss_for(net: nn.Module):
    return F.mse_loss if isinstance(net, Generator) else F.cross_entropy


NETS = {"resnet": ResNet, "vit": ViT, "unet": UNet, "lstm": Tagger, "mobilenet": MobileNet, "generator": Generator}
BLOCK = {"resnet": "blocks.1.conv1", "vit": "layers.1.fc1", "unet": "middle", "lstm": "lstm", "mobilenet": "blocks.0.project",
         "generator": "up1"}  # fmt: skip
