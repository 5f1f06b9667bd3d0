"""Rollout: SGLang servers, the client that dispatches over them, the sampler, its filters, evaluation."""
