"""Weights of a torch_dist checkpoint as a Hugging Face checkpoint holds them: bf16, the correction bias float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from r1hpc.checkpoint.bands import BAND_BYTES
from r1hpc.checkpoint.chunk_reader import ChunkReader
from r1hpc.checkpoint.fp8 import BLOCK
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.placement import Place, find_place
from r1hpc.checkpoint.scratch import Scratch
from r1hpc.checkpoint.torch_dist import TorchDist


class StoredWeights:
    """Reads one checkpoint; every process that does has files and buffers of its own."""

    def __init__(self, checkpoint: TorchDist, num_layers: int) -> None:
        """num_layers: of the model without prediction layers."""
        self.checkpoint = checkpoint
        self._num_layers = num_layers
        self._chunks = ChunkReader(checkpoint)
        self._scratch = Scratch()

    def place(self, name: TensorName) -> Place | None:
        """Where the checkpoint holds a weight; null for one that it lacks."""
        return find_place(name, self._num_layers, self.checkpoint.tensors.keys())

    def where(self, name: TensorName) -> str:
        """File, key and box of a weight that it holds, for people."""
        place = self._held(name)
        meeting = self.checkpoint.tensors[place.key].meeting(place.box)
        file = next((self.checkpoint.directory / chunk.extent.file for chunk, _ in meeting), self.checkpoint.directory)
        return f"{file}: {place.key} {place.box}"

    def bands(self, name: TensorName) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, values) of a weight that it holds, in bands of whole blocks; one is valid until the next.

        What training kept in float32 is rounded to bf16 once. Raises CheckpointError naming file, key and box.
        """
        place = self._held(name)
        dtype = torch.float32 if name.float32 else torch.bfloat16
        stored = self.checkpoint.tensors[place.key].dtype
        row_bytes = torch.Size(name.shape[1:]).numel() * dtype.itemsize
        step = max(BLOCK, BAND_BYTES // row_bytes // BLOCK * BLOCK)
        for row in range(0, name.shape[0], step):
            rows = min(step, name.shape[0] - row)
            box = place.rows(row, rows, len(name.shape))
            values = self._chunks.read_box(place.key, box, self._scratch.tensor(box.sizes, stored))
            yield row, values.view(rows, *name.shape[1:]).to(dtype)

    def _held(self, name: TensorName) -> Place:
        place = self.place(name)
        assert place is not None, f"{name.hf} is not among those stored"
        return place
