"""Texts decoded into a trace."""

from easd.engine.generate import generate
from easd.engine.trace import TraceWriter
from easd.runs import open_run


def traced(pair, config, folder, prompts, watch=lambda record: None):
    """Decodes prompts as a run's config says; `watch` sees every step. Texts and the trace."""
    with TraceWriter(folder, pair, config) as trace:

        def on_step(record):
            watch(record)
            trace.add(record)

        texts = generate(
            pair.target,
            pair.draft,
            prompts,
            tokenizer=pair.tokenizer,
            draft_tokenizer=pair.draft_tokenizer,
            settings=config.settings,
            on_step=on_step,
        )
    return texts, open_run(folder)
