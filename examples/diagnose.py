"""Does a gate help on this pair? Both models read solved problems once; nothing is decoded."""

from easd import generate, load_pair, make_rule
from easd.diagnose.diagnosis import diagnose
from easd.diagnose.reference_pass import read_positions
from easd.pairs.lab import problems

pair = load_pair("lab-a")
encode, end = pair.tokenizer.encode, pair.tokenizer.eos_token_id
solved = [
    (encode(problem.prompt), [*encode(problem.solution), end], problem.id)
    for problem in problems("lab-a", 1500, seed=1, split="calibration")
]
# One solution is right here, so a rule's law over it is the rule's accuracy.
found = diagnose(read_positions(pair, solved), tau_h=0.35, rates=(), unique_solution=True)
print(found.verdict.sentence, found.verdict.advice, sep="\n")

(at,) = found.thresholds
pool = at.pool
print(f"\nthe gate is open at {at.fired.value:.2%} of positions")
print(f"the right token there follows p^{pool.a:.2f} q^{pool.b:.2f}: the draft is a {pool.meaning}")

rule = make_rule("pool", tau_h=at.tau_h, a=pool.a, b=pool.b)
(text,) = generate(
    pair.target, pair.draft, "28 - 28 + 6 * 25 * 2 ?", tokenizer=pair.tokenizer, rule=rule
)
print(f"\ndecoded with it: {text.text}")
