"""What is packed for some engines is kept; what is read back is other each time."""

from __future__ import annotations

import math
from itertools import chain

from r1hpc.sync.catalog import plan_assemblies
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncTarget
from r1hpc.sync.packings import KEPT, SAMPLES, Packings
from tests.sync.test_catalog import NAMES, SHAPE, held

LIMIT = 300_000


def targets(*engines: int) -> tuple[SyncTarget, ...]:
    """Engines of one rank each."""
    return tuple(SyncTarget(f"engine{rank}", (rank,)) for rank in engines)


def packings() -> Packings:
    return Packings(plan_assemblies(SHAPE, held(4)), SyncForm.FP8, SHAPE.num_experts, LIMIT)


def test_the_same_engines_have_the_same_packing_and_others_another() -> None:
    known = packings()
    everyone, one = known.to(targets(0, 1, 2)), known.to(targets(1))
    assert one.routes.couriers == (1,) and set(chain(*one.sizes)) == {1}
    assert known.to(targets(0, 1, 2)) is everyone and known.to(targets(1)) is one
    assert everyone == packings().to(targets(0, 1, 2))


def test_one_that_failed_costs_the_others_nothing_and_packings_do_not_pile_up() -> None:
    known = packings()
    everyone = known.to(targets(0, 1, 2))
    for failed in (1, 2, 1, 0):
        known.to(targets(failed))
        assert known.to(targets(0, 1, 2)) is everyone
        assert len(known._kept) <= KEPT


def test_in_the_end_every_weight_that_is_small_enough_has_been_read_back() -> None:
    known = packings()
    routes = known.to(targets(0)).routes
    read: set[str] = set()
    for number in range(len(NAMES)):
        bucket, names = known.samples(number, routes)
        held_in = [item.assembly.name.hf for segment in bucket.segments for item in segment.items]
        assert sorted(held_in) == sorted(names) and len(names) <= SAMPLES
        assert sum(segment.size for segment in bucket.segments) <= 2 * LIMIT
        read |= set(names)
    large = {name.hf for name in NAMES if math.prod(name.shape) * SAMPLES > LIMIT}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < large
    assert read == {name.hf for name in NAMES} - large
