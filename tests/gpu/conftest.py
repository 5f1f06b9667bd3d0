"""The tiny models of the parity tests, for one GPU."""

from tests.train.parity.conftest import hugging_face, models, samples, transformers_models

__all__ = ["hugging_face", "models", "samples", "transformers_models"]
