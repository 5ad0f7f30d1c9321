"""`lab-t`, whose draft has another tokenizer, everywhere that a draft goes."""

import gc
import json

import pytest
import torch
from http_server import CHAT, DECODE, events, running
from traces import traced
from vocabularies import drop_in_texts

import easd as package
from easd import Speculative, load_pair
from easd.config import RunConfig, load_config
from easd.core.rules import TargetOnly
from easd.engine.vocabulary import vocabulary_map
from easd.inspect.page.data import run_data
from easd.pairs import lab
from easd.runs import open_run, traces

PROBLEMS = lab.problems("lab-t", 40, seed=20)
PROMPTS = [problem.prompt for problem in PROBLEMS]
FAST = ["--pair", "lab-t", "--device", "cpu", "--batch", "20"]
SHARED = {"coupling": "shared", "seed": 4, "max_new_tokens": lab.MAX_NEW_TOKENS}


@pytest.fixture(scope="module")
def pair():
    return load_pair("lab-t", device="cpu")


def decoded(pair, prompts, **settings):
    own = {"tokenizer": pair.tokenizer, "draft_tokenizer": pair.draft_tokenizer}
    return package.generate(pair.target, pair.draft, prompts, **own, **{**SHARED, **settings})


@pytest.fixture(scope="module")
def alone(pair):
    """What the target writes alone."""
    return decoded(pair, PROMPTS, rule=TargetOnly())


def test_a_text_is_the_targets_and_most_of_it_is_drafted(pair, alone):
    found = decoded(pair, PROMPTS, rule=Speculative(), gamma=4, batch_size=16)
    assert [text.token_ids for text in found] == [text.token_ids for text in alone]
    accepted = sum(text.counts.accepted for text in found)
    assert accepted > 0.75 * sum(text.counts.examined for text in found)


def test_the_other_way_round_the_draft_can_propose_little_and_says_so(pair):
    swapped = {"target": lab.folder("lab-t", "draft"), "draft": lab.folder("lab-t", "target")}
    with pytest.warns(UserWarning, match=r"can propose only \d+% of the target's five"):
        other = package.load_models(*map(str, swapped.values()), device="cpu")
    texts = [
        [text.token_ids for text in decoded(other, PROMPTS[:8], rule=rule)]
        for rule in (Speculative(), TargetOnly())
    ]
    assert texts[0] == texts[1]


def test_the_drop_in_writes_the_targets_text(pair):
    texts = drop_in_texts(pair, PROMPTS[:6], 12)
    assert texts[0].equal(texts[1])


def test_an_evaluation_pairs_its_systems_and_its_page_shows_target_tokens(easd, tmp_path):
    run, page = tmp_path / "run", tmp_path / "page.html"
    systems = ["--system", "target", "--system", "speculative", "--system", "easd:tau_h=0.3"]
    asked = ["--task", "lab-t:40", "--coupling", "shared", "--set", "trace=5", *systems]
    easd("eval", *FAST, *asked, "--out", run, "-q")
    texts = open_run(run).samples.to_pandas().pivot(index="item", columns="system", values="text")
    assert len(texts) == 40
    assert (texts["target"] == texts["speculative"]).all()
    named = {each.run["cell"]["system"]: each for each in traces(open_run(run))}
    trace = next(trace for name, trace in named.items() if name.startswith("easd"))
    size = lab.recipe("lab-t").vocabulary_size("target")
    best = [token for row in trace.tokens["draft_top_tokens"].to_pylist() for token in row]
    assert best
    assert max(best) < size
    easd("inspect", run, "--html", page)
    assert page.stat().st_size > 10_000


def test_the_page_says_which_of_the_drafts_own_tokens_its_opinion_came_from(pair, tmp_path):
    config = RunConfig.from_dict({"pair": "lab-t", "rule": "speculative", **SHARED})
    _, trace = traced(pair, config, tmp_path / "run", PROMPTS[:1])
    data = run_data(trace, 0)
    rows, vocabulary = data["texts"][0]["tokens"], dict(data["vocabulary"])

    words = vocabulary_map(pair.tokenizer, pair.draft_tokenizer)
    with torch.no_grad():
        ids = pair.draft_tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
        probs = pair.draft(ids).logits[0, -1].softmax(-1)
    assert len(rows["draft_top_tokens"][0]) == 5
    for token, texts, shares in zip(
        *(rows[f"draft_top_{what}"][0] for what in ("tokens", "origins", "origin_shares")),
        strict=True,
    ):
        masses = {words.draft.text_of(at): probs[at].item() for at in words.drafts_of(token)}
        likely = sorted(masses, key=masses.__getitem__, reverse=True)
        expected = [masses[text] / sum(masses.values()) for text in likely]
        kept = [(text, share) for text, share in zip(likely, expected, strict=True)][: len(texts)]
        assert texts == [text for text, _ in kept]
        assert shares == pytest.approx([share for _, share in kept], abs=1e-5)
        assert len(texts) == 3 or expected[len(texts) :][:1] < [0.001]
    # Inside a number, a favourite continues the draft's token that the text ends in.
    assert rows["text"][0].strip().isdigit()
    number = rows["text"][0] + vocabulary[rows["draft_top_tokens"][1][0]]
    assert rows["draft_top_origins"][1][0][0] == number


def test_diagnosis_calibration_and_tuning_read_it(easd, tmp_path):
    asked = [*FAST[:4], "--task", "lab-t:60"]
    found = json.loads(easd("diagnose", *asked, "--json")[0])
    assert found["positions"] == 60 * 9
    assert found["draft_vocabulary"]["silent"] == 0
    assert found["draft_vocabulary"]["anew"] > 0
    calibration, tuning = tmp_path / "calibration.json", tmp_path / "tuning.json"
    easd("calibrate", *FAST, "--task", "lab-t:60", "--rate", "0.05", "--out", calibration, "-q")
    easd("tune", *asked, "--out", tuning, "-q")
    for file in (calibration, tuning):
        easd("generate", *FAST[:4], "--calibration", file, PROMPTS[0], "-q")


def test_a_benchmark_times_it_beside_transformers(easd, tmp_path):
    systems = [f"--system={name}" for name in ("target", "assisted", "speculative", "easd")]
    asked = ["--gamma", "2", "--tokens", "6", "--rounds", "1", "--threads", "1", *systems]
    easd("bench", *FAST[:4], *asked, "--out", tmp_path / "run")
    timings = open_run(tmp_path / "run").timings.to_pandas().set_index("system")
    assert (timings["tokens"] > 0).all()
    assert timings["accepted"]["speculative 2"] > 0


def test_the_server_answers_and_streams_with_it(pair):
    settings = {"pair": "lab-t", "rule": "speculative", "coupling": "shared"}
    (own,) = decoded(pair, PROMPTS[0], seed=7, rule=TargetOnly())
    with running(pair, load_config(None, settings)) as server:
        answer = server.complete(PROMPTS[0], seed=7).json()
        assert answer["choices"][0]["text"] == own.text
        assert answer["usage"]["completion_tokens_details"]["accepted_tokens"] > 0
        turns = [{"role": "user", "content": PROMPTS[0]}]
        body = {"model": "lab-t", "messages": turns, "seed": 7, "stream": True}
        with server.stream(CHAT, body) as stream:
            parts = [event["choices"][0]["delta"] for event in events(stream)]
        assert "".join(part.get("content") or "" for part in parts) == own.text
        told = events(server.post(DECODE, {"prompt": PROMPTS[0], "seed": 7}))
    rows = [row for event in told for row in event.get("tokens", [])]
    assert any(row["outcome"] == "accepted" and row["draft_top_tokens"] for row in rows)
    vocabulary = {
        int(at): name for event in told for at, name in event.get("vocabulary", {}).items()
    }
    assert all(vocabulary[at].strip().isdigit() for at in rows[0]["draft_top_tokens"][:1])


GREEDY = {"pair": "lab-t", "rule": "speculative", "device": "cpu"}


@pytest.fixture(scope="module")
def greedy(pair):
    """The target's greedy answers to the first problems."""
    return [text.text for text in decoded(pair, PROMPTS[:8], rule=TargetOnly(), temperature=0)]


def test_lm_evaluation_harness_gets_the_targets_greedy_texts(greedy):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from easd.integrations.lm_eval import EasdLM

    until = {"do_sample": False, "max_gen_toks": lab.MAX_NEW_TOKENS, "until": []}
    asked = [
        Instance("generate_until", {}, (prompt, until), at, ("lab", at, 1))
        for at, prompt in enumerate(PROMPTS[: len(greedy)])
    ]
    assert EasdLM(**GREEDY).generate_until(asked, disable_tqdm=True) == greedy


@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
def test_inspect_ai_gets_the_targets_greedy_texts(greedy):
    pytest.importorskip("inspect_ai")
    import anyio
    from inspect_ai.model import GenerateConfig, get_model

    options = {name: value for name, value in GREEDY.items() if name != "pair"}
    model = get_model("easd/lab-t", memoize=False, max_new_tokens=lab.MAX_NEW_TOKENS, **options)

    async def ask():
        config = GenerateConfig(temperature=0)
        return [(await model.generate(prompt, config=config)).completion for prompt in PROMPTS[:8]]

    assert anyio.run(ask) == greedy
    gc.collect()
