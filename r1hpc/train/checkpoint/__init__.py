"""Checkpoints of the trainer: weights and optimizer, streamed out of host memory, read back at any layout."""
