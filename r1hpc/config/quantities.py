"""Numbers with bounds: their own where a field has one, and always what arithmetic on them survives."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

_MOST: Final = 10**9
_LEAST: Final = 1e-30


def _of_use(value: float) -> float:
    """Refuse what no count, size or rate is: products of such numbers overflow, quotients by them are infinite."""
    if abs(value) > _MOST:
        limit = f"{_MOST:,}".replace(",", " ")
        raise ValueError(f"must be at most {limit}" if value > 0 else f"must be at least -{limit}")
    if value and abs(value) < _LEAST:
        raise ValueError(f"must be 0 or at least {_LEAST:g}: float32 holds nothing smaller")
    return value


Integer = Annotated[int, AfterValidator(_of_use)]
Number = Annotated[float, AfterValidator(_of_use)]
PositiveInt = Annotated[Integer, Field(ge=1)]
NonNegativeInt = Annotated[Integer, Field(ge=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""A seed that every generator takes: numpy's are 32 bits wide."""
Gibibytes = Annotated[float, Field(ge=0.001, le=1_000_000)]
Hours = Annotated[float, Field(ge=0.01, le=1_000_000)]
GigabytesPerSecond = Annotated[float, Field(ge=0.001, le=1_000_000)]
