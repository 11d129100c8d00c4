.PHONY: help install demo test test-newest lint web
PYTHON ?= python3
BIN := .venv/bin

help: ## Show this help
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/'

install: .venv/installed ## Create .venv with the requirements and this checkout as an editable package

.venv/installed: pyproject.toml requirements.txt requirements-test.txt requirements-web.txt requirements-cluster.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt --editable '.[test]'
	touch $@

web: install ## Add what the pages of annotate.py and serve.py need
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-web.txt

demo: install ## Run the recipe `support` through all its stages and print the result table
	$(BIN)/python src/pipeline.py recipe=support

test: install lint ## Lint, check types and run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

NEWEST := .venv-newest/bin/python
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

test-newest: .venv-newest/installed ## What leans on TRL or transformers, with the newest of both: .venv-newest lies over .venv
	$(NEWEST) -m pytest -q -n 2 --dist loadfile tests/methods/test_head.py tests/methods/test_dpo.py \
		tests/methods/test_sft.py tests/methods/test_kto.py tests/generation/test_sampling.py tests/ppo/test_base.py

.venv-newest/installed: .venv/installed requirements-newest.txt
	$(BIN)/python -m venv .venv-newest
	$(BIN)/python $(PACKAGES) > "$$($(NEWEST) $(PACKAGES))/below.pth"
	$(NEWEST) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-newest.txt
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
