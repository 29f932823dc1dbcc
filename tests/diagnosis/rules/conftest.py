"""Data that several files share."""

import pytest
import torch
from torch import Tensor


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    y = torch.randint(4, (512,))
    return torch.randn(512, 6) + y[:, None], y
