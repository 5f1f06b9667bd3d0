"""How the weights are packed for the engines of a sync, kept from one sync to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.sync.buckets import Bucket, make_bucket, pack, payload_sizes
from r1hpc.sync.catalog import Assembly
from r1hpc.sync.encoding import sent_tensors
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncTarget
from r1hpc.sync.routes import Routes

SAMPLES = 8
"""Weights that each sync reads back out of the engines."""
KEPT = 2
"""Packings: for all engines, and for those that are tried again or were started again."""


@dataclass(frozen=True)
class Packing:
    """The buckets of a sync to certain engines, the same on every rank."""

    routes: Routes
    buckets: tuple[Bucket, ...]
    sizes: tuple[Counter[int], ...]
    """Bytes of each bucket for each courier."""


class Packings:
    """Of one model. DeepSeek-R1 has 45,000 weights: to pack them takes longer than to send them."""

    def __init__(self, assemblies: Sequence[Assembly], form: SyncForm, num_experts: int, bucket_bytes: int) -> None:
        self._assemblies = assemblies
        self._form = form
        self._num_experts = num_experts
        self._bucket_bytes = bucket_bytes
        small = [a for a in assemblies if self._sent_bytes(a) * SAMPLES <= bucket_bytes]
        self._sampled = small or list(assemblies)
        self._kept: dict[tuple[SyncTarget, ...], Packing] = {}
        """The one that was used last comes last."""

    def to(self, targets: tuple[SyncTarget, ...]) -> Packing:
        """All weights for these engines."""
        packing = self._kept.pop(targets, None) or self._pack(targets)
        self._kept[targets] = packing
        for longest_unused in list(self._kept)[:-KEPT]:
            del self._kept[longest_unused]
        return packing

    def samples(self, number: int, routes: Routes) -> tuple[Bucket, tuple[str, ...]]:
        """A few weights as one bucket, and their names: others for each number, spread over the model."""
        count = min(SAMPLES, len(self._sampled))
        places = {(number + place * len(self._sampled) // count) % len(self._sampled) for place in range(count)}
        chosen = [self._sampled[place] for place in sorted(places)]
        return make_bucket(chosen, self._form, routes.to), tuple(assembly.name.hf for assembly in chosen)

    def _pack(self, targets: tuple[SyncTarget, ...]) -> Packing:
        routes = Routes(targets, self._num_experts)
        buckets = pack(self._assemblies, self._form, routes.to, self._bucket_bytes)
        return Packing(routes, buckets, tuple(map(payload_sizes, buckets)))

    def _sent_bytes(self, assembly: Assembly) -> int:
        return sum(sent.size_bytes for sent in sent_tensors(assembly.name, assembly.dtype, self._form))
