# make demo   recognise the sample formulas on the embedded Triton server (no torch, no GPU)
# make test   run the whole test suite
# make lint   ruff and mypy
# make audit  look the locked dependencies up in a vulnerability data base (needs the network)
# make lock   lock them anew; make tools fetches promtool and nginx for the tests
# make bench-quick  ratios of this machine beside the committed ones, in three minutes
# make gpu    build TensorRT engines, verify and time them; one report (needs a GPU or docker)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test rtx lint gpu audit lock tools bench-quick format clean

demo: $(VENV)/.demo
	@sh deploy/demo.sh $(BIN)

# One thread: the networks of the tests are tiny, and more threads only wait for each other.
# A process a core, each with whole files: what a file's tests share is made once.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# NVIDIA's parser and builder, for the tests that compile the graphs ("tensorrt_rtx AOT compile").
rtx: $(VENV)/.test
	$(PIP) --editable '.[rtx]'

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(VENV)/.demo
	@sh deploy/gpu.sh $(BIN) $(GPU_ARGS)

audit: $(VENV)/.test
	$(PIP) pip-audit
	sh deploy/audit.sh $(BIN)

lock: $(VENV)/.test
	$(PIP) uv
	sh deploy/lock.sh $(BIN)

tools: | $(BIN)/python
	sh deploy/tools.sh $(VENV)/tools

bench-quick: $(VENV)/.test
	$(BIN)/hmer-bench quick

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg | $(BIN)/python
	$(PIP) --editable '.[serve,client]'
	@touch $@

$(VENV)/.test: setup.cfg deploy/install_torch.sh | $(BIN)/python
	sh deploy/install_torch.sh $(BIN)
	$(PIP) --editable '.[serve,client,pad,pdf,bench,train,export,openvino,tracing,plots,report,dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info
