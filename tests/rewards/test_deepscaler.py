"""The deepscaler reward against a table worked by hand, and the parts that find the answer."""

from __future__ import annotations

import time

import pytest

from r1hpc.rewards.boxed import boxed_answer
from r1hpc.rewards.deepscaler import deepscaler
from r1hpc.rewards.kinds import grader_of
from r1hpc.rewards.request import RewardError
from r1hpc.rewards.safe_sympy import UnsafeExpression, parse_expression
from tests.rewards.answers import ALL, Answer

RIGHT = r"\boxed{5}"


def test_the_table_is_as_long_as_promised() -> None:
    assert len({answer[:2] for answer in ALL}) >= 200


@pytest.mark.parametrize("answer", ALL, ids=lambda answer: ascii(f"{answer.boxed[:24]} for {answer.label}"))
def test_answer_gets_the_reward_of_the_table(answer: Answer) -> None:
    begun = time.process_time()
    assert deepscaler(f"thinking</think>So \\boxed{{{answer.boxed}}}.", answer.label) == answer.reward, answer.why
    assert time.process_time() - begun < 3.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (f"<think>because</think>{RIGHT}", 1),
        (f"because</think>{RIGHT}", 1),
        (RIGHT, 0),  # a truncated thought: the box stands in it
        (f"<think>because {RIGHT}", 0),
        (f"{RIGHT}</think>", 0),
        (f"{RIGHT}</think>so it is 5", 0),
        (f"</think>\\boxed{{6}}</think>{RIGHT}", 1),
        (f"</think>{RIGHT}</think>\\boxed{{6}}", 0),
        (f"###Response{RIGHT}", 1),
        (f"a###Response\\boxed{{6}}###Response{RIGHT}", 0),  # up to the next one, as the reference splits
        (f"###Response{RIGHT}</think>", 0),  # the end of thinking goes first
        (f"</think>\\boxed{{6}} no, {RIGHT}", 1),
        (f"</think>{RIGHT} or \\boxed{{6}}", 0),
        ("</think>\\boxed{\\boxed{5}}", 1),  # the last one is the inner one
        ("</think>\\boxed{{5}}", 1),
        ("</think>\\boxed{\\text{the \\{answer\\}} 5}", 0),
        ("</think>\\boxed 5", 0),
        ("</think>\\boxed 5 {}", 0),
        ("</think>\\boxed {5}", 0),
        (f"</think>{RIGHT} \\boxed", 0),  # only the last one is looked at
        ("</think>\\fbox{5}", 0),
        (f"</think>{RIGHT} \\fbox{{6}}", 1),
        ("</think>\\boxed{5", 0),
        ("</think>\\boxed{5}}", 1),
        ("</think>\\boxed{}", 0),
        ("</think>5", 0),
        ("", 0),
    ],
)
def test_where_the_answer_is_found(response: str, reward: int) -> None:
    assert deepscaler(response, "5") == reward


@pytest.mark.parametrize(
    ("label", "reward"),
    [(5, 1), (5.0, 1), (6, 0), ("So \\boxed{5}", 1), ("\\boxed 5", 0), ("\\fbox{5}", 1), ("", 0), (" ", 0)],
)
def test_labels_may_be_numbers_or_boxed(label: str | float, reward: int) -> None:
    assert deepscaler(f"</think>{RIGHT}", label) == reward


def test_box_of_a_million_braces_is_read_in_linear_time() -> None:
    content = "{" * 500_000 + "}" * 500_000
    begun = time.process_time()
    assert boxed_answer(f"\\boxed{{{content}}}") == content
    assert time.process_time() - begun < 3.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("9^9^9", "exponent"),
        ("2^(10^10)", "exponent"),
        ("2^-99999", "exponent"),
        ("(9!)!", "factorial"),
        ("ff(9,10^6)", "factorial"),
        ("1e99999", "20000 digits"),
        ("(10^9000)^3", "20000 digits"),
        ("x.real", "Attribute"),
        ("().__class__", "Attribute"),
        ("x[0]", "Subscript"),
        ("'x'", "Constant"),
        ("x<1", "Compare"),
        ("(1,2)", "Tuple"),
        ("(1 for x in x)", "not arithmetic|invalid"),
        ("(x:=1)", "cannot use assignment|not arithmetic"),
        ("(" * 60 + "x" + ")" * 60, "brackets"),
        ("1" * 2000, "characters"),
    ],
)
def test_text_that_is_no_harmless_arithmetic_is_refused_before_it_is_evaluated(text: str, reason: str) -> None:
    with pytest.raises((UnsafeExpression, SyntaxError), match=reason):
        parse_expression(text)


@pytest.mark.parametrize(("text", "value"), [("2^9", "512"), ("0.[3]", "1/3"), ("3!", "6"), ("2x+x", "3*x")])
def test_arithmetic_is_evaluated(text: str, value: str) -> None:
    assert str(parse_expression(text)) == value


@pytest.mark.parametrize(
    ("kind", "response", "label", "reward"),
    [
        ("exact", "so</think> 5 \n", "5", 1),
        ("exact", "5", "5", 1),
        ("exact", "5.0", "5", 0),
        ("boxed_exact", "thus \\boxed{ 5 }", "5", 1),
        ("boxed_exact", "5", "5", 0),
        ("boxed_deepscaler", "never done thinking \\boxed{\\frac12}", "0.5", 1),
        ("boxed_deepscaler", "\\boxed 5", "5", 0),
        ("math_verify", "so</think>it is $\\frac{2}{4}$", "\\frac12", 1),
        ("math_verify", "$5$ or</think>it is $6$", "5", 0),
        ("math_verify", "\\boxed{\\frac{x+1}{2}}", "(1+x)/2", 1),
        ("math_verify", "nothing", "5", 0),
        ("boxed_math_verify", "\\boxed{$0.5$}", "1/2", 1),
    ],
)
def test_other_built_in_rewards(kind: str, response: str, label: str, reward: int) -> None:
    assert grader_of(kind)(response, label) == reward


def test_unknown_kind_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(RewardError, match=r"deepscalar.*deepscaler, math_verify, exact"):
        grader_of("deepscalar")
