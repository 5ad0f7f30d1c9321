"""Models as people hold them: wrapped, in training, under autocast, in several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import DEVICE, build, fresh_pair, gpt2_config, llama_config, near, prompts
from torch import nn

from easd import generate
from easd.core.rules import Speculative, TargetOnly
from easd.errors import ModelError

ASKED = prompts(3)
GREEDY = {"temperature": 0, "max_new_tokens": 10, "rule": Speculative()}


def ids(found):
    return [text.token_ids for text in found]


def plainly(model, prompt, count=10):
    given = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(given)
    out = model.generate(given, attention_mask=mask, do_sample=False, max_new_tokens=count)
    return out[0, len(prompt) :].tolist()


@pytest.mark.skipif(DEVICE != "cpu", reason="layers are packed on a CPU")
def test_weights_changed_through_data_write_transformers_text():
    target = build(llama_config(hidden_size=256, intermediate_size=512), dtype=torch.float32)
    options = {"temperature": 0, "max_new_tokens": 10, "rule": TargetOnly()}
    assert ids(generate(target, None, ASKED, **options)) == [plainly(target, p) for p in ASKED]
    with torch.no_grad():
        for values in target.parameters():
            values.data.copy_(torch.randn_like(values) * 0.2)
    assert ids(generate(target, None, ASKED, **options)) == [plainly(target, p) for p in ASKED]


def test_threads_that_share_a_model_write_what_each_writes_alone():
    target = build(
        llama_config(hidden_size=256, intermediate_size=512), spread=4.0, dtype=torch.float32
    )
    draft = near(target)
    before = [model.config._attn_implementation for model in (target, draft)]
    alone = [ids(generate(target, draft, prompt, **GREEDY)) for prompt in ASKED[:2]]
    plain = plainly(target, ASKED[0])
    with ThreadPoolExecutor(3) as pool:
        theirs = pool.submit(plainly, target, ASKED[0])
        ours = [pool.submit(generate, target, draft, prompt, **GREEDY) for prompt in ASKED[:2]]
        assert [ids(each.result()) for each in ours] == alone
        assert theirs.result() == plain
    assert [model.config._attn_implementation for model in (target, draft)] == before
    assert plainly(target, ASKED[0]) == plain


def test_training_mode_works_where_it_changes_no_forward():
    target, draft = fresh_pair()
    evaluated = ids(generate(target, draft, ASKED, **GREEDY))
    assert ids(generate(target.train(), draft, ASKED, **GREEDY)) == evaluated
    # What enables it is called differently from version to version.
    for layer in target.model.layers:
        layer.gradient_checkpointing = True
    with pytest.raises(ModelError, match=r"gradient checkpointing.*call model\.eval\(\)"):
        generate(target, draft, ASKED, **GREEDY)
    assert ids(generate(target.eval(), draft, ASKED, **GREEDY)) == evaluated


def test_dropout_is_refused():
    model = build(gpt2_config(24))
    model.transformer.drop = nn.Dropout(0.1)
    model.train()
    with pytest.raises(ModelError, match=r"dropout follows no seed; call model\.eval"):
        generate(model, None, ASKED, rule=TargetOnly(), max_new_tokens=2)


def test_autocast_writes_a_text():
    target = build(llama_config(hidden_size=256, intermediate_size=512), dtype=torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert ids(generate(target, target, ASKED, **GREEDY)) == [plainly(target, p) for p in ASKED]


def test_weights_on_the_meta_device():
    target, draft = fresh_pair()
    with pytest.raises(ModelError, match="on the meta device"):
        generate(target.to("meta"), draft, ASKED, **GREEDY)


def test_ids_go_where_the_weights_are_that_are_in_memory():
    """An offloader leaves weights on the meta device and fetches them for a forward."""
    target, draft = fresh_pair()
    alone = ids(generate(target, draft, ASKED, **GREEDY))
    embedding = target.get_input_embeddings()
    held = embedding.weight
    embedding.weight = nn.Parameter(held.to("meta"))
    embedding.forward = lambda given: nn.functional.embedding(given, held)
    assert target.device.type == "meta"
    assert ids(generate(target, draft, ASKED, **GREEDY)) == alone


def test_a_compiled_model_writes_its_models_text():
    target, draft = fresh_pair()
    wrapped = (
        torch.compile(target, backend="eager"),
        nn.DataParallel(draft) if DEVICE == "cpu" else draft,
    )
    alone = ids(generate(target, draft, ASKED, **GREEDY))
    assert ids(generate(*wrapped, ASKED, **GREEDY)) == alone


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_peft_is_decoded_with():
    peft = pytest.importorskip("peft")
    target, draft = fresh_pair()
    config = peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(target, config)
    expected = [plainly(adapted, prompt) for prompt in ASKED]
    assert ids(generate(adapted, draft, ASKED, **GREEDY)) == expected
    assert ids(generate(draft, adapted, ASKED, **GREEDY)) == [plainly(draft, p) for p in ASKED]
    virtual = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prompted = peft.get_peft_model(fresh_pair()[0], virtual)
    with pytest.raises(ModelError, match="puts virtual tokens before each prompt"):
        generate(prompted, draft, ASKED, **GREEDY)


@pytest.mark.parametrize("given", ["gpt2", nn.Linear(2, 2), 5])
def test_what_is_no_model_is_told(given):
    with pytest.raises(ModelError, match="is no transformers model; load one with"):
        generate(given, None, ASKED, **GREEDY)
