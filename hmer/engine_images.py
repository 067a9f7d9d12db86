"""Which TensorRT NVIDIA's Triton images carry, and whether one of them loads a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hmer.engine import TENSORRT, EngineInfo, loads_in
from hmer.errors import BundleError

REGISTRY = "nvcr.io/nvidia"
TRITON, BUILDER = f"{REGISTRY}/tritonserver", f"{REGISTRY}/tensorrt"
SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"


@dataclass(frozen=True)
class TritonImage:
    """An image tag, as many parts of its TensorRT's version as are known, and who says so."""

    tag: str
    version: str
    source: str

    @property
    def name(self) -> str:
        """What ``docker run`` takes."""
        return f"{TRITON}:{self.tag}"


# Newest first. None was run by this project. NVIDIA's TensorRT image of a tag carries the same
# version as its Triton image. A tag that is not here is not refused, only not checked.
IMAGES = (
    TritonImage(
        "26.07-py3",
        "11.1.0.106",
        "read: a public deployment's version matrix of tritonserver:26.07-py3, checked there at "
        "run time; a public Dockerfile from tensorrt:26.07-py3 that pins TENSORRT_VERSION",
    ),
    TritonImage(
        "26.03-py3",
        "10.16",
        "read: a public service's version table of tritonserver:26.03-py3; the parts after 10.16 "
        "are not known",
    ),
)
DEFAULT = IMAGES[0]


def image_named(name: str) -> TritonImage | None:
    """The known image of a full name (``nvcr.io/nvidia/tritonserver:26.07-py3``) or tag."""
    return next((image for image in IMAGES if name in (image.name, image.tag)), None)


def check_image(info: EngineInfo, plan: Path, image: TritonImage) -> None:
    """Refuse a plan that the image's TensorRT cannot load, naming the image that can.

    Raises ``BundleError``.
    """
    if info.flavour != TENSORRT:
        raise BundleError(
            f"{plan} was built by TensorRT for RTX, which Triton's images do not carry. Build it "
            f"with TensorRT instead, {_build_in(image)}"
        )
    if loads_in(info, image.version):
        return
    other = next((known for known in IMAGES if loads_in(info, known.version)), None)
    where = (
        f"Serve it with --image {other.name}"
        if other
        else f"Serve it with the image that carries TensorRT {info.version} (--image; NVIDIA's "
        f"table: {SUPPORT_MATRIX})"
    )
    raise BundleError(
        f"{plan} was built by TensorRT {info.version}, but {image.name} carries {image.version}, "
        f"and a plan loads only in the version that built it. {where}, or build it again "
        f"{_build_in(image)}"
    )


def _build_in(image: TritonImage) -> str:
    return (
        f"in {BUILDER}:{image.tag} on the machine that will serve it: hmer-export engine BUNDLE "
        "--output DIR (deploy/gpu.sh runs that image)."
    )
