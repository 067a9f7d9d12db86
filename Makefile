# make demo   recognise the sample formulas on the embedded Triton server (no torch, no GPU)
# make test   run the whole test suite
# make lint   ruff and mypy
# make gpu    build TensorRT engines, verify and time them; one report (needs a GPU or docker)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test rtx lint gpu format clean

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
	$(PIP) --editable '.[serve,client,pad,pdf,bench,train,export,openvino,plots,report,dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist *.egg-info
