"""lm-evaluation-harness's own evaluator over the model `easd`, on the pair `lab-a`."""

import json
import sys
from functools import partial

import pytest
import torch
import yaml
from models import spoil

import easd
from easd.engine.engine import Engine
from easd.errors import ConfigError, EasdError, InputError, NumericsError
from easd.integrations import lm_eval_cli
from easd.pairs import lab

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from easd.integrations import lm_eval as integration
from easd.integrations.lm_eval import EasdLM

PROBLEMS = lab.problems("lab-a", 60, seed=0)
ARGUMENTS = {"pair": "lab-a", "rule": "easd", "tau_h": 0.35, "seed": 3, "device": "cpu"}
UNRULED = {"pair": "lab-a", "seed": 3, "device": "cpu"}
SAMPLED = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 24, "until": []}

# Without the harness's own thousands of tasks, whose files take ten seconds to read.
OWN_TASKS = partial(TaskManager, include_defaults=False)


@pytest.fixture(scope="module")
def pair():
    return easd.load_pair("lab-a", device="cpu")


@pytest.fixture(scope="module")
def model():
    return EasdLM(**ARGUMENTS)


def generations(pair, prompts, **settings):
    settings = {"rule": easd.EASD(tau_h=0.35), "seed": 3, "max_new_tokens": 24, **settings}
    return easd.generate(pair.target, pair.draft, prompts, tokenizer=pair.tokenizer, **settings)


def ask(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("lab", i, 1))
        for i, args in enumerate(arguments)
    ]


def decoded(model, prompts, **kwargs):
    asked = ask("generate_until", *[(prompt, {**SAMPLED, **kwargs}) for prompt in prompts])
    return model.generate_until(asked, disable_tqdm=True)


def dataset(**metadata):
    import datasets

    rows = [
        {"prompt": p.prompt, "answer": p.answer, "choices": wrong_and_right(p)} for p in PROBLEMS
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def wrong_and_right(problem):
    """Whole solutions, of which the second is right."""
    *steps, answer = problem.solution.split()
    return [" ".join([*steps, str((int(answer) + 1) % 100)]), problem.solution]


def solved(doc, results):
    words = results[0].split()
    return {"solved": bool(words) and words[-1] == doc["answer"]}


GENERATED_TASK = {
    "task": "lab-generated",
    "custom_dataset": dataset,
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": SAMPLED,
    "process_results": solved,
    "metric_list": [{"metric": "solved", "aggregation": "mean", "higher_is_better": True}],
}
CHOICE_TASK = {
    "task": "lab-choice",
    "custom_dataset": dataset,
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 1,
    "metric_list": [{"metric": "acc"}],
}


def evaluate(model, task, **options):
    return lm_eval.simple_evaluate(
        model=model, tasks=[task], bootstrap_iters=0, task_manager=OWN_TASKS(), **options
    )


def test_a_generation_task_scores_what_easd_generate_scores(model, pair):
    alone = generations(pair, [p.prompt for p in PROBLEMS])
    right = [lab.grade(p, g.text) for p, g in zip(PROBLEMS, alone, strict=True)]
    results = evaluate(model, GENERATED_TASK)
    samples = sorted(results["samples"]["lab-generated"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == [g.text for g in alone]
    accuracy = results["results"]["lab-generated"]["solved,none"]
    assert accuracy == pytest.approx(sum(right) / len(right))
    assert 0 < accuracy < 1
    assert results["config"]["easd"]["rule"]["tau_h"] == 0.35
    assert results["config"]["easd_counts"]["penalised"] >= sum(g.counts.penalised for g in alone)
    assert sum(g.counts.penalised for g in alone) > 0


def test_an_item_that_fails_is_named_and_the_others_are_scored(model, pair, monkeypatch):
    prompts = [p.prompt for p in PROBLEMS[:4]]
    spoil(monkeypatch, integration, lambda request: request.number == 2)
    said = "1 of 4 items failed and count as wrong; the first, lab-generated document 2: .*NaN"
    with pytest.warns(UserWarning, match=said):
        results = evaluate(model, GENERATED_TASK, limit=4)
    samples = sorted(results["samples"]["lab-generated"], key=lambda sample: sample["doc_id"])
    alone = [g.text for g in generations(pair, prompts)]
    assert [sample["resps"][0][0] for sample in samples] == [*alone[:2], "", alone[3]]
    assert "NaN" in results["config"]["easd_failed"]["lab-generated document 2"]
    model.failed.clear()
    spoil(monkeypatch, integration, lambda request: True)
    with pytest.raises(NumericsError, match="NaN"):
        decoded(model, prompts[:2])
    model.failed.clear()


def test_a_choice_without_a_number_is_never_the_best(model, monkeypatch):
    def score(pairs, original=model._score):
        return [
            (float("nan"), True) if continuation == [5] else one
            for (_, continuation), one in zip(pairs, original(pairs), strict=True)
        ]

    monkeypatch.setattr(model, "_score", score)
    monkeypatch.setattr(model.config.settings.rule.__class__, "lossless", True)  # one warning less
    asked = [(None, [4], [5]), (None, [4], [6, 7])]
    with pytest.warns(UserWarning, match="1 of 2 items failed .* log-likelihood 0: .*NaN"):
        found = model._loglikelihood_tokens(asked, disable_tqdm=True)
    assert found[0] == (-float("inf"), False)
    assert found[1][0] > -float("inf")
    with pytest.raises(NumericsError, match="NaN"):
        model._loglikelihood_tokens(asked[:1], disable_tqdm=True)
    model.failed.clear()


def test_blocks_and_a_draft_temperature_of_ones_own(pair):
    drafting = {"coupling": "block", "draft_temperature": 0.5, "rule": "speculative"}
    results = evaluate("easd", GENERATED_TASK, model_args={**UNRULED, **drafting}, limit=6)
    texts = [sample["resps"][0][0] for sample in results["samples"]["lab-generated"]]
    prompts = [p.prompt for p in PROBLEMS[:6]]
    assert texts == [g.text for g in generations(pair, prompts, **drafting)]
    assert texts != [g.text for g in generations(pair, prompts, rule="speculative")]
    assert results["config"]["easd"]["draft_temperature"] == 0.5
    assert results["config"]["easd"]["coupling"] == "block"


def test_model_by_name_and_argument_string(pair):
    arguments = "pair=lab,rule=easd,rule.tau_h=0.35,seed=3,batch_size=4"
    results = evaluate("easd", GENERATED_TASK, model_args=arguments, batch_size=2, limit=6)
    texts = [sample["resps"][0][0] for sample in results["samples"]["lab-generated"]]
    assert texts == [g.text for g in generations(pair, [p.prompt for p in PROBLEMS[:6]])]
    assert results["config"]["easd"]["batch_size"] == 4  # model_args go before --batch_size


def test_multiple_choice_is_the_targets_and_says_so(model, pair):
    with pytest.warns(UserWarning, match="log-likelihoods are the target's own"):
        results = evaluate(model, CHOICE_TASK)
    right = [
        max(wrong_and_right(p), key=lambda text: direct_score(pair, p.prompt, " " + text)[0])
        == p.solution
        for p in PROBLEMS
    ]
    assert results["results"]["lab-choice"]["acc,none"] == pytest.approx(sum(right) / len(right))


def direct_score(pair, context, continuation):
    """Log-probability and greediness, one text by itself."""
    first = len(pair.tokenizer(context)["input_ids"])
    ids = torch.tensor(pair.tokenizer(context + continuation)["input_ids"])
    with torch.no_grad():
        log_probs = pair.target(ids[None, :-1]).logits[0].log_softmax(-1)[first - 1 :]
    score = log_probs.gather(1, ids[first:, None]).sum().item()
    return score, bool((log_probs.argmax(-1) == ids[first:]).all())


@pytest.mark.filterwarnings("ignore:log-likelihoods are the target's own")
def test_loglikelihoods_are_a_direct_computations(model, pair):
    # Of many lengths, so that every batch is padded.
    texts = [(p.prompt, " " + " ".join(p.solution.split()[: 1 + i % 4])) for i, p in
             enumerate(PROBLEMS[:20])]  # fmt: skip
    found = model.loglikelihood(ask("loglikelihood", *texts), disable_tqdm=True)
    for (score, greedy), text in zip(found, texts, strict=True):
        wanted, wanted_greedy = direct_score(pair, *text)
        assert score == pytest.approx(wanted, abs=1e-4)
        assert greedy == wanted_greedy
    assert {greedy for _, greedy in found} == {True, False}


@pytest.mark.parametrize("arguments", [{"rule": "speculative"}, {"redraw": "target"}])
def test_lossless_rules_score_without_a_warning(arguments):
    model = EasdLM(pair="lab-a", device="cpu", **arguments)
    assert len(model.loglikelihood(ask("loglikelihood", ("4 + 5 ?", " 9")))) == 1


@pytest.mark.filterwarnings("ignore:log-likelihoods are the target's own")
def test_rolling_loglikelihood_counts_every_token_once(model, pair):
    text = " ".join(p.prompt + " " + p.solution for p in PROBLEMS[:10])
    ids = pair.tokenizer(text)["input_ids"]
    assert len(ids) > 2 * model.max_length  # three windows
    (found,) = model.loglikelihood_rolling(ask("loglikelihood_rolling", (text,)))
    eos, wanted, length = pair.tokenizer.eos_token_id, 0.0, model.max_length
    for begin in range(0, len(ids), length):
        end = min(begin + length, len(ids))
        # A last, shorter window is filled up with context from before it.
        start = max(0, end - length)
        window = torch.tensor([eos if start == 0 else ids[start - 1], *ids[start:end]])
        with torch.no_grad():
            log_probs = pair.target(window[None, :-1]).logits[0].log_softmax(-1)
        scores = log_probs.gather(1, window[1:, None])[:, 0]
        wanted += scores[begin - start :].sum().item()
    assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.filterwarnings("ignore:log-likelihoods are the target's own")
def test_rolling_loglikelihood_begins_once(model, pair, monkeypatch):
    """Also where the tokenizer adds a beginning, or the text has one."""
    plain, first = pair.tokenizer, pair.tokenizer.eos_token

    class Beginning:
        bos_token, bos_token_id = first, plain.eos_token_id

        def __getattr__(self, name):
            return getattr(plain, name)

        def __call__(self, text, add_special_tokens=True):
            ids = plain(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens else ids}

    texts = [("4 + 5 ? 9",), (f"{first} 4 + 5 ? 9",)]
    known, _ = model.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), True)
    monkeypatch.setattr(model, "tokenizer", Beginning())
    found = model.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), True)
    assert found == pytest.approx([known, known], abs=1e-5)


@pytest.mark.filterwarnings("ignore:log-likelihoods are the target's own")
def test_a_continuation_that_cannot_be_scored_is_refused(model):
    with pytest.raises(InputError, match="70 tokens"):
        model.loglikelihood(ask("loglikelihood", ("4 + 5 ?", " 9" * 70)))


def test_stop_strings_end_the_text_and_are_cut_off(model, pair):
    prompts = [p.prompt for p in PROBLEMS[:8]]
    whole = decoded(model, prompts)
    digit = whole[0].split()[1][-1]
    stopped = decoded(model, prompts, until=[digit, ""])
    assert stopped == [text.split(digit)[0] for text in whole]
    assert stopped != whole
    # No token was decoded behind the one that completes the stop string.
    before = model.counts.blocks
    decoded(model, prompts[:1], until=[digit])
    assert model.counts.blocks - before <= 2


def test_greedy_unless_sampling_is_asked_for(model, pair):
    prompts = [p.prompt for p in PROBLEMS[:8]]
    greedy = [g.text for g in generations(pair, prompts, temperature=0)]
    assert decoded(model, prompts, do_sample=None, temperature=None) == greedy
    assert decoded(model, prompts, do_sample=False, temperature=0.7, top_p=0) == greedy
    warm = [g.text for g in generations(pair, prompts, temperature=0.7, top_p=0.9)]
    assert decoded(model, prompts, temperature=0.7, top_p=0.9) == warm
    assert decoded(model, prompts, do_sample=None, temperature=0.7, top_p=0.9) == warm
    assert warm != greedy


def test_requests_of_different_settings_keep_their_numbers(model, pair):
    prompts = [p.prompt for p in PROBLEMS[:6]]
    asked = [(p, {**SAMPLED, "temperature": [1.0, 0.5][i % 2]}) for i, p in enumerate(prompts)]
    found = model.generate_until(ask("generate_until", *asked), disable_tqdm=True)
    hot, cool = ([g.text for g in generations(pair, prompts, temperature=t)] for t in (1.0, 0.5))
    assert found == [(hot, cool)[i % 2][i] for i in range(6)]


def test_texts_decode_in_one_batch(monkeypatch):
    steps = []
    original = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: steps.append(1) or original(self))
    prompts = [p.prompt for p in PROBLEMS[:16]]
    texts, counts = [], []
    for size in (1, 16):
        steps.clear()
        texts.append(decoded(EasdLM(**ARGUMENTS, batch_size=size), prompts))
        counts.append(len(steps))
    assert texts[0] == texts[1]
    assert counts[1] * 4 < counts[0]


def test_overlong_prompts_are_cut_on_the_left_with_a_warning(model, pair):
    prompt = " ".join(["7 + 7 ? 14"] * 15 + [PROBLEMS[0].prompt])
    with pytest.warns(UserWarning, match="cut on the left to leave 24 tokens"):
        (text,) = decoded(model, [prompt])
    ids = pair.tokenizer(prompt)["input_ids"]
    assert text == generations(pair, [ids[-40:]])[0].text
    with pytest.raises(ConfigError, match="max_gen_toks = 64 fills the context window of 64"):
        decoded(model, [prompt], max_gen_toks=64)


def test_an_empty_context_starts_from_an_end_of_sequence(model, pair):
    eos = pair.tokenizer.eos_token_id
    assert decoded(model, [""]) == [generations(pair, [[eos]])[0].text]


def test_chat_templates(model, monkeypatch):
    history = [{"role": "user", "content": "4 + 5 ?"}]
    with pytest.raises(ConfigError, match="no chat template"):
        model.apply_chat_template(history)
    template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} ={% endif %}"
    )
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    assert model.apply_chat_template(history) == "4 + 5 ? ="
    assert model.chat_template(True) == template
    assert "/" not in model.tokenizer_name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pair": "lab-a", "pretrained": "gpt2"}, "'pretrained' is not a setting"),
        ({"pair": "lab-a", "rule": "speculative", "tau_h": 1}, "has no field 'tau_h'"),
        ({"pair": "lab-a", "rule.tau": 1}, "has no field 'tau'"),
        ({"pair": "lab-z"}, "pair 'lab-z' is not known"),
        ({"pair": "lab-a", "batch_size": "auto"}, "batch_size = 'auto' does not fit"),
        ({"pair": "lab-a", "temperature": 0.5}, "'temperature' is decided by the harness"),
    ],
)
def test_bad_arguments_are_errors(arguments, message):
    with pytest.raises(EasdError, match=message):
        EasdLM.create_from_arg_obj(arguments, {"device": "cuda:0", "max_batch_size": None})


def test_unknown_generation_arguments_are_errors(model):
    with pytest.raises(ConfigError, match="'num_beams', which cannot be honoured"):
        decoded(model, ["4 + 5 ?"], num_beams=4)
    assert decoded(model, ["4 + 5 ?"], num_beams=1)


def test_config_file_under_the_arguments(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("pair: lab-a\nrule: {name: easd, tau_h: 0.9, tau_o: 0.6}\ngamma: 2\n")
    settings = EasdLM(config=str(file), tau_h=0.4, device="cpu").config.settings
    assert (settings.rule.tau_h, settings.rule.tau_o, settings.gamma) == (0.4, 0.6, 2)


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", OWN_TASKS)
    rows = [{"prompt": p.prompt, "answer": p.answer} for p in PROBLEMS[:12]]
    (tmp_path / "lab.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {name: GENERATED_TASK[name] for name in ("output_type", "doc_to_text", "doc_to_target")}
    task |= {
        "task": "lab-file",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "lab.jsonl")}},
        "test_split": "test",
        "generation_kwargs": SAMPLED,
        "metric_list": [{"metric": "exact_match"}],
        "filter_list": [
            {
                "name": "last",
                "filter": [{"function": "regex", "regex_pattern": r"(\d+)\s*$"},
                           {"function": "take_first"}],
            }
        ],
    }  # fmt: skip
    file = tmp_path / "lab.yaml"
    file.write_text(yaml.safe_dump(task))
    return file


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["easd-lm-eval", *map(str, arguments)])
    lm_eval_cli.main()


def test_console_script(task_file, tmp_path, monkeypatch, capsys, pair):
    arguments = "pair=lab-a,rule=easd,tau_h=0.35,seed=3"
    run_script(monkeypatch, "--model", "easd", "--model_args", arguments, "--tasks", task_file,
               "--batch_size", "8", "--output_path", tmp_path / "out")  # fmt: skip
    assert "exact_match" in capsys.readouterr().out
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text())
    alone = generations(pair, [p.prompt for p in PROBLEMS[:12]])
    right = [lab.grade(p, g.text) for p, g in zip(PROBLEMS, alone, strict=False)]
    assert results["results"]["lab-file"]["exact_match,last"] == pytest.approx(sum(right) / 12)
    assert results["config"]["easd"]["batch_size"] == 8
    # The harness says "cuda:0" unless told otherwise, also where there is none.
    assert results["config"]["easd"]["device"] == ("cuda:0" if torch.cuda.is_available() else None)


def test_console_script_tells_a_mistake_in_one_line(task_file, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_script(monkeypatch, "run", "--model", "easd", "--model_args", "pair=lab-a,tauh=1",
                   "--tasks", task_file)  # fmt: skip
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 'tauh' is not a setting")


def test_console_script_without_the_harness(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.__main__", raising=False)
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "--help")
    assert "pip install 'easd[lm-eval]'" in capsys.readouterr().err
