# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer, make and python3-venv.
# The first run needs the network for installing; afterwards everything works offline.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
# The oldest transformers that works, with the newest hub client it takes.
OLDEST := transformers==5.16.1 huggingface_hub==1.33.0
OLDEST_TESTS := keep_all oracle batch lengths generation refusals restore coverage

BIN := $(VENV)/bin
READY := $(VENV)/.foveate-ready
OLD := $(abspath $(VENV))/oldest
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The families that a quick run tests: a plain one, newlines and film, M-RoPE, and masks and windows of their own.
QUICK := llava llava_onevision qwen2_vl gemma3
QUICK_TESTS := tests/core tests/methods tests/golden $(patsubst %,tests/invariants/test_%.py,oracle keep_all)

TIERS := pure signals engine methods coverage rest

.PHONY: help setup demo test quick $(TIERS:%=tier-%) test-all test-oldest check docs clean mutants witness

help:
	@echo "make setup   create $(VENV) and install foveate with all it needs"
	@echo "make demo    ask the embedded model about a picture, with and without dropping; writes out/demo.png"
	@echo "make test    run all tests, tier by tier, and print each one's time; make tier-signals runs one of: $(TIERS)"
	@echo "make test-all  run every method on every family and kernel; run it again to go on (hours)"
	@echo "make quick   run a choice of them that fits after every commit: at most two minutes on two cores"
	@echo "make test-oldest  run a choice of them with the oldest transformers that works"
	@echo "make check   formatting, linting, types, import rules"
	@echo "make docs    build the documentation into site/"
	@echo "make witness run many methods on all families here and at the commit 32cba4e, and compare bit for bit (slow)"
	@echo "make mutants break the code on purpose, one place at a time, and see a test fail each time (slow)"

setup: $(READY)

# Video processors and lmms-eval ask for torchvision. Where the one that pip finds was made for another torch, such as a
# CUDA one beside a CPU one, it stops transformers from being imported, and timm stops accelerate without it: then it is
# put apart, where only the tests of video processors look for it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foveate needs Python 3.11 or newer; choose one with: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 cannot make environments here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install $(TORCH)
	$(PIP) install -e '.[dev,docs,eval,video]' -c constraints.txt
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { $(PIP) uninstall --quiet --yes torchvision timm && \
	  $(PIP) install --quiet --no-deps --upgrade --target $(VENV)/apart torchvision -c constraints.txt; }
	@touch $@

# Passive waiting: on a busy machine, threads that spin for work make everything ten times slower.
demo: setup
	@mkdir -p out
	HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate generate --full --figure out/demo.png --force

# One tier after the other, each with its time; all of them run also where one has failed.
test: setup
	@failed=; for tier in $(TIERS); do $(MAKE) --no-print-directory tier-$$tier || failed="$$failed $$tier"; done; \
	  test -z "$$failed" || { echo "==> failed:$$failed" >&2; exit 1; }

# One torch thread a process: with several processes, more only get in each other's way.
$(TIERS:%=tier-%): tier-%: setup
	@start=$$(date +%s); HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) -m $*; code=$$?; \
	  echo "==> tier $* took $$(($$(date +%s) - start)) s"; exit $$code

# What has passed is in the log of this commit, and is left out the next time.
test-all: setup
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 FOVEATE_TESTS=all $(BIN)/python -m pytest -q -n $(JOBS) \
	  --done out/test-all-$$(git rev-parse --short HEAD).log

quick: setup
	@start=$$(date +%s); HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) $(QUICK_TESTS) \
	  -k "not invariants $(foreach one,$(QUICK),or [$(one)- or -$(one)- or -$(one)])" && echo "make quick took $$(($$(date +%s) - start)) s"

# A folder with the old packages alone: put in front, it takes the place of the new ones.
$(OLD): $(READY) Makefile
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ $(OLDEST)

# Every method on the families that it has, with the kernel that most people use; without what fails there, such as beams
# that share reduced pictures. Gemmas are refused there.
OLDEST_NOT := eager or gemma or beams_share or (internvl and beam_search) or their_frames_begin or after_a_reset
test-oldest: $(OLD)
	PYTHONPATH=$(OLD) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -k "not ($(OLDEST_NOT))" \
	  tests/test_transformers.py tests/engine tests/families $(OLDEST_TESTS:%=tests/invariants/test_%.py)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Breaks the code in some seventy places, one at a time; each time a test must fail. An hour.
mutants: setup
	$(BIN)/python -m tests.mutants

# What was found is in benchmarks/witness/log.txt, what each tree did in out/witness.
witness: setup
	$(BIN)/python -m tests.witness --jobs $(JOBS)

clean:
	rm -rf site out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
