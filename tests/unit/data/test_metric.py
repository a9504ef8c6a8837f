from beni.data.metric import BestChoice, ExactAnswer, LossOnly, Reading, Verdict
from beni.data.sample import Message, Sample


def asked(answer, **fields):
    return Sample("s", (Message("user", ("?",)), Message("assistant", (answer,))), **fields)


def test_an_exact_answer_may_be_any_reference():
    sample = asked("couch", references=("sofa", "couch", "sofa"))
    metric = ExactAnswer()
    assert metric.candidates(sample) == ("couch", "sofa")
    wrong = Reading(-1.0, False, "chair")
    assert metric.judge(sample, {"couch": wrong, "sofa": Reading(-0.1, True, "sofa")}) == Verdict(1.0, "sofa")
    assert metric.judge(sample, {"couch": Reading(-0.1, True, "couch"), "sofa": wrong}) == Verdict(1.0, "couch")


def test_a_wrong_answer_is_what_the_model_says_where_the_expected_one_stands():
    readings = {"couch": Reading(-1.0, False, "chair"), "sofa": Reading(-0.1, False, "stool")}
    assert ExactAnswer().judge(asked("couch", references=("sofa",)), readings) == Verdict(0.0, "chair")


def test_the_best_choice_is_the_likeliest_and_the_first_of_equals():
    sample = asked("b", choices=("a", "b", "c", "a"))
    metric = BestChoice()
    assert metric.candidates(sample) == ("a", "b", "c")

    def judge(**logliks):
        return metric.judge(sample, {name: Reading(loglik, False, "x") for name, loglik in logliks.items()})

    assert judge(a=-3.0, b=-1.0, c=-2.0) == Verdict(1.0, "b")
    assert judge(a=-1.0, b=-1.0, c=-2.0) == Verdict(0.0, "a")


def test_a_description_has_no_score():
    sample = asked("a red star", references=("a star",))
    assert LossOnly().candidates(sample) == ("a red star",)
    assert LossOnly().judge(sample, {"a red star": Reading(-1.0, True, "a red star")}) == Verdict(None, None)


def test_metrics_that_score_alike_are_equal():
    assert len({ExactAnswer(), ExactAnswer(), BestChoice(), LossOnly(), LossOnly()}) == 3
