"""How sharp attention is at the start, however it is written."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_training.tracing.probe import Probe
from tests.diagnosis.rules.looking import alarms


class SelfAttention(nn.Module):
    """One head of attention and a read-out."""

    def __init__(self, std: float = 0.0, how: str = "scaled") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head, self.how = nn.Linear(32, 96), nn.Linear(32, 4), how
        if std:
            nn.init.normal_(self.qkv.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.how == "fused":
            return self.head(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1))
        if self.how == "cosine":
            q, k = 10 * F.normalize(q, dim=-1), 10 * F.normalize(k, dim=-1)
        scores = q @ k.transpose(-1, -2)
        scores = scores / math.sqrt(32) if self.how == "scaled" else scores
        if self.how == "alone":
            scores = scores.masked_fill(~torch.eye(scores.shape[-1], dtype=torch.bool), -1e9)
        return self.head((scores.softmax(-1) @ v).mean(1))


def sentences() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(32, 8, 32, generator=g), torch.randint(4, (32,), generator=g)


@pytest.mark.parametrize("how", ["scaled", "unscaled", "fused"])
def test_one_hot_attention_is_saturated(how: str) -> None:
    assert alarms(SelfAttention(1.0, how), sentences())[0] == "saturation"


@pytest.mark.parametrize("how", ["scaled", "unscaled", "fused"])
def test_attention_as_torch_draws_it_is_silent(how: str) -> None:
    assert alarms(SelfAttention(how=how), sentences()) == []


@pytest.mark.parametrize("how", ["cosine", "alone"])
def test_a_temperature_on_purpose_and_rows_without_a_choice_are_silent(how: str) -> None:
    assert "saturation" not in alarms(SelfAttention(how=how), sentences())


class ScaledBefore(nn.Module):
    """Scales its queries itself and tells the fused attention not to, as OPT of transformers does."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.causal = nn.Linear(32, 96), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        return F.scaled_dot_product_attention(q / math.sqrt(32), k, v, is_causal=self.causal, scale=1.0)


@pytest.mark.parametrize("causal", [True, False])
def test_a_scale_that_was_given_to_fused_attention_counts(causal: bool) -> None:
    x, _ = sentences()
    net, usual = ScaledBefore(causal), SelfAttention(how="fused")
    shares = []
    for part in (net, usual):
        nn.init.normal_(part.qkv.weight, std=0.5)
        part.qkv.weight.data.copy_(net.qkv.weight)
        with Probe(part, len(x)) as probe:
            part(x)
        shares.append(float(probe.attentions[0].one_hot))
    assert shares[0] == pytest.approx(shares[1], abs=0.02)
    assert 0.3 < shares[0] < 1


def test_what_torch_calls_attention_is_seen() -> None:
    x, _ = sentences()
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    with Probe(net, len(x)) as probe:
        net(x)
    assert [seen.weights for seen in probe.attentions] == [("self_attn.in_proj_weight",)]
