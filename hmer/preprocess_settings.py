"""What preprocessing does, as numbers; apart from it, for a bundle is read without image code.

The libraries behind ``hmer.preprocess`` take 15 MB and a quarter of a second in every process of
the server, and only those that see pictures need them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PreprocessSettings:
    """What preprocessing does, as recorded in a bundle. Lengths are in pixels.

    ``symbol_height``: the typical component height after scaling. ``margin``: empty border.
    ``multiple``: heights and widths are multiples of it (the encoder's stride).
    ``max_height``, ``max_width``, ``max_pixels``: a larger picture is scaled down to fit.
    """

    symbol_height: float = 20.0
    margin: int = 6
    multiple: int = 8
    max_height: int = 512
    max_width: int = 1536
    max_pixels: int = 262_144

    def to_dict(self) -> dict[str, Any]:
        """For ``bundle.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessSettings:
        """From ``bundle.json``; unknown or missing names raise ``TypeError`` or ``KeyError``."""
        names = [field.name for field in fields(cls)]
        if unknown := set(values) - set(names):
            raise KeyError(f"unknown preprocess settings {sorted(unknown)}")
        return cls(**{name: values[name] for name in names})
