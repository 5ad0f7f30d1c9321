"""`target.generate(..., custom_generate=easd.custom_generate)` against transformers' own."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
import torch
from models import DEVICE, build, fresh_pair, gpt2_config, llama_pair, word_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
)

import easd
from easd.core.rules import EASD, Speculative
from easd.engine.models.slots import cache_keyword

NEW = 14
LONG, SHORT = [5, 9, 14, 7, 20, 11], [3, 8]


def batch():
    """Two prompts, the second padded on the left."""
    return {
        "input_ids": torch.tensor([LONG, [0] * 4 + SHORT], device=DEVICE),
        "attention_mask": torch.tensor([[1] * 6, [0] * 4 + [1] * 2], device=DEVICE),
    }


def one(prompt=LONG):
    return {
        "input_ids": torch.tensor([prompt], device=DEVICE),
        "attention_mask": torch.ones(1, len(prompt), device=DEVICE).long(),
    }


def ours(inputs, *, rule=None, pair=None, **options):
    target, draft = pair or llama_pair()
    return target.generate(
        **inputs,
        **{"max_new_tokens": NEW, "pad_token_id": 0, **options},
        custom_generate=easd.custom_generate,
        draft_model=draft,
        rule=rule or Speculative(),
    )


def theirs(inputs, **options):
    target, _ = llama_pair()
    return target.generate(**inputs, **{"max_new_tokens": NEW, "pad_token_id": 0, **options})


class OnlyEven(LogitsProcessor):
    """After an odd token only even ones."""

    def __call__(self, input_ids, scores):
        odd = (input_ids[:, -1] % 2 == 1)[:, None]
        forbidden = odd & (torch.arange(scores.shape[-1], device=scores.device) % 2 == 1)
        return scores.masked_fill(forbidden, float("-inf"))


class StopAtSum(StoppingCriteria):
    """Ends a text whose ids sum up to something large."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.sum(-1) > 130


def allowed_after(batch_id, input_ids):
    return [3, 4, 5, 6] if batch_id == 0 else [int(input_ids[-1]) % 5 + 10, 20]


GREEDY_OPTIONS = {
    "plain": {},
    "max_length": {"max_new_tokens": None, "max_length": 11},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[13], [5, 9], [7]]},
    "suppress": {"suppress_tokens": [3, 4, 5], "begin_suppress_tokens": [6, 7]},
    "min_new_tokens": {"eos_token_id": list(range(2, 14)), "min_new_tokens": 5},
    "min_length": {"eos_token_id": list(range(2, 14)), "min_length": 9},
    "eos": {"eos_token_id": 13},
    "eos list": {"eos_token_id": [4, 13, 17]},
    "forced eos": {"eos_token_id": 2, "forced_eos_token_id": 2},
    "length penalty": {"eos_token_id": 2, "exponential_decay_length_penalty": (3, 1.5)},
    "sequence_bias": {"sequence_bias": [[[13], 3.0], [[5, 6], -9.0]]},
    "processor": {"logits_processor": LogitsProcessorList([OnlyEven()])},
    # Only with an end-of-sequence token does transformers stop rows one by one.
    "criterion": {"stopping_criteria": StoppingCriteriaList([StopAtSum()]), "eos_token_id": 23},
    "prefix_allowed": {"prefix_allowed_tokens_fn": allowed_after},
    "remove_invalid": {"remove_invalid_values": True, "renormalize_logits": True},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=3.0)},
    "no cache": {"use_cache": False},
    "encoder penalty": {"encoder_repetition_penalty": 1.4},
}


@pytest.mark.parametrize("name", GREEDY_OPTIONS)
def test_greedy_text_is_transformers_own(name):
    options = {"do_sample": False, **GREEDY_OPTIONS[name]}
    assert ours(batch(), **options).tolist() == theirs(batch(), **options).tolist()
    assert ours(one(), gamma=7, **options).tolist() == theirs(one(), **options).tolist()


def test_a_batch_of_one_text_equals_that_text_in_a_batch():
    options = {"do_sample": False, "repetition_penalty": 1.3}
    together = ours(batch(), **options)[1, 4:].tolist()
    assert ours(one(SHORT), **options)[0].tolist() == together


SAMPLING = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.5, "top_k": 0},
    "min_p": {"min_p": 0.4, "top_k": 0},
    "typical_p": {"typical_p": 0.4, "top_k": 0},
    "epsilon": {"epsilon_cutoff": 0.1, "top_k": 0},
    "eta": {"eta_cutoff": 0.1, "top_k": 0},
    "top_h": {"top_h": 0.5, "top_k": 0},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_options_shape_the_scores_as_theirs(name):
    """Our scores are what transformers' processors make of plain logits at the same prefix."""
    options = {"do_sample": True, "return_dict_in_generate": True, "output_scores": True}
    options |= SAMPLING[name]
    spoken = ours(one(), seed=1, **options)
    assert torch.isinf(torch.stack(spoken.scores)).any() or name == "temperature"
    for count, score in enumerate(spoken.scores):
        prefix = spoken.sequences[:, : len(LONG) + count].tolist()[0]
        expected = theirs(one(prefix), **{**options, "max_new_tokens": 1}).scores[0]
        torch.testing.assert_close(score.float(), expected.float(), atol=1e-4, rtol=1e-4)
        assert torch.isfinite(score[0, spoken.sequences[0, len(LONG) + count]])


def test_a_generation_config_is_honoured_whole():
    config = GenerationConfig(
        max_new_tokens=5, do_sample=False, repetition_penalty=1.4, pad_token_id=0, eos_token_id=13
    )
    target, draft = llama_pair()
    spoken = target.generate(
        **one(),
        generation_config=config,
        custom_generate=easd.custom_generate,
        draft_model=draft,
        rule=Speculative(),
    )
    assert spoken.tolist() == target.generate(**one(), generation_config=config).tolist()


def test_scores_are_theirs():
    options = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    options |= {"eos_token_id": [4, 13, 17], "repetition_penalty": 1.2}
    mine, other = ours(batch(), **options), theirs(batch(), **options)
    assert mine.sequences.tolist() == other.sequences.tolist()
    assert len(mine.scores) == len(other.scores)
    target, _ = llama_pair()
    transitions = [
        target.compute_transition_scores(out.sequences, out.scores, normalize_logits=True).float()
        for out in (mine, other)
    ]
    ended = mine.sequences[:, 6:] == 0  # what padding is worth is nobody's business
    torch.testing.assert_close(
        transitions[0].masked_fill(ended, 0), transitions[1].masked_fill(ended, 0)
    )


class Spoil(LogitsProcessor):
    """Logits that are NaN behind the second token of texts whose prompt ends in `token`."""

    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        bad = input_ids[0, len(LONG) - 1] == self.token and input_ids.shape[1] > len(LONG) + 1
        return scores * float("nan") if bad else scores


@pytest.mark.parametrize("row", [0, 1])
def test_a_row_that_fails_ends_early_and_the_others_go_on(row):
    options = {"do_sample": True, "seed": 1, "return_dict_in_generate": True, "output_scores": True}
    sound = ours(batch(), **options)
    spoil = {"logits_processor": [Spoil([LONG, SHORT][row][-1])], **options}
    with pytest.warns(UserWarning, match=f"1 of 2 texts failed .* text {row}: .*NaN"):
        found = ours(batch(), **spoil)
    assert found.sequences[1 - row].tolist() == sound.sequences[1 - row].tolist()
    assert len(found.scores) == NEW
    new = found.sequences[row, len(LONG) :].tolist()
    assert new[-8:] == [0] * 8
    with pytest.raises(easd.errors.NumericsError, match="NaN"):
        ours(one(), logits_processor=[Spoil(LONG[-1])])


def test_num_return_sequences_differ_and_follow_the_seed():
    options = {"do_sample": True, "num_return_sequences": 4, "rule": EASD(tau_h=1.5)}
    first = ours(batch(), seed=3, **options)
    assert first.shape == (8, 6 + NEW)
    assert len({tuple(row) for row in first[:4].tolist()}) == 4
    assert first.tolist() == ours(batch(), seed=3, batch_size=3, **options).tolist()
    assert first.tolist() != ours(batch(), seed=4, **options).tolist()


def test_without_a_seed_torchs_own_is_used():
    torch.manual_seed(7)
    first, second = ours(one(), do_sample=True), ours(one(), do_sample=True)
    torch.manual_seed(7)
    assert ours(one(), do_sample=True).tolist() == first.tolist()
    assert first.tolist() != second.tolist()


def test_prompt_lookup_from_the_config():
    target, _ = llama_pair()
    spoken = ours(one(), pair=(target, None), do_sample=False, prompt_lookup_num_tokens=4)
    assert spoken.tolist() == theirs(one(), do_sample=False).tolist()


def test_prompts_without_attention_mask():
    ids = {"input_ids": torch.tensor([LONG], device=DEVICE)}
    assert ours(ids, do_sample=False).tolist() == theirs(ids, do_sample=False).tolist()


# Stop strings.


def test_stop_strings_with_their_tokenizer():
    tokenizer = word_tokenizer()
    plain = ours(one(), do_sample=False)[0, len(LONG) :].tolist()
    stop = tokenizer.decode(plain[4:6])
    spoken = ours(one(), do_sample=False, stop_strings=stop, stop_tokenizer=tokenizer)
    text = tokenizer.decode(spoken[0, len(LONG) :])
    assert text.endswith(stop)
    assert text.count(stop) == 1


def test_stop_strings_without_a_tokenizer_are_refused():
    with pytest.raises(easd.errors.ConfigError, match="pass stop_tokenizer"):
        ours(one(), stop_strings="w5")


def test_stop_strings_in_the_config_are_never_dropped_silently():
    """transformers builds that criterion itself and asks for the tokenizer it has thrown away."""
    config = GenerationConfig(stop_strings=["w5"], max_new_tokens=3, pad_token_id=0)
    target, draft = llama_pair()
    with pytest.raises(ValueError, match="stop strings"):
        target.generate(
            **one(),
            generation_config=config,
            custom_generate=easd.custom_generate,
            draft_model=draft,
        )


# Streamers.


class Collect:
    """What a streamer was given."""

    def __init__(self):
        self.chunks, self.ended = [], 0

    def put(self, value):
        self.chunks.append(value.flatten().tolist())

    def end(self):
        self.ended += 1


def plainly(target, **arguments):
    return target.generate(**arguments)


def decorated(target, **arguments):
    @functools.wraps(target.generate)
    @torch.no_grad()
    def wrapper(**inner):
        return target.generate(**inner)

    return wrapper(**arguments)


def partially(target, **arguments):
    return functools.partial(target.generate, custom_generate=easd.custom_generate)(
        **{k: v for k, v in arguments.items() if k != "custom_generate"}
    )


def through_a_callable(target, **arguments):
    """`custom_generate` itself wrapped by the user."""

    def mine(model, input_ids, logits_processor, stopping_criteria, generation_config, **rest):
        return easd.custom_generate(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **rest
        )

    draft = arguments.pop("draft_model")
    rule = arguments.pop("rule")
    wrapped = functools.partial(mine, draft_model=draft, rule=rule)
    return target.generate(**{**arguments, "custom_generate": wrapped})


@pytest.mark.parametrize("call", [plainly, decorated, partially, through_a_callable])
def test_streamers_get_every_token_and_the_end(call):
    target, draft = llama_pair()
    streamer = Collect()
    spoken = call(
        target,
        **one(),
        max_new_tokens=NEW,
        pad_token_id=0,
        do_sample=False,
        streamer=streamer,
        custom_generate=easd.custom_generate,
        draft_model=draft,
        rule=Speculative(),
    )
    assert [token for chunk in streamer.chunks for token in chunk] == spoken[0].tolist()
    assert streamer.ended == 1
    assert streamer.chunks[0] == LONG
    assert any(len(chunk) > 1 for chunk in streamer.chunks[1:])


def test_text_iterator_streamer_does_not_hang():
    streamer = TextIteratorStreamer(word_tokenizer(), skip_prompt=True, timeout=60)
    thread = Thread(target=ours, args=(one(),), kwargs={"do_sample": False, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    expected = ours(one(), do_sample=False)[0, len(LONG) :]
    assert text.split() == word_tokenizer().decode(expected).split()


@pytest.mark.parametrize("options", [{"gamma": 0}, {"on_step": [].pop}], ids=["refused", "broken"])
def test_an_error_ends_the_streamed_text(options):
    streamer = TextIteratorStreamer(word_tokenizer(), skip_prompt=True, timeout=60)
    with ThreadPoolExecutor() as pool:
        decoding = pool.submit(ours, one(), do_sample=False, streamer=streamer, **options)
        begun = time.monotonic()
        "".join(streamer)
        assert time.monotonic() - begun < 30
    assert isinstance(decoding.exception(), easd.errors.ConfigError | TypeError)


def test_text_streamer_prints(capsys):
    spoken = ours(one(), do_sample=False, streamer=TextStreamer(word_tokenizer()))
    assert capsys.readouterr().out.split() == word_tokenizer().decode(spoken[0]).split()


# What cannot be honoured is refused by name.


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"guidance_scale": 1.5}, "ClassifierFreeGuidance"),
        ({"max_new_tokens": 4000}, "context window of 2048"),
        ({"streamer": Collect()}, "streamer takes one text"),
        ({"gamma": 0}, "gamma = 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_honoured_is_refused(options, match):
    with pytest.raises(easd.errors.EasdError, match=match) as caught:
        ours(batch(), **options)
    assert "\n" not in str(caught.value)


def test_right_padding_is_refused():
    inputs = {
        "input_ids": torch.tensor([LONG, [*SHORT, 0, 0, 0, 0]], device=DEVICE),
        "attention_mask": torch.tensor([[1] * 6, [1] * 2 + [0] * 4], device=DEVICE),
    }
    with pytest.raises(easd.errors.ConfigError, match="right padding"):
        ours(inputs)


def test_a_filled_cache_is_refused():
    target, _ = llama_pair()
    name = cache_keyword(target)
    cache = target(**one(LONG[:3]), use_cache=True)[name]
    with pytest.raises(easd.errors.ConfigError, match=f"filled {name}"):
        ours(one(), **{name: cache})


def test_embeddings_are_refused():
    target, _ = llama_pair()
    embedded = target.get_input_embeddings()(torch.tensor([LONG], device=DEVICE))
    with pytest.raises(easd.errors.ConfigError, match="inputs_embeds"):
        ours({"inputs_embeds": embedded})


def test_positions_of_ones_own_are_refused():
    with pytest.raises(easd.errors.ConfigError, match="position_ids"):
        ours(one(), position_ids=torch.arange(3, 9, device=DEVICE)[None])
    plain = ours(one(), do_sample=False, position_ids=torch.arange(6, device=DEVICE)[None])
    assert plain.tolist() == theirs(one(), do_sample=False).tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_type_ids", torch.ones(1, len(LONG), dtype=torch.long)),
        ("token_type_ids", [[0] * len(LONG)]),
        ("token_type_ids", {"of": "the prompt"}),
    ],
)
def test_inputs_beside_the_tokens_are_refused(name, value):
    model = build(gpt2_config(24))
    with pytest.raises(easd.errors.ConfigError, match=f"{name} cannot be honoured"):
        ours(one(), pair=(model, model), **{name: value})


def test_labels_are_refused_and_nothing_is_not():
    with pytest.raises(easd.errors.ConfigError, match="labels cannot be honoured"):
        ours(one(), labels=[1, 2])
    assert ours(one(), do_sample=False, labels=None).tolist()


def test_images_are_refused():
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 24}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(**vision),
        image_token_id=23,
    )
    model = AutoModelForImageTextToText.from_config(config)
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(easd.errors.ConfigError, match=r"pixel_values.* cannot be honoured"):
        ours(one([23] * 4 + SHORT), pair=(model, model), pixel_values=images)


@pytest.mark.parametrize("rule", ["speculative", Speculative])
def test_a_rule_is_taken_by_its_name_or_class(rule):
    expected = ours(one(), do_sample=True, seed=3).tolist()
    assert ours(one(), do_sample=True, seed=3, rule=rule).tolist() == expected


def test_no_draft_at_all_is_refused():
    target, _ = fresh_pair()
    with pytest.raises(easd.errors.ConfigError, match="no draft model"):
        ours(one(), pair=(target, None))


def test_an_unknown_keyword_is_refused():
    with pytest.raises(ValueError, match="draft_modle"):
        ours(one(), draft_modle=1)
