"""docs/flags.md: what carries out each flag of the recipe, and what becomes of Megatron's own fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from r1hpc.config.flags import ARRAYS, ELSEWHERE, Flag, Kind
from r1hpc.config.modernize import words_of
from r1hpc.config.owned import MEGATRON_OWNED
from r1hpc.config.portable import PASSED, SETTLED
from r1hpc.config.structure import type_words

_HEAD = """\
# What carries out each flag of the recipe

Generated from the table in `r1hpc/config/flags.py`: `python -m r1hpc.config flags > docs/flags.md`.
Training needs no Transformer Engine and no apex: the layers are r1hpc's own or Megatron's plain ones, the same on CPU
and on H100, so each flag says here what does it. A flag is

- **done by** the code that is named,
- **satisfied by construction**: nothing else can happen, and any other value is refused,
- **accepted without effect**: `python -m r1hpc.config check` prints a notice with the reason.

The column *refused* lists values that `check` refuses beside this recipe, with the reason in its message.
"""

_FIELDS_HEAD = """\
## Other fields of Megatron

Any field of the pinned Megatron's `MLATransformerConfig` may be written under `megatron:`. None of them is taken
without doing something: it acts, or gives a notice, or is refused. What would only make the same numbers faster is
accepted without effect; what would change numbers or memory, and would not happen, is refused.
"""


def flags_page() -> str:
    """The whole page as Markdown."""
    lines = [_HEAD]
    for title, flags in {**ARRAYS, **ELSEWHERE}.items():
        lines += [f"## {title}", "", *_flag_table(flags), ""]
    lines += [_FIELDS_HEAD, *_passed(), "", *_settled(), "", *_refused()]
    return "\n".join(lines) + "\n"


def _flag_table(flags: Sequence[Flag]) -> Iterator[str]:
    yield "| flag | in the recipe | key | what becomes of it | shown by | refused |"
    yield "|---|---|---|---|---|---|"
    for flag in flags:
        yield _row(
            f"`--{flag.flag}`",
            f"`{flag.value}`" if flag.value else "",
            f"`{flag.key}`",
            _fate(flag),
            _lines(f"`{test}`" for test in flag.tests),
            _lines(f"`{override}`" for override in flag.refused),
        )


def _fate(flag: Flag) -> str:
    code = ", ".join(f"`{_place(name)}`" for name in flag.by)
    if flag.kind is Kind.DONE:
        return f"**{flag.kind.value}** {code}: {flag.what}"
    return f"**{flag.kind.value}**: {flag.what}" + (f" ({code})" if code else "")


def _place(reference: str) -> str:
    """`r1hpc.train.grpo:kl_estimate` as `r1hpc/train/grpo.py kl_estimate`."""
    module, _, attribute = reference.partition(":")
    return f"{module.replace('.', '/')} {attribute}".rstrip()


def _passed() -> Iterator[str]:
    yield "Passed on to Megatron, and acting there:"
    yield ""
    yield "| field | takes |"
    yield "|---|---|"
    for name, annotation in PASSED.items():
        yield _row(f"`{name}`", type_words(annotation))


def _settled() -> Iterator[str]:
    yield "Accepted without effect, where the value is one of those named:"
    yield ""
    yield "| fields | accepted | why |"
    yield "|---|---|---|"
    for group in SETTLED:
        yield _row(_names(group.fields), words_of(group.only) if group.only else "every value", group.why)


def _refused() -> Iterator[str]:
    yield "Refused, whatever the value:"
    yield ""
    yield "| fields | because |"
    yield "|---|---|"
    by_reason = sorted((reason, name) for name, reason in MEGATRON_OWNED.items())
    for reason, fields in groupby(by_reason, key=itemgetter(0)):
        yield _row(_names([name for _, name in fields]), reason)


def _names(fields: Sequence[str]) -> str:
    return " ".join(f"`{name}`" for name in fields)


def _lines(texts: Iterator[str]) -> str:
    return "<br>".join(texts)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
