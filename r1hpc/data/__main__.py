"""python -m r1hpc.data CONFIG: what a run will be given to answer: counts, lengths, bad lines, the first prompts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from r1hpc.config import Config, load_config
from r1hpc.data.dataset import DataSettings, load_dataset
from r1hpc.data.errors import DataError
from r1hpc.data.prompts import PromptSource
from r1hpc.data.report import dataset_report
from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.errors import R1hpcError
from r1hpc.exit_codes import INVALID, SUCCESS


def main(argv: list[str] | None = None) -> int:
    """Check and print; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        loaded = load_config(arguments.config, site=arguments.site, overrides=arguments.overrides)
        for notice in loaded.notices:
            print(f"notice: {notice}", file=sys.stderr)
        return _check(loaded.config, arguments.head)
    except R1hpcError as error:
        print(error, file=sys.stderr)
        return INVALID
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS


def _check(config: Config, head: int) -> int:
    """Print every data set of the configuration; one that is broken does not hide the next."""
    encoder = PromptEncoder(load_tokenizer(config.ckpt.hf_checkpoint), config.rollout.apply_chat_template)
    code = SUCCESS
    for title, settings, shuffle in _data(config):
        print(title, flush=True)
        try:
            dataset = load_dataset(settings, encoder, say=partial(print, flush=True), measure=True)
        except DataError as error:
            print(error, file=sys.stderr)
            code = INVALID
            continue
        source = PromptSource(dataset, shuffle=shuffle, seed=config.rollout.rollout_seed)
        for line in dataset_report(dataset, source.take(min(head, len(dataset)))):
            print(line)
        print(flush=True)
    return code


def _data(config: Config) -> Iterator[tuple[str, DataSettings, bool]]:
    """(title, settings, whether it is shuffled) of each data set."""
    rollout = config.rollout
    order = f"shuffled, seed {rollout.rollout_seed}" if rollout.rollout_shuffle else "in the order of the file"
    yield f"training, {order}", DataSettings.of(rollout), rollout.rollout_shuffle
    for name, path in config.eval.eval_prompt_data.items():
        yield f"evaluation {name}", DataSettings.of(rollout, path), False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m r1hpc.data", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("--site", metavar="NAME", help="sites/NAME.yaml beside CONFIG, or a path")
    parser.add_argument("--set", metavar="A.B=VALUE", dest="overrides", action="append", default=[])
    parser.add_argument("--head", metavar="N", type=_count, default=3, help="prompts to show, in training order (3)")
    return parser


def _count(text: str) -> int:
    """A whole number; argparse tells the message of its error."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
