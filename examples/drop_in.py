"""EASD inside transformers: the same `generate`, the same generation config."""

import torch

import easd

pair = easd.load_pair("lab-a")  # or two AutoModelForCausalLM and their AutoTokenizer
inputs = pair.tokenizer(["28 - 28 + 6 * 25 * 2 ?", "54 - 14 + 18 + 28 - 3 ?"], return_tensors="pt")

torch.manual_seed(0)
output = pair.target.generate(
    **inputs,
    custom_generate=easd.custom_generate,
    draft_model=pair.draft,
    rule=easd.EASD(tau_h=0.35),
    coupling="maximal",  # The same law as the paper's procedure, at fewer target forwards.
    do_sample=True,
    temperature=0.7,
    max_new_tokens=24,
)
for text in pair.tokenizer.batch_decode(output, skip_special_tokens=True):
    print(text)
