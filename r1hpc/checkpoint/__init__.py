"""Checkpoints: Hugging Face safetensors in, block fp8, names, cast, convert to torch_dist, verify, export."""
