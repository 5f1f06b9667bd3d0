"""Stands before megatron-core on the path of an engine's processes: there is no Megatron in an engine.

SGLang imports megatron-core wherever it is installed (srt/debug_utils/dumper.py, in case it is debugged beside it), and
megatron.core.inference sets torch_memory_saver.hook_mode to "torch" when it is imported. SGLang's scheduler, which was
started for the other mode, then ends at the first CUDA graph: "Only hook_mode=preload supports pauseable CUDA Graph".
"""
