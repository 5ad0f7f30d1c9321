"""Reward models: which number is the reward, whatever else is in the batch."""

import pytest
import torch
from models import gpt2_config, word_tokenizer
from transformers import (
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
)

from easd import Settings, generate, load_pair
from easd.core.rules import DraftOnly
from easd.errors import InputError, ModelError
from easd.evaluate.rewards import RewardModel, ScoredStep, load_reward_model
from easd.pairs import lab
from easd.pairs.lab import STEP_TOKENS, reward_folder

PAIRS = sorted(STEP_TOKENS)
KINDS = [GPT2ForTokenClassification, GPT2ForSequenceClassification]
STEPS = [
    ScoredStep(prompt_ids=(3, 4, 5), written_ids=(), step_ids=(6,)),
    ScoredStep(prompt_ids=(3,), written_ids=(7, 8), step_ids=(0, 0, 9)),
    ScoredStep(prompt_ids=(4, 4), written_ids=(3,), step_ids=(5, 2)),
]


def save(folder, kind, labels, *, tokenizer=None):
    torch.manual_seed(3)
    config = gpt2_config(vocab_size=24)
    config.num_labels = labels
    model = kind(config).eval()
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_reward_stands_at_the_last_token_of_the_step(tmp_path, kind, labels):
    model = save(tmp_path, kind, labels)
    scorer = load_reward_model(str(tmp_path), word_tokenizer())
    for step, reward in zip(STEPS, scorer(STEPS), strict=True):
        hidden = model.transformer(torch.tensor([step.ids])).last_hidden_state[0, -1]
        head = model.classifier if kind is GPT2ForTokenClassification else model.score
        logits = head(hidden)
        expected = logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]
        assert reward == pytest.approx(expected.item(), abs=1e-6)


def test_a_reward_model_with_another_tokenizer_reads_the_text(tmp_path):
    save(tmp_path, KINDS[0], 2)
    theirs = AutoTokenizer.from_pretrained(lab.folder("lab", "target"))
    scorer = load_reward_model(str(tmp_path), theirs)
    assert scorer.reader is not None
    own = word_tokenizer()
    assert scorer.reader([7, 8]) == own("7 8")["input_ids"]
    assert scorer.reader([7, theirs.eos_token_id]) == own("7")["input_ids"]


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not a classifier"):
        load_reward_model(str(lab.folder("lab", "target")))
    with pytest.raises(ModelError, match="cannot load the reward model"):
        load_reward_model(str(tmp_path / "nothing"))
    save(tmp_path, KINDS[0], 3)
    with pytest.raises(ModelError, match="3 labels"):
        load_reward_model(str(tmp_path))


def test_a_text_longer_than_the_window_is_refused(tmp_path):
    model = save(tmp_path, KINDS[0], 2)
    step = ScoredStep(prompt_ids=(3,) * 32, written_ids=(), step_ids=(4,))
    with pytest.raises(InputError, match=r"33 tokens.*window of 32"):
        RewardModel(model=model)([step])


@pytest.mark.parametrize("pair", PAIRS)
def test_packaged_rewards_tell_the_drafts_right_steps_from_its_wrong_ones(pair):
    models, scorer = load_pair(pair, device="cpu"), load_reward_model(pair)
    problems = lab.problems(pair, 1500, seed=9)
    written = generate(
        models.target,
        models.draft,
        [problem.prompt for problem in problems],
        tokenizer=models.tokenizer,
        settings=Settings(rule=DraftOnly(), max_new_tokens=STEP_TOKENS[pair], batch_size=500),
    )
    steps = [
        ScoredStep(prompt_ids=text.prompt_ids, written_ids=(), step_ids=tuple(text.token_ids))
        for text in written
    ]
    right = [
        problem.solution.split()[: STEP_TOKENS[pair]] == (text.text or "").split()
        for problem, text in zip(problems, written, strict=True)
    ]
    kept, right = torch.tensor(scorer(steps)) >= 0.7, torch.tensor(right)
    assert (~right).sum() > 50
    assert kept[right].double().mean() > 0.9
    assert kept[~right].double().mean() < 0.5


def test_an_alias_names_its_pair():
    assert reward_folder("lab") == reward_folder("lab-a")
