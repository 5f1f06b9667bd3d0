"""What a rehearsal says that it learned."""

from __future__ import annotations

from r1hpc.rehearsal.lesson import Lesson

FIRST = {"iteration": 0, "eval/sums/pass@1": 0.4, "eval/sums/pass@4": 0.7, "eval/words/pass@1": 0.25}


def test_a_set_has_the_first_evaluation_and_the_final_one() -> None:
    last = {"iteration": 1, "eval/sums/pass@1": 0.5, "final_eval/sums/pass@1": 0.75, "final_eval/words/pass@1": 0.375}
    lessons = Lesson.of([FIRST, last])
    assert [(lesson.name, lesson.before, lesson.after) for lesson in lessons] == [
        ("sums", 0.4, 0.75),
        ("words", 0.25, 0.375),
    ]
    assert [lesson.is_too_small for lesson in lessons] == [False, True]
    assert str(lessons[0]) == "sums: 40.0% right before, 75.0% after"
    assert str(lessons[1]).endswith("which is less than 20%: something is wrong")


def test_without_evaluations_there_is_no_lesson() -> None:
    assert Lesson.of([]) == []
    assert Lesson.of([{"iteration": 0}, {"iteration": 1}]) == []
    assert Lesson.of([FIRST, {"iteration": 1}]) == []
