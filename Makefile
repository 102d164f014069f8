# Two commands do everything on a fresh machine: `make image` and `make test`. See README.md.

PROFILE ?= jetson
MODEL ?= demo
OUTPUT ?= build
PYTHON ?= python3
EDGEBUILD = .venv/bin/edgebuild
# Files stay whole, so that what their tests share is set up once; a third process works while two wait.
PYTEST = .venv/bin/python -m pytest -n 3 --dist loadfile
IMAGE_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev image test test-full check lint types coverage bench clean

help: ## Show what there is.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: .venv/.ready ## Make the virtual environment in .venv.

.venv/.ready: pyproject.toml builder/setup-venv.sh
	@echo "setting up .venv (once)"
	@PYTHON="$(PYTHON)" sh builder/setup-venv.sh .venv
	@touch $@

setup-dev: .venv/.ready-dev ## The same, with what the tests need.

.venv/.ready-dev: pyproject.toml builder/setup-venv.sh
	@echo "setting up .venv for tests (once)"
	@PYTHON="$(PYTHON)" sh builder/setup-venv.sh .venv dev
	@touch .venv/.ready $@

image: setup ## Build, check and sign an image: make image PROFILE=pi4 MODEL=my.gguf
	@test -e "$(OUTPUT)/keys/cosign.key" || { \
	  mkdir -p "$(OUTPUT)" && .venv/bin/python -c 'import secrets; print(secrets.token_hex(16))' > "$(OUTPUT)/.password" && \
	  $(EDGEBUILD) keys generate --quiet --output "$(OUTPUT)/keys" --password-file "$(OUTPUT)/.password" && \
	  mv "$(OUTPUT)/.password" "$(OUTPUT)/keys/password" && chmod 600 "$(OUTPUT)/keys/password"; }
	@$(EDGEBUILD) image --profile "$(PROFILE)" --model "$(MODEL)" --output "$(OUTPUT)" \
	  --sign "$(OUTPUT)/keys/cosign.key" --password-file "$(OUTPUT)/keys/password" $(IMAGE_FLAGS)

check: setup-dev lint types ## Lint, types and quick tests, in about a minute.
	@$(PYTEST) -q -m "not slow" tests/unit tests/property tests/golden

lint: setup-dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

types: setup-dev
	@.venv/bin/mypy

test: setup-dev ## All tests but the slow ones, with real peers.
	@$(PYTEST) --require-tools -m "not slow"

test-full: test ## The tests, then the slow ones: empty stores, many kills, soak.
	@.venv/bin/python -m pytest --require-tools -n 2 -m slow

coverage: setup-dev ## Branch coverage of the tests that are not slow; fails below 90 %.
	@.venv/bin/coverage erase
	@.venv/bin/coverage run -m pytest -q --require-tools -n 3 --dist loadfile -m "not slow"
	@.venv/bin/coverage combine -q
	@.venv/bin/coverage report --skip-covered

bench: setup-dev ## Every figure of the README, beside the peers' from the same run.
	@.venv/bin/python -m benchmarks

clean: ## Remove what was built here; the store stays.
	rm -rf .venv build dist
