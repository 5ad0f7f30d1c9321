"""inspect-ai's own evaluator over the provider `easd`, on the pair `lab-a`."""

import gc
import hashlib

import anyio
import pytest

import easd
from easd.engine.engine import Engine
from easd.engine.generate import decode, make_requests
from easd.errors import ConfigError, EasdError, InputError, NumericsError
from easd.pairs import lab

pytest.importorskip("inspect_ai")

import inspect_ai
from inspect_ai import Epochs, Task
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import match
from inspect_ai.solver import generate

import easd.integrations.inspect_ai as provider

# inspect-ai's own: a wait written for an older tenacity, and streams that it leaves open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def streams_left_open():
    """Collects them here, where their warning is ignored, and not in the next module."""
    yield
    gc.collect()


PROBLEMS = lab.problems("lab-a", 16, seed=0)
ARGUMENTS = {"rule": "easd", "tau_h": 0.35, "device": "cpu", "max_new_tokens": 24}
RULE = easd.EASD(tau_h=0.35)


@pytest.fixture(scope="module")
def pair():
    return easd.load_pair("lab-a", device="cpu")


@pytest.fixture
def steps(monkeypatch):
    """Grows by one with every step of any engine."""
    taken = []
    original = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: taken.append(1) or original(self))
    return taken


def model(name="easd/lab-a", config=None, **arguments):
    return get_model(
        name, config=config or GenerateConfig(), memoize=False, **{**ARGUMENTS, **arguments}
    )


def run(tmp_path, epochs=1, **options):
    samples = [Sample(input=p.prompt, target=p.answer, id=p.id) for p in PROBLEMS]
    task = Task(dataset=samples, solver=generate(), scorer=match(), epochs=epochs)
    chosen = options.pop("model", None) or model()
    (log,) = inspect_ai.eval(
        task, model=chosen, display="none", log_dir=str(tmp_path), log_level="error", **options
    )
    return log


def outputs(log):
    """Completion by sample and epoch."""
    return {(s.id, s.epoch): s.output.completion for s in log.samples}


def ask(model, messages, **config):
    return anyio.run(lambda: model.generate(messages, config=GenerateConfig(**config)))


def test_greedy_texts_are_easd_generates(tmp_path, pair):
    log = run(tmp_path, temperature=0)
    assert log.status == "success"
    alone = easd.generate(
        pair.target, pair.draft, [p.prompt for p in PROBLEMS],
        tokenizer=pair.tokenizer, rule=RULE, temperature=0, max_new_tokens=24,
    )  # fmt: skip
    assert outputs(log) == {(p.id, 1): g.text for p, g in zip(PROBLEMS, alone, strict=True)}
    right = [lab.grade(p, g.text) for p, g in zip(PROBLEMS, alone, strict=True)]
    (score,) = log.results.scores
    assert score.metrics["accuracy"].value == pytest.approx(sum(right) / len(right))
    for sample, generation in zip(sorted_by_problem(log), alone, strict=True):
        usage = sample.output.usage
        assert usage.input_tokens == len(generation.prompt_ids)
        assert usage.output_tokens == len(generation.token_ids)
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        for name in ("proposed", "examined", "accepted", "penalised", "blocks"):
            assert sample.output.metadata[name] == getattr(generation.counts, name)
    assert sum(sample.output.metadata["penalised"] for sample in log.samples) > 0


def sorted_by_problem(log):
    places = {p.id: place for place, p in enumerate(PROBLEMS)}
    return sorted(log.samples, key=lambda sample: places[sample.id])


def test_sampled_texts_are_the_engines_by_seed_and_sample(tmp_path, pair):
    log = run(tmp_path, seed=5, temperature=0.8, top_k=20, top_p=0.95)
    settings = easd.Settings(
        rule=RULE, seed=5, temperature=0.8, top_k=20, top_p=0.95, max_new_tokens=24
    )
    wanted = {}
    for problem in PROBLEMS:
        ids = pair.tokenizer(problem.prompt)["input_ids"]
        key = hashlib.blake2b(f"{problem.id}/1/{ids}".encode(), digest_size=8).digest()
        numbers = [int.from_bytes(key, "little") << 32]
        *_, last = decode(pair, make_requests(pair, [ids], settings, numbers=numbers), settings)
        wanted[problem.id, 1] = pair.tokenizer.decode(
            last.rows[0].new_ids, skip_special_tokens=True
        )
    assert outputs(log) == wanted
    assert outputs(run(tmp_path, seed=6, temperature=0.8, top_k=20, top_p=0.95)) != wanted


def test_concurrent_samples_share_a_batch_and_keep_their_texts(tmp_path, steps):
    alone = outputs(run(tmp_path, max_connections=1))
    one_by_one = len(steps)
    steps.clear()
    together = outputs(run(tmp_path, model=model(batch_size=16)))
    assert together == alone
    assert len(steps) * 4 < one_by_one


def test_epochs_differ_and_another_run_repeats_them(tmp_path):
    chosen = model()
    first = outputs(run(tmp_path, model=chosen, epochs=Epochs(3, "mean")))
    assert outputs(run(tmp_path, model=chosen, epochs=Epochs(3, "mean"))) == first
    assert any(len({first[p.id, epoch] for epoch in (1, 2, 3)}) > 1 for p in PROBLEMS)


def test_requests_of_two_temperatures_at_once(pair):
    chosen = model()
    prompts = [p.prompt for p in PROBLEMS[:6]]
    found = [None] * 6

    async def ask_one(place):
        config = GenerateConfig(temperature=[0.0, 1.0][place % 2])
        output = await chosen.generate(prompts[place], config=config)
        found[place] = output.completion

    async def ask_all():
        async with anyio.create_task_group() as group:
            for place in range(6):
                group.start_soon(ask_one, place)

    anyio.run(ask_all)
    greedy = easd.generate(
        pair.target, pair.draft, prompts[::2], tokenizer=pair.tokenizer, rule=RULE,
        temperature=0, max_new_tokens=24,
    )  # fmt: skip
    assert found[::2] == [g.text for g in greedy]
    assert all(found[1::2])


def test_a_cancelled_request_leaves_the_others_alone():
    chosen = model(batch_size=2)
    prompts = [p.prompt for p in PROBLEMS[:4]]
    alone = [ask(model(), prompt, temperature=0).completion for prompt in prompts]
    found = {}

    async def ask_one(place):
        output = await chosen.generate(prompts[place], config=GenerateConfig(temperature=0))
        found[place] = output.completion

    async def ask_all():
        async with anyio.create_task_group() as group:
            for place in (1, 2, 3):
                group.start_soon(ask_one, place)
            with anyio.move_on_after(0):
                await ask_one(0)

    anyio.run(ask_all)
    assert found == {place: alone[place] for place in (1, 2, 3)}
    assert ask(chosen, prompts[0], temperature=0).completion == alone[0]


def test_an_engine_error_reaches_everyone_and_the_next_request_starts_afresh(monkeypatch):
    chosen = model()
    wanted = ask(chosen, PROBLEMS[0].prompt, temperature=0).completion
    weight = chosen.api.pair.target.lm_head.weight
    sound = weight.data.clone()
    weight.data.fill_(float("nan"))
    raised = []

    async def ask_one(problem):
        try:
            await chosen.generate(problem.prompt, config=GenerateConfig(temperature=0))
        except NumericsError as error:
            raised.append(error)

    async def ask_all():
        async with anyio.create_task_group() as group:
            for problem in PROBLEMS[:3]:
                group.start_soon(ask_one, problem)

    anyio.run(ask_all)
    assert len(raised) == 3
    weight.data.copy_(sound)
    assert ask(chosen, PROBLEMS[0].prompt, temperature=0).completion == wanted


def test_stop_sequences_limits_and_choices(pair):
    chosen = model()
    prompt = PROBLEMS[0].prompt
    whole = ask(chosen, prompt, temperature=0)
    assert whole.stop_reason == "stop"
    word = whole.completion.split()[2]
    stopped = ask(chosen, prompt, temperature=0, stop_seqs=[word])
    assert stopped.completion == whole.completion.split(word)[0]
    assert stopped.stop_reason == "stop"
    short = ask(chosen, prompt, temperature=0, max_tokens=2)
    assert short.completion == " ".join(whole.completion.split()[:2])
    assert short.stop_reason == "max_tokens"
    full = ask(chosen, " ".join(["7"] * 62), temperature=0, max_tokens=24)
    assert full.usage.output_tokens == 2  # what the context window of 64 leaves
    assert full.stop_reason == "model_length"
    several = ask(chosen, prompt, num_choices=5, seed=1)
    texts = [choice.message.text for choice in several.choices]
    assert len(texts) == 5
    assert several.usage.output_tokens == sum(
        len(pair.tokenizer(text)["input_ids"]) + 1 for text in texts
    )


def test_chat_messages_go_through_the_template(monkeypatch, pair):
    chosen = model()
    turns = [
        ChatMessageSystem(content="1"),
        ChatMessageUser(content="2"),
        ChatMessageAssistant(content="3"),
        ChatMessageUser(content="4 ?"),
    ]
    with pytest.raises(ConfigError, match="4 messages and no chat template"):
        ask(chosen, turns)
    template = "{% for m in messages %}{{ m['role'] | length }} {{ m['content'] }} {% endfor %}="
    monkeypatch.setattr(chosen.api.pair.tokenizer, "chat_template", template)
    found = ask(chosen, turns, temperature=0)
    (wanted,) = easd.generate(
        pair.target, pair.draft, "6 1 4 2 9 3 4 4 ? =", tokenizer=pair.tokenizer, rule=RULE,
        temperature=0, max_new_tokens=24,
    )  # fmt: skip
    assert found.completion == wanted.text
    assert found.usage.input_tokens == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"logprobs": True}, "logprobs = True cannot be honoured"),
        ({"frequency_penalty": 0.5}, "frequency_penalty = 0.5 cannot be honoured"),
        ({"top_p": 0.0}, "top_p = 0.0 is not a share"),
        ({"stop_seqs": [""]}, "a stop string is empty"),
    ],
)
def test_requests_that_cannot_be_honoured(config, message):
    with pytest.raises(ConfigError, match=message):
        ask(model(), "4 + 5 ?", **config)


def test_tools_images_and_overlong_prompts_are_refused():
    from inspect_ai.tool import ToolInfo

    tool = ToolInfo(name="add", description="Adds.")
    with pytest.raises(ConfigError, match="tools cannot be honoured"):
        anyio.run(lambda: model().generate("4 + 5 ?", tools=[tool]))
    image = ContentImage(image="data:image/png;base64,AAAA")
    with pytest.raises(ConfigError, match="a message holds image"):
        ask(model(), [ChatMessageUser(content=[image])])
    with pytest.raises(InputError, match="64 tokens and the context window 64"):
        ask(model(), " ".join(["7"] * 64))
    with pytest.raises(InputError, match="the prompt is empty"):
        ask(model(), " ")


def test_a_refused_request_fails_the_evaluation_with_its_reason(tmp_path):
    log = run(tmp_path, logprobs=True)
    assert log.status == "error"
    assert "logprobs = True cannot be honoured" in log.error.message


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("easd/lab-a", {"tauh": 1}, "'tauh' is not a setting"),
        ("easd/lab-a", {"rule": "target"}, "has no field 'tau_h'"),
        ("easd/lab-a", {"pair": "lab-a"}, "'pair' is named by the model"),
        ("easd/lab-a", {"base_url": "http://localhost"}, "the models run here"),
        ("easd/./nowhere", {}, "'./nowhere' is not a folder"),
    ],
)
def test_bad_model_arguments_are_errors(name, arguments, message):
    with pytest.raises(EasdError, match=message):
        model(name, **arguments)


def test_models_of_ones_own_by_folder(pair):
    folders = {role: str(lab.folder("lab-a", role)) for role in ("target", "draft")}
    own = model(f"easd/{folders['target']}", draft=folders["draft"])
    prompt = PROBLEMS[0].prompt
    assert (
        ask(own, prompt, temperature=0).completion == ask(model(), prompt, temperature=0).completion
    )


def test_the_entry_point_loads_the_provider_lazily():
    import subprocess
    import sys
    import tomllib
    from pathlib import Path

    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    assert project["entry-points"]["inspect_ai"] == {"easd": provider.__name__}
    code = f"import sys, {provider.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
