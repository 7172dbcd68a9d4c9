# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
from hf_unlearn.report.questions import Question, compare_answers


def test_answers_of_several_models_stand_beside_one_another():
    asked = lambda *answers: [{"prompt": f"q{n}", "row": f"r{n}", "answer": one} for n, one in enumerate(answers)]
    kept = lambda answer: [{"prompt": "k", "answer": answer}]
    questions = compare_answers(
        {
            "original": {"forget": asked("a", "b"), "retain": kept("c")},
            "K-FADE": {"forget": asked("x", " "), "retain": kept("c")},
        }
    )
    assert [(question.heading, question.prompt) for question in questions] == [
        *(("to be forgotten", "q0"), ("to be forgotten", "q1"), ("to be kept", "k"))
    ]
    assert questions[1].shown == {"in the data": "r1", "original": "b", "K-FADE": "(nothing)"}
    assert questions[2].shown == {"original": "c", "K-FADE": "c"}
    assert compare_answers({}) == compare_answers({"original": {}, "K-FADE": {}}) == []


def test_a_question_without_answers_is_a_question():
    assert Question("retain", "q").shown == {}
