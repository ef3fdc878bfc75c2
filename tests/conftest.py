import os

# Before torch: on a busy machine spinning threads make tiny kernels a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.contracts")
torch.set_num_threads(1)

# A contract's tests run in many classes, which is what `differing_executors` warns of.
settings.register_profile(
    "abc", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.differing_executors]
)
settings.load_profile("abc")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
