"""Rules under shared noise: two texts are the same until their laws draw different tokens."""

from easd import generate, load_pair, make_rule
from easd.pairs.lab import grade, problems

RULES = {
    "target": {},
    "speculative": {},
    "easd": {"tau_h": 0.35, "draft_at_bonus": True},
    "random-refusal": {"rate": 0.02},
    "pool": {"tau_h": 0.35, "draft_at_bonus": True, "a": 1.0, "b": 1.0},
}

pair = load_pair("lab-a")
asked = problems("lab-a", 200, seed=20)
written = {}
for name, fields in RULES.items():
    texts = generate(
        pair.target,
        pair.draft,
        [problem.prompt for problem in asked],
        tokenizer=pair.tokenizer,
        rule=make_rule(name, **fields),
        coupling="shared",
        seed=3,
        batch_size=32,
    )
    written[name] = [text.text or "" for text in texts]

print(f"{'rule':16} {'right':>7} {'same text as target':>20}")
for name, texts in written.items():
    right = sum(grade(problem, text) for problem, text in zip(asked, texts, strict=True))
    same = sum(ours == theirs for ours, theirs in zip(texts, written["target"], strict=True))
    print(f"{name:16} {right / len(asked):7.1%} {same / len(asked):20.1%}")

print("\nthe first text that EASD changed")
for problem, theirs, ours in zip(asked, written["target"], written["easd"], strict=True):
    if ours != theirs:
        print(f"{problem.prompt}\n  right  {problem.solution}\n  target {theirs}\n  easd   {ours}")
        break
