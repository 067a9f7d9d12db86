"""Optimisation profiles: which sizes an engine takes, and for which it is tuned.

One ladder for all engines, the one that serving pads to: images have the sizes of
``hmer.preprocess.size_class``, batches those of ``hmer.slots.LADDER``. So few shapes occur that
each can have its CUDA graph. Every graph gets the profile ``full``, which takes whatever
preprocessing gives, and ``line``, which is tuned for a formula of ordinary size. A profile is
written by named axes, hence all inputs of a graph agree.
"""

from __future__ import annotations

from hmer.contract import ModelSpec, Sizes
from hmer.engine import EngineProfile, Range
from hmer.errors import BadParameter, ExportError
from hmer.preprocess import PreprocessSettings, size_class
from hmer.slots import GPU_BUCKET, LADDER

BATCH = "batch"
FULL, LINE = "full", "line"
# Height and width in pixels of a formula of one line: typical, and greatest.
LINE_TYPICAL, LINE_GREATEST = (80, 320), (128, 512)
SIDES = ("height", "width")


def profiles(
    spec: ModelSpec, sizes: Sizes, settings: PreprocessSettings, max_batch: int
) -> tuple[EngineProfile, ...]:
    """The profiles of ``spec``'s engine, ``full`` first (Triton's default).

    ``max_batch`` must be on the ladder. Raises ``BadParameter``.
    """
    if max_batch not in LADDER:
        raise BadParameter(
            f"max_batch is {max_batch}; it must be one of {', '.join(map(str, LADDER))}."
        )
    least = size_class(sizes.stride, sizes.stride)
    greatest = size_class(settings.max_height, settings.max_width)
    typical = _at_most(size_class(*LINE_TYPICAL), greatest)
    line = _at_most(size_class(*LINE_GREATEST), greatest)
    batch = {FULL: 1, LINE: max(rung for rung in LADDER if rung <= max(1, max_batch // 2))}
    names = {axis for tensor in spec.inputs for axis in tensor.dims if isinstance(axis, str)}
    result = []
    for name, top in ((FULL, greatest), (LINE, line)):
        axes: dict[str, Range] = {BATCH: (1, batch[name], max_batch)}
        for side, low, usual, high, bucket in zip(
            SIDES, least, typical, top, GPU_BUCKET, strict=True
        ):
            _check_multiple(side, (low, usual, high), sizes.stride)
            if side in names:
                axes[side] = (low, usual, high)
            if f"feature_{side}" in names:
                # From one position: serving crops to the true size, then pads to buckets.
                most = -(-high // sizes.stride // bucket) * bucket
                axes[f"feature_{side}"] = (1, usual // sizes.stride, most)
        result.append(EngineProfile(name, axes))
    for profile in result:
        check_profile(profile, spec, sizes)
    return tuple(result)


def check_profile(profile: EngineProfile, spec: ModelSpec, sizes: Sizes) -> None:
    """Refuse a profile that is not consistent by named axes at min, opt and max.

    The builder accepts some that are not, and the engine then fails when it is used.
    Raises ``ExportError``.
    """
    wanted = {BATCH} | {a for t in spec.inputs for a in t.dims if isinstance(a, str)}
    where = f"The profile {profile.name} of {spec.name}"
    if set(profile.axes) != wanted:
        raise ExportError(
            f"{where} has the axes {', '.join(sorted(profile.axes))}, but the graph has "
            f"{', '.join(sorted(wanted))}."
        )
    for axis, (low, usual, high) in profile.axes.items():
        if not 1 <= low <= usual <= high:
            raise ExportError(f"{where} has {axis} {low}, {usual}, {high}, not in this order.")
        if axis in SIDES:
            _check_multiple(axis, (low, usual, high), sizes.stride)


def shapes(profile: EngineProfile, dims: tuple[int | str, ...]) -> tuple[tuple[int, ...], ...]:
    """The min, opt and max shape of a tensor with these ``dims`` (batch included)."""
    return tuple(
        tuple(profile.axes[dim][index] if isinstance(dim, str) else dim for dim in dims)
        for index in range(3)
    )


def _at_most(pair: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    return min(pair[0], limit[0]), min(pair[1], limit[1])


def _check_multiple(side: str, values: Range, stride: int) -> None:
    if any(value % stride for value in values):
        raise ExportError(
            f"The ladder of sizes has the {side} {', '.join(map(str, values))}, which are not all "
            f"multiples of the network's stride {stride}."
        )
