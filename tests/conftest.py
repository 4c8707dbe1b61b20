import pytest
import torch
from hypothesis import settings

settings.register_profile("deterministic", deadline=None, derandomize=True)
settings.load_profile("deterministic")
torch.set_num_threads(1)  # the tensors are tiny


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
