"""The tokens of a trace as a data frame. Nothing here imports torch or loads a model."""

import sys

from easd.runs import open_run, summary

trace = open_run(sys.argv[1])
tokens = trace.tokens.to_pandas()
texts = trace.vocabulary.to_pandas().set_index("token")["text"]

print("outcomes of drafted tokens, and the models' entropies there")
entropies = tokens.groupby("outcome", observed=True)[["draft_entropy", "target_entropy"]]
print(entropies.mean().join(entropies.size().rename("count")).round(3))

examined = tokens[tokens["outcome"].isin(["accepted", "rejected", "penalised"])]
print(f"\nthe gate was open at {examined['gate'].mean():.2%} of examined positions")

print("\npenalties, and the tokens that replaced them")
place = ["sample", "step", "position"]
refused = tokens[tokens["outcome"] == "penalised"].set_index(place)
instead = tokens[tokens["outcome"] == "replacement"].set_index(place)["text"].rename("instead")
columns = ["text", "target_prob", "draft_prob", "target_entropy", "overlap"]
print(refused[columns].join(instead).reset_index(drop=True).round(3))

print("\nthe target's five best tokens at the first of them")
best = refused.iloc[0]
for token, probability in zip(best["target_top_tokens"], best["target_top_probs"], strict=True):
    print(f"  {texts[token]:>4} {probability:.3f}")

print(f"\ntokens per target forward: {summary(trace)['block_efficiency']:.2f}")
