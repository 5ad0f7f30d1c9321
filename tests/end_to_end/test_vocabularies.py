"""Targets and drafts that do not know the same tokens: texts are the target's all the same."""

import pytest
import torch
from models import DEVICE, build, llama_config, prompts, requests, run, uncached, word_tokenizer

from easd import generate
from easd.core.rules import EASD, Speculative, TargetOnly
from easd.engine.generate import decode
from easd.engine.pair import Pair
from easd.engine.settings import Settings


def resized(size, *, tokens=24, seed=0):
    """One model with more or fewer rows in both embeddings, so that drafts are near targets."""
    model = build(llama_config(tokens), spread=16.0)
    if size == tokens:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        model.resize_token_embeddings(size, mean_resizing=False)
        with torch.no_grad():
            for values in (model.lm_head.weight, model.get_input_embeddings().weight):
                values[tokens:] = torch.randn_like(values[tokens:]) * 0.4
    return model.to(DEVICE).eval()


SIZES = {"the target has more": (27, 24), "the draft has more": (24, 27)}
ASKED = prompts(3)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_text_is_the_targets_over_all_its_tokens(sizes):
    """Under shared noise, against plain forwards of the target alone."""
    pair = resized(sizes[0]), resized(sizes[1])
    texts_of = [*ASKED, (sizes[0] - 1, 4)]
    asked = requests(texts_of, max_new_tokens=24)
    found = run(pair, asked, rule=Speculative(), coupling="shared")
    spoken = [found[request.number].new_ids for request in asked]
    assert spoken == [uncached(pair[0], request) for request in asked]
    assert any(token >= 24 for text in spoken for token in text) == (sizes[0] > 24)
    assert sum(row.counts.accepted for row in found.values())


@pytest.mark.parametrize("coupling", ["maximal", "published"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_both_distributions_are_the_models_own_over_the_targets_tokens(sizes, coupling):
    """What verification sees, from which it draws exactly: the draft's row filled up by zeros."""
    target, draft = resized(sizes[0]), resized(sizes[1])
    rule = EASD(tau_h=0.5, draft_at_bonus=True)
    settings = Settings(rule=rule, coupling=coupling)
    asked = requests([(sizes[0] - 1, 4)], max_new_tokens=24, eos=frozenset())
    for record in decode(Pair.of(target, draft), asked, settings):
        step = record.step
        count = int(step.num_draft_tokens[0])
        drafted = step.draft_tokens[0, :count].tolist()
        assert all(token < min(sizes) for token in drafted)
        text = [*record.rows[0].ids[: record.starts[0]], *drafted]
        read = [token if token < sizes[1] else 0 for token in text]
        with torch.no_grad():
            plain = target(input_ids=torch.tensor([text], device=DEVICE)).logits[0].softmax(-1)
            scores = draft(input_ids=torch.tensor([read], device=DEVICE)).logits[0]
        proposed = torch.zeros(len(text), sizes[0], dtype=plain.dtype, device=DEVICE)
        proposed[:, : min(sizes)] = scores[:, : min(sizes)].softmax(-1)
        positions = slice(record.starts[0] - 1, None)
        torch.testing.assert_close(step.target_probs[0, : count + 1], plain[positions])
        torch.testing.assert_close(step.draft_probs[0, : count + 1], proposed[positions])


def test_rows_that_pad_embeddings_are_no_tokens():
    """The tokenizer has 24 tokens; both models have more rows, and the draft the fewer."""
    target, draft = resized(40), resized(32)
    tokenizer = word_tokenizer(24)
    options = {"coupling": "shared", "tokenizer": tokenizer, "max_new_tokens": 24}
    alone = generate(target, None, ASKED, rule=TargetOnly(), **options)
    ours = generate(target, draft, ASKED, rule="speculative", **options)
    assert [text.token_ids for text in ours] == [text.token_ids for text in alone]
    assert all(token < 24 for text in ours for token in text.token_ids)
    everything = generate(target, None, ASKED, rule=TargetOnly(), coupling="shared")
    assert any(token >= 24 for text in everything for token in text.token_ids)


def test_both_a_config_and_a_tokenizer_end_a_text():
    target = resized(24)
    target.generation_config.eos_token_id = [7, 9]
    pair = Pair.of(target, None, word_tokenizer())
    assert pair.end_tokens == [7, 9, 2]
    target.generation_config.eos_token_id = 2
    assert pair.end_tokens == [2]
    assert Pair.of(target).end_tokens == [2]
