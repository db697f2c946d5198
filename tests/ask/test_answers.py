"""Every door to many questions: what memory lacks is halved, a picture with several questions is looked at once."""

import numpy as np
import pytest
import torch

import foveate as fv
from foveate.ask import answers
from foveate.eval.evaluation import evaluate_samples
from foveate.eval.plan import Plan
from foveate.runs.samples import SampleColumns, samples_in
from tests.ask.conftest import noise

QUESTIONS = ("What is this ?", "What colour is the dog ?", "How many are there ?", "Read the text .")
FEW = {"max_new_tokens": 3}


@pytest.fixture(scope="module")
def vlm(unwarned):
    return unwarned


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("pictures"), 3)


class Batches:
    """Counts the batches that go to the model; those of more than `most` questions lack memory."""

    def __init__(self, monkeypatch, most=99):
        self.sizes, self.shared = [], []
        answered = answers.answers_to

        def counted(loaded, prompts, *given, look=None, **options):
            if len(prompts) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(len(prompts))
            self.shared.append(look is not None)
            return answered(loaded, prompts, *given, look=look, **options)

        monkeypatch.setattr(answers, "answers_to", counted)


def ask_many(vlm, pictures, tmp_path):
    pairs = [(picture, question) for question in QUESTIONS for picture in pictures]
    return [answer.text for answer in vlm.ask_many(pairs, method="v2drop", batch_size=4, **FEW)]


def prefix_ask_many(vlm, pictures, tmp_path):
    prefix = vlm.look(pictures[0], method="v2drop")
    return [answer.text for answer in prefix.ask_many([*QUESTIONS, *QUESTIONS[::-1]], batch_size=4, **FEW)]


def eval_samples(vlm, pictures, tmp_path):
    path = tmp_path / "samples.csv"
    lines = [f"{picture},{question}" for picture in pictures[:2] for question in QUESTIONS]
    path.write_text("\n".join(["image,question", *lines]))
    plan = Plan(methods=("v2drop",), retention=(1 / 3,), baselines=False, cache=tmp_path / "kept", max_new_tokens=3)
    quality = evaluate_samples(vlm, samples_in(path, SampleColumns(), None, None), plan)
    return [row.accuracy.value for row in quality.rows]


@pytest.mark.parametrize("door", [ask_many, prefix_ask_many, eval_samples])
def test_a_lack_of_memory_halves_batches_and_changes_no_answer(door, vlm, pictures, tmp_path, monkeypatch):
    (tmp_path / "with room").mkdir()
    whole = Batches(monkeypatch)
    expected = door(vlm, pictures, tmp_path / "with room")
    assert max(whole.sizes) == 4
    halved = Batches(monkeypatch, most=1)
    assert door(vlm, pictures, tmp_path) == expected
    assert max(halved.sizes) == 1


def test_questions_about_one_picture_share_a_look_wherever_they_stand(vlm, pictures, tmp_path, monkeypatch):
    alone = [vlm.ask(one, q, method="v2drop", **FEW).text for q in QUESTIONS for one in pictures]
    batches = Batches(monkeypatch)
    with vlm.model.model.vision_tower.register_forward_pre_hook(lambda *_: batches.shared.append("look")):
        assert ask_many(vlm, pictures, tmp_path) == alone
    assert batches.shared.count("look") == 3
    assert batches.shared.count(True) == 3
    assert False not in batches.shared


def test_pictures_are_told_apart_by_what_they_show(vlm, monkeypatch):
    """One array, filled anew for each question, and a copy of it."""
    frame = np.zeros((96, 96, 3), np.uint8)

    def questions():
        for value in (0, 0, 200, 200):
            frame[:] = value
            yield (frame if value else frame.copy()), QUESTIONS[0]

    batches = Batches(monkeypatch)
    texts = [answer.text for answer in vlm.ask_many(questions(), **FEW)]
    assert batches.sizes == [2, 2]
    assert texts[0] == vlm.ask(np.zeros_like(frame), QUESTIONS[0], **FEW).text
    assert texts[2] == vlm.ask(np.full_like(frame, 200), QUESTIONS[0], **FEW).text


def test_a_method_that_reads_the_question_looks_once_at_a_picture_in_the_tower(vlm, pictures):
    seen = []
    layer = vlm.model.model.vision_tower.encoder.layers[0]
    with layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        together = list(vlm.ask_many([(pictures[0], question) for question in QUESTIONS], method="fastv", **FEW))
    assert seen == [1]
    assert [answer.text for answer in together] == [
        vlm.ask(pictures[0], question, method="fastv", **FEW).text for question in QUESTIONS
    ]


def test_with_beams_an_answer_shows_the_tokens_of_its_own_picture(vlm, pictures):
    beams = {"method": "divprune", "num_beams": 2, **FEW}
    many = list(vlm.ask_many([(picture, QUESTIONS[0]) for picture in pictures], **beams))
    for answer, picture in zip(many, pictures, strict=True):
        assert answer.show() == vlm.ask(picture, QUESTIONS[0], **beams).show()


def test_what_is_wrong_with_a_question_is_raised_at_its_place(vlm, pictures):
    replies = vlm.ask_many([(pictures[0], QUESTIONS[0]), ("missing.png", QUESTIONS[1]), (pictures[1], "")], **FEW)
    assert next(replies).text == vlm.ask(pictures[0], QUESTIONS[0], **FEW).text
    with pytest.raises(fv.InputError, match=r"missing\.png"):
        next(replies)


def test_questions_that_all_fail_are_told_before_the_last_is_read(vlm, monkeypatch):
    monkeypatch.setattr(answers, "WINDOW", 2)
    read = []

    def endless():
        while True:
            read.append(True)
            yield "missing.png", QUESTIONS[0]

    with pytest.raises(fv.InputError, match=r"missing\.png"):
        next(vlm.ask_many(endless(), batch_size=2))
    assert len(read) == 4
