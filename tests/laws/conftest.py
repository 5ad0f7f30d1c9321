"""Laws are checked on the device that EASD_TEST_DEVICE names; on the CPU unless it does."""

import pytest
import torch
from models import DEVICE


@pytest.fixture(autouse=True)
def on_the_device():
    with torch.device(DEVICE):
        yield
