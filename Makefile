# Everything a person does with this repository. Each target prepares .venv the first time.
#   make test ARGS="-k spool"     arguments for the program behind a target
#   make PYTHON=python3.12 test   another interpreter than the first Python >= 3.10 found

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench campaign-models build schemas clean
MAKEFLAGS += --no-print-directory

ARGS ?=
PYTHON ?=
export PYTHON

BIN := .venv/bin
# `@$(call step,what,command)` says what runs, then runs it.
step = printf '==> %s\n' "$(1)" && $(2)
prepare = sh requirements/prepare.sh

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:  ## See it work: broker, sensors, models, failures, in under three minutes
	@$(prepare) demo
	@$(BIN)/edgeward demo $(ARGS)

test:  ## Run the tests, with a real broker where one can be had
	@$(prepare) dev
	@sh requirements/test.sh $(ARGS)

check:  ## Check style, types, the floors of the house, shell scripts and the unit file
	@$(prepare) dev
	@$(call step,ruff check,$(BIN)/ruff check --quiet .)
	@$(call step,ruff format --check,$(BIN)/ruff format --quiet --check .)
	@$(call step,mypy --strict,$(BIN)/mypy)
	@$(call step,lint-imports,$(BIN)/lint-imports --no-logo)
	@$(call step,shellcheck,sh requirements/shellcheck.sh)
	@$(call step,systemd-analyze verify,sh systemd/verify.sh)

fix:  ## Format, and mend what can be mended by machine
	@$(prepare) dev
	@$(call step,ruff check --fix,$(BIN)/ruff check --quiet --fix .)
	@$(call step,ruff format,$(BIN)/ruff format .)

bench:  ## Measure the agent beside the script one would write by hand
	@$(prepare) bench
	@$(BIN)/python -m bench $(ARGS)

campaign-models:  ## Bring thousands of damaged model files to a device (docs/robustness.md)
	@$(prepare) dev
	@$(BIN)/python -m tests.campaign $(ARGS)

build:  ## Build wheel, source distribution and the bundle for devices into dist/
	@$(prepare) dev
	@rm -rf dist
	@$(call step,building into dist/,$(BIN)/python -m build --outdir dist . >.venv/build.log 2>&1) \
		|| { cat .venv/build.log >&2; exit 1; }
	@$(call step,bundling for devices,sh systemd/bundle.sh)

schemas:  ## Write docs/schemas and the generated parts of docs/*.md anew from the code
	@$(prepare) dev
	@$(call step,writing docs/schemas,$(BIN)/python -m agent.documents.schemas docs/schemas)
	@$(call step,writing docs/documents.md,$(BIN)/python -m agent.documents.reference docs/documents.md)
	@$(call step,writing docs/links.md,$(BIN)/python -m agent.links.reference docs/links.md)
	@$(call step,writing docs/packs.md,$(BIN)/python -m agent.author.reference docs/packs.md)
	@$(call step,writing docs/profiles.md,$(BIN)/python -m agent.device.profile_reference docs/profiles.md)

clean:  ## Remove what the other targets made
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
