"""The words of a bash script, without running it."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.config.bash_lexer import tokens


def words(script: str) -> list[str]:
    return [token.text for token in tokens(script) if token.kind == "word"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("a b\tc", ["a", "b", "c"]),
        ("a # b c\nd", ["a", "d"]),
        ("a#b '#' \\# c", ["a#b", "#", "#", "c"]),
        ("a\\\nb \\\n c", ["ab", "c"]),
        ("'a b'\"c d\"e", ["a bc de"]),
        ('"a\\"b\\$c\\d\\\\"', ['a"b$c\\d\\']),
        ('$A/${B}_c "$D"', ["${A}/${B}_c", "${D}"]),
        ("'$A ${B}'", ["$A $${B}"]),
        ('"\\${B}"', ["$${B}"]),
        ("a;b|c&&d", ["a", "b", "c", "d"]),
        ("'' \"\"", ["", ""]),
        ("${A:-x/y} ${B-z}", ["${A}", "${B}"]),
        ("5$ $", ["5$", "$"]),
        ("cat <<EOF\nx y\nEOF\nz", ["cat", "z"]),
        ("cat <<-'E' w\n\tx\n\tE\nz", ["cat", "w", "z"]),
        ("a <<< b", ["a", "b"]),
    ],
)
def test_words_are_those_of_bash(script: str, expected: list[str]) -> None:
    assert words(script) == expected


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("$(date +%F)/x", "$(date +%F)"),
        ('"$(dirname "$(pwd)")"', '$(dirname "$(pwd)")'),
        ("`date`", "`date`"),
        ("$((1 + 2))", "$((1 + 2))"),
        ("${A%.sh}", "${A%.sh}"),
        ("x${A[0]}", "${A[0]}"),
        ("$1", "$1"),
        ("$@", "$@"),
    ],
)
def test_what_only_running_would_tell_is_marked(word: str, part: str) -> None:
    (token,) = tokens(word)
    assert token.unread == part


def test_an_array_is_known_by_its_name_and_defaults_by_theirs() -> None:
    quoted, bare, partial, default = tokens('"${A_ARGS[@]}" ${B[*]} x${C[@]} ${D:-4}')
    assert [token.array for token in (quoted, bare, partial, default)] == ["A_ARGS", "B", None, None]
    assert partial.unread == "${C[@]}"
    assert default.defaults == {"D": "4"}


def test_lines_are_counted_through_quotes_comments_and_documents() -> None:
    script = "a 'x\ny' b\n# c\nd \\\n e\ncat <<E\n1\n2\nE\nf\n"
    assert [(token.text, token.line) for token in tokens(script) if token.kind == "word"] == [
        ("a", 1),
        ("x\ny", 1),
        ("b", 2),
        ("d", 4),
        ("e", 5),
        ("cat", 6),
        ("f", 10),
    ]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8), max_size=5))
def test_what_shlex_quotes_is_read_back(parts: list[str]) -> None:
    assert words(shlex.join(parts)) == [part.replace("${", "$${") for part in parts]


@given(st.text(st.sampled_from("ab$`'\"\\(){}[]@<>#&|;\n \t"), max_size=30))
def test_no_text_makes_the_lexer_fail_or_stand_still(script: str) -> None:
    lines = [token.line for token in tokens(script)]
    assert lines == sorted(lines)
    assert all(1 <= line <= script.count("\n") + 1 for line in lines)
