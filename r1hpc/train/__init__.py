"""Training: packing, log-probs, the GRPO loss, optimizer steps, and the trainer's checkpoints."""
