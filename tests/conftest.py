"""Settings of the whole suite: one thread, and the same examples every time."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("easd", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("easd")
