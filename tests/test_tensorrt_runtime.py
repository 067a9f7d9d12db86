"""Running an engine: order of calls, shapes, lifetime of memory, refusals (all on a stand-in)."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer import contract
from hmer.engine import sidecar_of
from hmer.errors import (
    BundleError,
    CorruptBundle,
    InferenceFailed,
    MissingBundle,
    MissingDependency,
    ServerSetupError,
)
from hmer.runtime import open_runner
from hmer.tensorrt_runtime import TensorRtRunner
from tests import fake_tensorrt
from tests.engine_fixtures import make_bundle, make_engines
from tests.fake_cuda import FakeCuda, answer

Array = NDArray[Any]


@pytest.fixture(params=(fake_tensorrt.VERSIONS[0], fake_tensorrt.VERSIONS[-1]))
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for one version, importable as ``tensorrt``."""
    module = fake_tensorrt.make(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture
def engines(trt: Any, tmp_path: Path) -> Path:
    return make_engines(
        tmp_path / "engines", make_bundle(tmp_path / "bundle"), f"tensorrt-{trt.__version__}"
    )


def feeds(rows: int = 1, height: int = 80, width: int = 96, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (rows, 1, height, width), np.uint8)
    return {"image": image, "size": np.full((rows, 2), (height, width), np.int32)}


def test_an_answer(engines: Path) -> None:
    cuda, given = FakeCuda(), feeds(2)
    with TensorRtRunner(engines / "encoder.plan", cuda=cuda) as runner:
        assert runner.inputs == ("image", "size")
        assert runner.outputs == ("values", "keys", "feature_size", "state")
        outputs = runner.infer(given)
    assert outputs["values"].shape == (2, 10, 12, 12)
    assert outputs["state"].dtype == np.float32
    for name, found in outputs.items():
        expected = answer(name, found.shape, found.dtype.name, given)
        np.testing.assert_array_equal(found, expected)


def test_order_of_calls(engines: Path) -> None:
    cuda = FakeCuda()
    with TensorRtRunner(engines / "encoder.plan", cuda=cuda) as runner:
        runner.infer(feeds())
        cuda.log.clear()
        runner.infer(feeds(seed=1))
        # The buffers are there: two inputs, the call, four outputs, one wait.
        assert cuda.log == [*["to_device"] * 2, "execute", *["to_host"] * 4, "synchronize"]


def test_buffers_grow_and_stay(engines: Path) -> None:
    cuda = FakeCuda()
    runner = TensorRtRunner(engines / "encoder.plan", cuda=cuda)
    runner.infer(feeds(1))
    small = sum(array.nbytes for array in cuda.held.values())
    runner.infer(feeds(4))
    large = sum(array.nbytes for array in cuda.held.values())
    assert large == 4 * small
    cuda.log.clear()
    runner.infer(feeds(2))
    assert "free" not in cuda.log
    runner.close()
    runner.close()
    assert not cuda.held
    assert cuda.closed
    with pytest.raises(InferenceFailed, match="closed"):
        runner.infer(feeds())


def test_outputs_belong_to_the_caller(engines: Path) -> None:
    with TensorRtRunner(engines / "encoder.plan", cuda=FakeCuda()) as runner:
        first = runner.infer(feeds(seed=1))
        kept = {name: array.copy() for name, array in first.items()}
        runner.infer(feeds(seed=2))
        gc.collect()
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])


def test_inputs_of_another_layout_or_dtype_are_converted(engines: Path) -> None:
    given = feeds(1)
    odd = {
        "image": np.asfortranarray(given["image"]),
        "size": given["size"].astype(np.int64),
    }
    with TensorRtRunner(engines / "encoder.plan", cuda=FakeCuda()) as runner:
        same = zip(runner.infer(given).values(), runner.infer(odd).values(), strict=True)
        for left, right in same:
            np.testing.assert_array_equal(left, right)


def test_the_narrowest_profile_that_fits(engines: Path) -> None:
    cuda = FakeCuda()
    with TensorRtRunner(engines / "encoder.plan", cuda=cuda) as runner:
        used = []
        for height in (80, 256, 256, 80):
            cuda.log.clear()
            runner.infer(feeds(height=height))
            used.append([line for line in cuda.log if line.startswith("profile")])
    # "line" (1) is tuned for small pictures; "full" (0) is active at the start.
    assert used == [["profile 1"], ["profile 0"], [], ["profile 1"]]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (feeds(rows=17), "batch 1 to 16.*batch 17"),
        (feeds(width=1600), "width 16 to 1536"),
        ({**feeds(2), "size": feeds(1)["size"]}, "size has the shape"),
        ({**feeds(), "image": np.zeros((80, 96), np.uint8)}, "image has 2 axes"),
        ({"image": feeds()["image"]}, "takes the inputs image, size"),
    ],
)
def test_shapes_that_do_not_fit(engines: Path, given: dict[str, Array], reason: str) -> None:
    with TensorRtRunner(engines / "encoder.plan", cuda=FakeCuda()) as runner:
        with pytest.raises(InferenceFailed, match=reason):
            runner.infer(given)
        runner.infer(feeds())  # and goes on


def test_memory_that_runs_out(engines: Path) -> None:
    cuda = FakeCuda(memory=100_000)
    with TensorRtRunner(engines / "encoder.plan", cuda=cuda) as runner:
        runner.infer(feeds())
        with pytest.raises(InferenceFailed, match="cudaErrorMemoryAllocation"):
            runner.infer(feeds(16, 512, 1536))
        runner.infer(feeds())
    assert not cuda.held


def test_threads_take_turns(engines: Path) -> None:
    found: dict[int, dict[str, Array]] = {}
    with TensorRtRunner(engines / "encoder.plan", cuda=FakeCuda()) as runner:

        def work(seed: int) -> None:
            for _ in range(5):
                found[seed] = runner.infer(feeds(seed=seed))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed, outputs in found.items():
        values = outputs["values"]
        expected = answer("values", values.shape, "float32", feeds(seed=seed))
        np.testing.assert_array_equal(values, expected)


def test_one_logger_for_the_process(trt: Any, engines: Path) -> None:
    for name in (contract.ENCODER, contract.DECODER_STEP):
        TensorRtRunner(engines / f"{name}.plan", cuda=FakeCuda()).close()
    loggers = {id(call[1]) for call in trt._calls if call[0] == "runtime"}
    assert len(loggers) == 1


def test_engines_that_cannot_be_loaded_here(engines: Path, trt: Any, tmp_path: Path) -> None:
    plan, cuda = engines / "encoder.plan", FakeCuda("9.0")
    with pytest.raises(BundleError, match=r"NVIDIA L4 .*8\.9.*has compute capability 9\.0"):
        TensorRtRunner(plan, cuda=cuda)
    assert cuda.closed
    trt.__version__ = "11.9.0"
    with pytest.raises(BundleError, match=r"this is 11\.9\.0.*pip install 'tensorrt=="):
        TensorRtRunner(plan, cuda=FakeCuda())
    bundle = make_bundle(tmp_path / "other")
    allowed = make_engines(tmp_path / "allowed", bundle, options={"version_compatible": True})
    TensorRtRunner(allowed / "encoder.plan", cuda=FakeCuda()).close()
    assert trt._calls[-1] == ("deserialize", True)


def test_broken_files(engines: Path) -> None:
    plan = engines / "encoder.plan"
    with pytest.raises(MissingBundle, match="hmer-export engine"):
        open_runner("tensorrt", engines / "nothing.plan")
    plan.write_bytes(plan.read_bytes()[:-7])
    with pytest.raises(CorruptBundle, match="truncated"):
        TensorRtRunner(plan, cuda=FakeCuda())
    sidecar_of(plan).unlink()
    with pytest.raises(MissingBundle, match="which TensorRT"):
        open_runner("tensorrt", plan)


def test_a_plan_with_other_tensors_than_its_sidecar(trt: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    version = f"tensorrt-{trt.__version__}"
    engines = make_engines(tmp_path / "engines", bundle, version, outputs=())
    with pytest.raises(CorruptBundle, match="other tensors"):
        TensorRtRunner(engines / "encoder.plan", cuda=FakeCuda())


def test_without_the_library(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match="pip install 'tensorrt=="):
        open_runner("tensorrt", engines / "encoder.plan")


def test_without_cuda_bindings(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'hmer\[gpu\]'"):
        open_runner("tensorrt", engines / "encoder.plan")


def test_without_a_gpu(engines: Path) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("this machine has a GPU")
    with pytest.raises(ServerSetupError, match=r"no usable NVIDIA GPU.*--gpus all"):
        open_runner("tensorrt", engines / "encoder.plan")
