"""What all tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")

import pytest
import torch
from hypothesis import settings

# The same examples in every run: a test that fails in one run and not in the next says nothing about a change.
settings.register_profile("lmstack", derandomize=True, deadline=None)
settings.load_profile("lmstack")


@pytest.fixture(autouse=True)
def _one_thread_and_a_fixed_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
