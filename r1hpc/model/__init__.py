"""The model that is trained: DeepSeek-V3 of megatron-core, from torch and megatron-core alone, on CPU and GPU."""
