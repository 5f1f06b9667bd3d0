"""The prompts of a run, one after another, with a cursor that resumes exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy
import xxhash
from numpy.typing import NDArray

from r1hpc.config import Config
from r1hpc.data.dataset import DataSettings, PromptDataset, load_dataset
from r1hpc.data.errors import DataError
from r1hpc.data.order import epoch_order
from r1hpc.data.progress import Say
from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.types import Prompt


class PromptSource:
    """Every prompt once an epoch, without end; the order is a pure function of (seed, epoch)."""

    def __init__(self, dataset: PromptDataset, *, shuffle: bool, seed: int) -> None:
        self.dataset = dataset
        self._shuffle = shuffle
        self._seed = seed
        self._taken = 0
        self._order = (-1, numpy.empty(0, dtype=numpy.int64))
        """Epoch, and the order of it."""

    @property
    def num_prompts(self) -> int:
        """Prompts of an epoch."""
        return len(self.dataset)

    @property
    def epoch(self) -> int:
        """Of the next prompt, from 0."""
        return self._taken // self.num_prompts

    @property
    def offset(self) -> int:
        """Prompts of this epoch that were taken."""
        return self._taken % self.num_prompts

    def take(self, count: int) -> list[Prompt]:
        """The next prompts. They may come from two epochs (or more), and one prompt then twice, told apart by `epoch`.

        Reads the file and tokenizes: some 0.1 ms a prompt. Where it raises (DataError), the cursor has not moved.
        """
        assert count >= 0, f"take({count})"
        prompts: list[Prompt] = []
        while missing := count - len(prompts):
            epoch, offset = divmod(self._taken + len(prompts), self.num_prompts)
            prompts += self.dataset.prompts(self._order_of(epoch)[offset : offset + missing], epoch)
        self._taken += count
        return prompts

    def again(self, index: int, epoch: int) -> Prompt:
        """A prompt that was taken before, by what names it. Raises DataError where no prompt has this index."""
        place = self.dataset.place_of(index)
        return self.dataset.prompts(numpy.array([place], dtype=numpy.int64), epoch)[0]

    def state(self) -> dict[str, Any]:
        """The cursor, and what its order depends on, for JSON."""
        identity = self._identity()
        return {"epoch": self.epoch, "offset": self.offset, "digest": _digest(identity), "data": identity}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the prompt that was taken last. Raises DataError where data or order are others now."""
        identity = self._identity()
        here = _digest(identity)
        if state.get("digest") != here:
            raise DataError(self._difference(state, identity, here))
        epoch, offset = state.get("epoch"), state.get("offset")
        if not (_is_count(epoch) and _is_count(offset) and offset < self.num_prompts):
            raise DataError(
                f"cursor of the prompts: epoch {epoch!r}, offset {offset!r}: both are whole numbers from 0, and the "
                f"offset is below num_prompts = {self.num_prompts}; the state was not written by this program"
            )
        self._taken = epoch * self.num_prompts + offset

    def _order_of(self, epoch: int) -> NDArray[numpy.int64]:
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(self.num_prompts, seed=self._seed, epoch=epoch, shuffle=self._shuffle))
        return self._order[1]

    def _identity(self) -> dict[str, str]:
        order = f"shuffled, seed {self._seed}" if self._shuffle else "as in the file"
        return self.dataset.identity() | {"order": order}

    def _difference(self, state: Mapping[str, Any], identity: Mapping[str, str], here: str) -> str:
        saved = state.get("data")
        saved = saved if isinstance(saved, Mapping) else {}
        lines = [
            f"  {name}: was {saved.get(name, 'not said')}, is {value}"
            for name, value in identity.items()
            if saved.get(name) != value
        ]
        heading = (
            f"{self.dataset.settings.prompt_data}: not the data that this run was started with: its digest was "
            f"{state.get('digest')}, is {here}; a cursor into other data would skip and repeat prompts: put back what "
            "is named here, or start a new run"
        )
        return "\n".join([heading, *lines])


def open_prompts(config: Config, *, say: Say) -> PromptSource:
    """The prompts of training, as the configuration has them. Raises DataError."""
    rollout = config.rollout
    encoder = PromptEncoder(load_tokenizer(config.ckpt.hf_checkpoint), rollout.apply_chat_template)
    dataset = load_dataset(DataSettings.of(rollout), encoder, say=say)
    return PromptSource(dataset, shuffle=rollout.rollout_shuffle, seed=rollout.rollout_seed)


def _digest(identity: Mapping[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
