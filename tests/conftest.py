import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU

settings.register_profile("deterministic", deadline=None, derandomize=True)
settings.load_profile("deterministic")
torch.set_num_threads(1)  # the tensors are tiny


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
