"""Stand-in for torchvision, which SGLang and transformers import for models that read pictures; PyPI's needs CUDA."""

from __future__ import annotations

from standin import stand_in  # type: ignore[import-not-found]

__version__ = "0.28.0"

stand_in(__name__)
