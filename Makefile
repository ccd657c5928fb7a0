# make book   builds the HTML book          make serve      opens it on http://localhost:8000
# make test   everything that CI checks     make notebooks  runs the notebooks whose outputs are stale
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip arguments for the torch wheel alone, e.g. TORCH_ARGS="--index-url https://.../cpu"; an installed torch stays.
TORCH_ARGS ?=
STAMP := $(VENV)/.installed
REPORTS := _build/reports
export PYTHONHASHSEED := 0
# No GPU: Triton's kernels run in its interpreter.
export TRITON_INTERPRET ?= $(if $(wildcard /dev/nvidia0),0,1)

.PHONY: book serve test lint unit nbval ledger browser notebooks bench clean

$(STAMP): requirements.txt requirements-dev.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check -q torch -c constraints.txt $(TORCH_ARGS)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e . -c constraints.txt
# Outsiders of the tests: one module of each suffices, and their dozens of requirements would not.
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps aimet-torch -c constraints.txt || echo "aimet-torch is not to be had; its tests are skipped"
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation hqq termcolor -c constraints.txt || echo "hqq is not to be had; its tests are skipped"
	@touch $@

book: $(STAMP) notebooks
	@$(MAKE) -s --no-print-directory _build/html/.built
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

# All pages, because a page quotes results of notebooks that Sphinx does not know it depends on.
_build/html/.built: $(STAMP) _config.yml _toc.yml $(shell find book notebooks qbook -type f -not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*')
	$(BIN)/jupyter-book build . -n -W --keep-going --all -q
	@touch $@

serve: book
	@echo "http://localhost:8000 (Ctrl-C ends)"
	@cd _build/html && ($(abspath $(BIN))/python -m webbrowser -t http://localhost:8000 >/dev/null 2>&1 &) ; $(abspath $(BIN))/python -m http.server 8000 --bind 127.0.0.1

# In this order: the cheap checks first, the ledger when its evidence has run, the browser when the book stands.
test: lint unit nbval ledger book browser
	@echo "All checks passed."

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

unit: $(STAMP)
	@mkdir -p $(REPORTS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/browser -n 2 --dist worksteal --junitxml=$(REPORTS)/unit.xml

nbval: $(STAMP)
	@mkdir -p $(REPORTS)
	$(BIN)/python -m qbook.book.nbval --junitxml=$(REPORTS)/nbval.xml

ledger: $(STAMP)
	$(BIN)/python -m qbook.book.ledger $(REPORTS)/unit.xml $(REPORTS)/nbval.xml

browser: $(STAMP)
	$(BIN)/python -m pytest tests/browser -n 2 --dist loadgroup

notebooks: $(STAMP)
	@$(BIN)/python -m qbook.book.notebooks

# Prints every ratio and draws the roofline into $(REPORTS); QBOOK_GGML=folder adds llama.cpp's library.
bench: $(STAMP)
	@mkdir -p $(REPORTS)
	$(BIN)/python -m benchmarks.affine
	$(BIN)/python -m benchmarks.cpu --roofline $(REPORTS)/roofline.svg

clean:
	rm -rf _build $(VENV)
