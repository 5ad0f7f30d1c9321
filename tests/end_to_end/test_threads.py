"""Several threads decode with one model."""

from concurrent.futures import ThreadPoolExecutor

import torch
from models import fresh_pair, requests, texts

from easd.core.rules import EASD

TEXTS = [(5, 6, 7), (8, 9), (10, 4, 3, 9)]


def test_threads_that_share_a_model_leave_it_as_it_was():
    target, draft = fresh_pair()
    before = target.config._attn_implementation
    asked = requests(TEXTS, max_new_tokens=25)

    def decode(_):
        return texts((target, draft), asked, rule=EASD(tau_h=1.5, tau_o=0.8))

    alone = decode(None)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(decode, range(4))) == [alone] * 4
    assert target.config._attn_implementation == draft.config._attn_implementation == before
    target.generate(torch.tensor([TEXTS[0]], device=target.device), max_new_tokens=2)
