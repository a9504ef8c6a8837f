"""What an answer is worth by each task, and what the scores of all make together."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest

from beni.data.metric import Reading
from beni.data.sample import Message, Sample
from beni.errors import ConfigError, DataError
from beni.evals.ablations import BLANK, TRUE
from beni.evals.tasks.anls import anls
from beni.evals.tasks.base import means
from beni.evals.tasks.captions import Bleu, Cider
from beni.evals.tasks.choice import INSTRUCTION, LikeliestChoice, SaidChoice, chosen_of
from beni.evals.tasks.exact import ExactMatch
from beni.evals.tasks.perplexity import Perplexity
from beni.evals.tasks.registry import TASKS, task_of
from beni.evals.tasks.relaxed import RelaxedAccuracy
from beni.evals.tasks.vqa import CONTRACTIONS, VqaAccuracy, vqa_accuracy
from beni.evals.tasks.yes_no import YesNo


def sample(answer="red", references=(), choices=()):
    messages = (Message("user", ("what is it?",)), Message("assistant", (answer,)))
    return Sample("s", messages, references=tuple(references), choices=tuple(choices))


def needs(package, absent):
    if find_spec(package) is None:
        absent(f"needs {package}")


@pytest.mark.parametrize(
    ("said", "references", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["blue"] * 10, 0.0),
        ("red", ["red"] + ["blue"] * 9, 0.3),  # nine of ten sets without one person hold it, at 1/3
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),
        ("red", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("The Red.", ["red"] * 4 + ["blue"] * 6, 1.0),
        ("two", ["2"] * 4 + ["3"] * 6, 1.0),
        ("2", ["two"] * 4 + ["3"] * 6, 0.0),  # what people said keeps its words
        ("dont know", ["don't know"] * 4 + ["no"] * 6, 0.0),  # and loses the apostrophe that the answer gets
        ("dont know", ["don't know"] * 10, 1.0),  # unless all say the same
        ("1,000", ["1,000"] * 4 + ["2"] * 6, 1.0),
        ("3.5", ["3.5"] * 4 + ["2"] * 6, 1.0),
        ("left/right", ["left right"] * 4 + ["2"] * 6, 1.0),
        ("", ["red"] * 10, 0.0),
    ],
)
def test_vqa_accuracy_counts_the_people_who_agree(said, references, expected):
    assert vqa_accuracy(said, references) == pytest.approx(expected)


def test_the_contractions_of_vqa_are_those_of_its_program():
    assert len(CONTRACTIONS) == 118
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert "couldntve" not in CONTRACTIONS
    assert CONTRACTIONS["somebody'd"] == "somebodyd"


def test_vqa_accuracy_wants_what_several_people_said():
    assert "needs 4" in (VqaAccuracy().unfit(sample(references=["red"])) or "")
    assert VqaAccuracy().unfit(sample(references=["red"] * 4)) is None
    assert VqaAccuracy().judge(sample(references=["red"] * 4), "red")["score"] == 1.0


def test_exact_match_takes_any_reference_and_ignores_what_it_is_told_to():
    one = sample("a red star.", references=["star"])
    assert [ExactMatch().judge(one, said)["score"] for said in ("a red star.", " star ", "Star", "a red star")] == [
        *(1.0, 1.0, 0.0, 0.0)
    ]
    assert ExactMatch(ignore_case=True).judge(one, "STAR")["score"] == 1.0
    assert ExactMatch(ignore_punctuation=True).judge(one, "a red,  star")["score"] == 1.0


@pytest.mark.parametrize(
    ("said", "expected", "score"),
    [
        ("104", "100", 1.0),
        ("106", "100", 0.0),
        ("95", "100", 1.0),
        ("12%", "0.12", 1.0),
        ("12.5%", "12%", 1.0),
        ("-100", "100", 0.0),
        ("0", "0", 1.0),
        ("0.001", "0", 0.0),
        ("Yes", "yes", 1.0),
        ("China ", "china", 1.0),
        ("twelve", "12", 0.0),
        ("nan", "12", 0.0),
    ],
)
def test_relaxed_accuracy_lets_numbers_be_off_by_a_twentieth(said, expected, score):
    assert RelaxedAccuracy().judge(sample(expected), said)["score"] == score


def test_anls_is_the_similarity_to_the_nearest_reference(absent):
    needs("rapidfuzz", absent)
    assert anls("Hello  World", ["hello world", "x"]) == 1.0
    assert anls("hello warld", ["hello world"]) == pytest.approx(1 - 1 / 11)
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abcd", ["axyz"]) == 0.0
    assert anls("", ["abc"]) == 0.0


def test_yes_and_no_are_read_as_pope_reads_them():
    judged = [
        ("yes", "Yes, there is.", 1.0),
        ("yes", "No, there is none", 0.0),
        ("no", "There is not a dog", 1.0),
        ("no", "Yes. No.", 0.0),  # the first sentence counts
        ("No.", "no", 1.0),
    ]
    rows = []
    for answer, said, score in judged:
        row = YesNo().judge(sample(answer), said)
        assert row["score"] == score, said
        rows.append(row | {"kind": "", "variant": "true"})
    values = YesNo().totals(rows, TRUE)
    assert values == {"accuracy": 0.6, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_share": 0.4}
    assert set(YesNo().totals(rows, BLANK)) == {f"{name}_blank" for name in values}
    none = [YesNo().judge(sample("no"), "no") | {"kind": "", "variant": "true"}]
    assert YesNo().totals(none, TRUE)["f1"] == 0.0
    assert "expected yes or no" in (YesNo().unfit(sample("red")) or "")


CHOICES = ("a dog", "a cat", "a red cat", "Paris")


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("a cat", "a cat"),
        ("A Cat.", "a cat"),
        ("it is Paris, I think", "Paris"),
        ("either a dog or Paris", None),
        ("A parrot", None),
        ("The answer is a parrot", None),
        ("B", None),
        ("(C)", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_a_said_choice_is_known_by_its_text_or_alone(said, chosen):
    assert chosen_of(said, CHOICES) == chosen
    assert SaidChoice().judge(sample("a cat", choices=CHOICES), said)["score"] == float(chosen == "a cat")


ANIMALS, COLOURS, VITAMINS = ("cat", "dog"), ("blue", "red", "green"), ("vitamin C", "vitamin A", "iron")


@pytest.mark.parametrize("letters", [False, True])
@pytest.mark.parametrize(
    ("said", "choices", "chosen"),
    [
        ("a dog", ANIMALS, "dog"),
        ("A dog.", ANIMALS, "dog"),
        ("The answer is a dog", ANIMALS, "dog"),
        ("Answer: A dog", ANIMALS, "dog"),
        ("A red car", COLOURS, "red"),
        ("it is vitamin A.", VITAMINS, "vitamin A"),
        ("The answer is A-frame", ANIMALS, None),
        ("I see a horse", ANIMALS, None),
    ],
)
def test_an_article_is_no_letter(said, choices, chosen, letters):
    assert chosen_of(said, choices, letters) == chosen


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("B", "a cat"),
        ("B.", "a cat"),
        ("**B**", "a cat"),
        ("(C)", "a red cat"),
        ("[C] it is", "a red cat"),
        ("B. a cat", "a cat"),
        ("B) A dog", "a cat"),  # what is said first counts
        ("The answer is D.", "Paris"),
        ("The answer is A because it barks", "a dog"),
        ("The correct option is: (B) because a dog barks", "a cat"),
        ("Answer: A", "a dog"),
        ("ANSWER: **D**", "Paris"),
        ("not (A), (B) nor (C). Answer: D", "Paris"),
        ("it is B, I think", "a cat"),
        ("it is Paris, I think", "Paris"),
        ("b", None),
        ("A, B", None),
        ("(A) or (B)", None),
        ("Z", None),
    ],
)
def test_a_letter_that_was_shown_is_a_capital_that_stands_alone(said, chosen):
    assert chosen_of(said, CHOICES, letters=True) == chosen
    one = sample("a cat", choices=CHOICES)
    assert SaidChoice(letters=True).judge(one, said)["score"] == float(chosen == "a cat")


def test_choices_that_are_letters_are_told_as_letters():
    letters = ("B", "A")
    assert [chosen_of(said, letters) for said in ("a", "A.", "(B)", "The answer is B", "a dog", "A dog")] == [
        *("A", "A", "B", "B", None, None)
    ]


def test_choices_are_listed_where_a_letter_is_asked_for():
    one = sample("a cat", choices=CHOICES)
    assert SaidChoice().asked(one) is one
    listed = SaidChoice(letters=True).asked(one)
    assert listed.question == f"what is it?\nA. a dog\nB. a cat\nC. a red cat\nD. Paris\n{INSTRUCTION}"
    assert listed.answer == one.answer
    assert "has no choices" in (SaidChoice().unfit(sample()) or "")


def test_the_likeliest_choice_goes_by_the_mean_and_by_the_sum():
    task, one = LikeliestChoice(), sample("a long one", choices=("short", "a long one"))
    readings = {"short": Reading(-1.0, False, "x", 1), "a long one": Reading(-0.5, False, "x", 4)}
    assert task.metric(object()).judge(one, readings).score == 1.0
    assert task.more(one, readings) == {"score_sum": 0.0}
    rows = [{"score": 1.0, "score_sum": 0.0, "kind": "", "chance": 0.5}]
    assert task.totals(rows, TRUE) == {"accuracy": 1.0, "chance": 0.5, "accuracy_sum": 0.0}


def test_perplexity_is_over_all_tokens():
    rows = [{"loss": 1.0, "tokens": 3}, {"loss": 2.0, "tokens": 1}]
    assert Perplexity().totals(rows, TRUE) == {"perplexity": pytest.approx(math.exp(1.25)), "loss": 1.25}
    assert Perplexity().more(sample(), {"red": Reading(-1.0, True, "red", 2)}) == {"tokens": 2}


CAPTIONS = [
    ("a red star on a table", ["a red star on a table", "a star"]),
    ("a dog runs", ["a brown dog runs through grass", "the dog is running", "a dog runs fast"]),
    ("nothing at all", ["two cats asleep"]),
]


def caption_rows(task):
    return [
        {"kind": "", "variant": "true", "prediction": said, **task.judge(sample(refs[0], references=refs), said)}
        for said, refs in CAPTIONS
    ]


def test_bleu_is_that_of_coco_over_the_whole_set(absent):
    needs("sacrebleu", absent)
    needs("pycocoevalcap", absent)
    from pycocoevalcap.bleu.bleu import Bleu as Published

    rows = caption_rows(Bleu())
    references = {i: refs for i, (_, refs) in enumerate(CAPTIONS)}
    said = {i: [one] for i, (one, _) in enumerate(CAPTIONS)}
    expected = Published(4).compute_score(references, said, verbose=0)[0][3]
    assert Bleu().totals(rows, TRUE) == {"bleu": pytest.approx(expected)}
    assert 0 < expected < 1
    assert rows[0]["score"] == pytest.approx(1.0)


def test_bleu_knows_no_capitals_and_no_punctuation(absent):
    needs("sacrebleu", absent)
    one = sample("a dog runs on the green grass", references=["a dog runs on the green grass"])
    for said in ("A dog runs on the green grass", "a dog runs, on the green grass."):
        row = {"kind": "", "variant": "true", "prediction": said, **Bleu().judge(one, said)}
        assert row["score"] == pytest.approx(1.0)
        assert Bleu().totals([row], TRUE) == {"bleu": pytest.approx(1.0)}


@pytest.mark.parametrize("scores", [(0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.2, 0.9), (0.0, 0.0, 0.0, 1.0, 1.0)])
def test_an_interval_stays_within_the_scores_there_are(scores):
    from beni.evaluate import _summary

    rows = [
        {"id": str(i), "cluster": "", "kind": "", "variant": "true", "score": score} for i, score in enumerate(scores)
    ]
    low, high = _summary(ExactMatch(), rows, {}, len(rows))["intervals"]["exact_match"]
    assert 0.0 <= low < sum(scores) / len(scores) < high <= 1.0
    assert low == 0.0 or high == 1.0
    tenfold = [row | {"score": 10 * row["score"]} for row in rows]
    assert _summary(Cider(), tenfold, {}, len(rows))["intervals"]["cider"] == pytest.approx([10 * low, 10 * high])


def test_cider_tells_good_captions_from_others(absent):
    needs("pycocoevalcap", absent)
    rows = Cider().complete(caption_rows(Cider()))
    assert rows[0]["score"] > rows[1]["score"] > rows[2]["score"] == 0.0
    assert means(Cider(), rows, BLANK)["cider_blank"] == pytest.approx(sum(row["score"] for row in rows) / 3)
    with pytest.raises(DataError, match="there is 1"):
        Cider().complete(rows[:1])


def test_every_task_of_the_registry_is_there_and_takes_its_fields():
    for name in TASKS:
        assert task_of([f"task={name}"])[0] == name
    assert task_of([])[0] == "run"
    name, task = task_of(["task=relaxed", "task.tolerance=0.1", "task.new_tokens=8"])
    assert (name, task) == ("relaxed", RelaxedAccuracy(new_tokens=8, tolerance=0.1))
    assert task_of(["task=exact", "task.ignore_case=true"])[1] == ExactMatch(ignore_case=True)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["task=vqav2"], "task=vqav2, expected one of run, exact"),
        (["task=exact", "task.tolerance=1"], "task.tolerance is no field of task=exact, which has task.new_tokens"),
        (["task=exact", "task.ignore_case=3"], "task.ignore_case=3, expected true or false"),
        (["task=exact", "task.new_tokens=true"], "task.new_tokens=true, expected a whole number of at least 1"),
        (["task=exact", "task.new_tokens=0"], "task.new_tokens=0, expected a whole number of at least 1"),
        (["task=relaxed", "task.tolerance=-1"], "task.tolerance=-1, expected a finite number of at least 0"),
        (["task=relaxed", "task.tolerance=.nan"], "fix: set task.tolerance=0.05"),
        (["task=relaxed", "task.tolerance=.inf"], "task.tolerance=.inf, expected a finite number"),
        (["task=anls", "task.threshold=1.5"], "task.threshold=1.5, expected a number of at least 0 and at most 1"),
        (["task=anls", "task.threshold=.nan"], "task.threshold=.nan, expected a number"),
        (["task=anls", "task.threshold=["], "task.threshold=[, expected a number"),
        (["task=anls", "task.threshold=2026-02-30"], "task.threshold=2026-02-30, expected a number"),
        (["task=anls", "task.threshold="], "task.threshold=, expected a number"),
        (["task=perplexity", "task.x=1"], "which has no fields"),
    ],
)
def test_tasks_and_fields_that_are_not_there_are_refused(overrides, error):
    with pytest.raises(ConfigError) as refused:
        task_of(overrides)
    assert error in str(refused.value)
