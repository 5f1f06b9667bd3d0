"""Which dispatcher carries the tokens, and what is said where it is not the one asked for."""

from __future__ import annotations

import logging

import pytest

from r1hpc.model.config import ModelConfigError, transformer_config
from r1hpc.model.dispatcher import Dispatcher, choose_dispatcher
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from tests.model.configs import hugging_face

GPU = TrainSettings(device="cuda", dispatcher="flex", flex_backend="deepep")
CPU = TrainSettings(device="cpu", dispatcher="flex", flex_backend="deepep")


def test_deepep_is_chosen_where_it_can_run() -> None:
    assert choose_dispatcher(GPU, Layout(ep=4), deepep=True) == Dispatcher("flex")
    assert choose_dispatcher(GPU, Layout(tp=2), deepep=True) == Dispatcher("flex")


@pytest.mark.parametrize(
    ("settings", "layout", "deepep", "reason"),
    [
        (
            GPU,
            Layout(ep=4),
            False,
            "deep_ep cannot be imported (it comes with sgl-deep-ep, or from the site's own build)",
        ),
        (GPU, Layout(), True, "DeepEP needs more than one rank to send to, and tp * ep = 1 * 1 = 1"),
        (CPU, Layout(ep=4), True, "DeepEP's kernels are for GPUs and this is a CPU"),
    ],
    ids=["not installed", "one rank", "cpu"],
)
def test_elsewhere_it_is_alltoall_with_a_notice(
    settings: TrainSettings, layout: Layout, deepep: bool, reason: str
) -> None:
    notice = f"megatron.moe_token_dispatcher_type is flex, but {reason}: alltoall is used"
    assert choose_dispatcher(settings, layout, deepep) == Dispatcher("alltoall", notice)


def test_the_notice_is_logged_and_megatron_told_alltoall(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = transformer_config(hugging_face(), Layout(ep=4), CPU)
    assert config.moe_token_dispatcher_type == "alltoall"
    assert [record.getMessage() for record in caplog.records if "flex" in record.getMessage()] == [
        "megatron.moe_token_dispatcher_type is flex, but DeepEP's kernels are for GPUs and this is a CPU: alltoall is"
        " used"
    ]


def test_alltoall_as_asked_for_says_nothing() -> None:
    assert choose_dispatcher(TrainSettings(dispatcher="alltoall"), Layout(ep=4), deepep=True) == Dispatcher("alltoall")


@pytest.mark.parametrize(
    "settings",
    [TrainSettings(dispatcher="allgather"), TrainSettings(dispatcher="flex", flex_backend="hybridep")],
    ids=["allgather", "hybridep"],
)
def test_dispatchers_that_cannot_train_this_model_are_refused(settings: TrainSettings) -> None:
    with pytest.raises(ModelConfigError, match=r"write (alltoall|deepep)"):
        transformer_config(hugging_face(), Layout(ep=4), settings)
