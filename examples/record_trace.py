"""Decode prompts with the engine and record every token in a new folder."""

import sys

from easd import EASD, Settings, generate, load_pair
from easd.config import RunConfig
from easd.engine.trace import TraceWriter
from easd.pairs.lab import problems

folder = sys.argv[1]
pair = load_pair("lab-a")
settings = Settings(rule=EASD(tau_h=0.35), temperature=1.0, seed=1, batch_size=16)
prompts = [problem.prompt for problem in problems("lab-a", 100, seed=20)]

with TraceWriter(folder, pair, RunConfig(pair="lab-a", settings=settings)) as trace:
    texts = generate(
        pair.target,
        pair.draft,
        prompts,
        tokenizer=pair.tokenizer,
        settings=settings,
        on_step=trace.add,
    )

for prompt, text in list(zip(prompts, texts, strict=True))[:5]:
    print(prompt, text.text)
print(f"{sum(text.counts.penalised for text in texts)} tokens penalised; see easd inspect {folder}")
