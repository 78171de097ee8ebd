# `make help` names the targets; `make` alone is `make setup`. Each works in a fresh clone: it makes .venv first.
#   make setup PYTHON=python3.12            another Python, 3.11 or newer
#   make setup PIP_EXTRA_INDEX_URL=...      another place for wheels, for example CPU-only or CUDA builds of torch (any PIP_* variable is heard)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
MAKEFLAGS += --no-print-directory

.PHONY: setup help demo check test test-serve test-web test-contracts screenshots test-long bench bench-serve docs study clean

setup: $(STAMP) ## .venv with everything for work on lisaseg
	@:

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lisaseg needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (1.5 GB, a minute or more)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[train,serve,dev]"
	@touch $@

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: setup ## ask lisa-tiny about a photo; the pictures land in out/demo
	@$(BIN)/lisaseg ask examples/coffee.jpg "the thing one drinks from" -o out/demo
	@echo "pictures: out/demo"

# The budgets test also holds that `lisaseg --help` does not import torch.
check: setup ## ruff, format, mypy, import order, budgets, command line
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; echo "Run $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@report=$$($(BIN)/lint-imports --no-logo) || { echo "$$report"; exit 1; }
	@$(BIN)/python -m pytest -q --no-header tests/test_budgets.py
	@$(BIN)/lisaseg --help > /dev/null
	@echo "check: ruff, format, mypy, import order, budgets, command line: fine"

# The tests open no connection, so what they need is fetched before.
test: setup ## every test that needs no server process, no browser, no GPU and no network
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@$(BIN)/python -m pytest -q --no-header

# The service under load, faults and bad input: real servers in processes of their own.
test-serve: setup ## the service under load, faults and bad input
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@$(BIN)/python -m pytest -q --no-header -m "serve and not long" tests/server

# The page in a real browser (Debian: apt-get install chromium nodejs), with axe-core for accessibility.
test-web: setup ## the page in a real browser
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@$(BIN)/python -m pytest -q --no-header -m web tests/web

# The tools that read our files or ask our service, themselves: gradio, Label Studio's SDK, supervision, labelme, fiftyone (1 GB). An environment of their own on top of .venv,
# because gradio holds Pillow below 13 and fiftyone an old sse-starlette.
CONTRACTS := .venv-contracts
test-contracts: setup ## the tools that read our files or ask our service, themselves
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@test -x $(CONTRACTS)/bin/python || $(BIN)/python -m venv $(CONTRACTS)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(CONTRACTS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	@grep -v '^pillow==' constraints.txt > $(CONTRACTS)/constraints.txt
	@echo "installing into $(CONTRACTS) (1 GB, minutes); that mcp wants a newer sse-starlette than fiftyone is known: nothing here uses mcp"
	@$(CONTRACTS)/bin/python -m pip install -qq --disable-pip-version-check -c $(CONTRACTS)/constraints.txt -e ".[contracts]"
	@QT_QPA_PLATFORM=offscreen $(CONTRACTS)/bin/python -m pytest -q --no-header -rs -m "not long and not web" tests/formats/test_vendors.py tests/server/test_gradio.py tests/server/test_label_studio.py tests/server/test_label_studio_files.py

# The pictures of the page in docs/images, by the same test that looks at them.
screenshots: setup ## the pictures of the page in docs/images
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[browser]"
	@LISASEG_SCREENSHOTS=1 $(BIN)/python -m pytest -q --no-header -m web tests/web/test_access.py tests/web/test_annotate_access.py -k screenshots

# All that is marked long, and the tests of the service at their long size (tests/server/sizes.py): hours. LISASEG_SOAK_MINUTES=480 for a night of load.
test-long: setup ## all that is marked long, and the service at its long size: hours
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@LISASEG_TEST_SIZE=long $(BIN)/python -m pytest -q --no-header -m "(long or serve) and not web"

bench: setup ## speed of the parts on this machine
	@$(BIN)/lisaseg bench

# Figures of the service: benchmarks/results/serve.json and docs/reliability.md.
bench-serve: setup ## figures of the service: docs/reliability.md
	@$(BIN)/lisaseg models pull lisa-tiny > /dev/null
	@$(BIN)/python benchmarks/serve.py

# The reference of the command line is written by the command line.
docs: setup ## docs/cli.md, from the command line itself
	@$(BIN)/typer lisaseg.apps.cli utils docs --name lisaseg --output docs/cli.md

# Tables and figures of docs/study.md from benchmarks/results/study; benchmarks/study.py also trains and asks the models.
study: setup ## tables and figures of docs/study.md
	@$(BIN)/python benchmarks/study.py write

clean: ## remove what the tools leave behind; .venv stays
	@rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
