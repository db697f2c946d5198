"""Answers as they come: whole at the end, each of a look of its own, and never with a file of the machine."""

import pytest

import foveate as fv
from foveate.app.replies import FULL, Said, ask, cards, check_names, least_percent
from foveate.errors import BudgetError, SettingError, UnknownNameError
from foveate.naming import method_of
from foveate.registry import family_for, methods, takes_budget
from tests.app.conftest import asking

QUESTION = "What is this ?"


def replies(vlm, subject, name=FULL, retention=0.4):
    return list(ask(vlm, subject, QUESTION, name, asking(name, retention, 4)))


def test_the_last_reply_is_what_asking_gives(vlm, subject):
    whole = vlm.ask(subject.medium, QUESTION, method="v2drop", retention=0.4, max_new_tokens=4)
    *growing, last = replies(vlm, subject, "v2drop")
    assert growing
    assert all(last.text.startswith(reply.text.rstrip()) for reply in growing)
    assert last.name == "v2drop"
    assert last.text == whole.text
    assert last.answer.tokens == whole.tokens
    assert last.answer.retention == whole.retention
    assert 0 < last.first < last.seconds


def test_the_full_model_drops_nothing_also_as_a_graph(vlm, subject, graphs_on_cpu):
    graphed = fv.VLM(vlm.model, vlm.processor, vlm.name, cuda_graphs=True)
    for one in (vlm, graphed):
        assert replies(one, subject)[-1].dropping is None
        last = replies(one, subject, "v2drop")[-1]
        assert last.dropping is last.answer


def test_every_time_is_that_of_a_first_look(vlm, subject):
    runs = []
    hook = family_for(vlm.model).tower.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        assert replies(vlm, subject, "v2drop")[-1].answer.looked == 0
    hook.remove()
    assert len(runs) == 2


def test_a_question_without_words_and_a_sixth_method_are_refused():
    with pytest.raises(SettingError, match="question"):
        check_names("", [])
    assert len(check_names("?", list("abcde"))) == 5
    with pytest.raises(SettingError, match="got 6"):
        check_names("?", list("abcdef"))


def test_no_budget_can_be_chosen_that_a_method_cannot_meet(vlm, subject):
    tokens = vlm.prepare(subject.medium, "?").vision_tokens
    names = [name for name, kind in methods().items() if takes_budget(kind)]
    for name in names:
        percent = least_percent(vlm, [name], subject)
        vlm.method_for(name, tokens, retention=percent / 100)
        if percent > 1:
            with pytest.raises(BudgetError):
                vlm.method_for(name, tokens, retention=(percent - 1) / 100)
    assert least_percent(vlm, names, subject) == max(least_percent(vlm, [name], subject) for name in names)
    assert least_percent(vlm, [], subject) == 1
    with pytest.raises(UnknownNameError, match="fether"):
        least_percent(vlm, ["fether"], subject)


@pytest.mark.parametrize("name", ["fether", "visionzip+fether", "v2drop/nosuch"])
def test_a_visitor_who_writes_a_wrong_name_is_sent_to_the_box_and_not_to_a_shell(vlm, subject, name):
    (reply,) = replies(vlm, subject, name)
    assert "list of methods" in reply.error
    assert "run" not in reply.error


# -- second looks -----------------------------------------------------------------------------------------------------


def test_a_second_look_says_in_its_card_how_sure_it_was(vlm, subject):
    for sure, words in ((1.0, "asked again"), (0.0, "sure ")):
        look = fv.SecondLook(method=method_of("divprune", tokens=4), sure=sure)
        (reply,) = ask(vlm, subject, QUESTION, look.name, {"method": look, "max_new_tokens": 4})
        assert reply.answer.again == (sure == 1.0)
        expected = vlm.ask(subject.medium, QUESTION, method=look, max_new_tokens=4)
        assert reply.text == expected.text
        value = f"{expected.confidence:.2f}".removeprefix("0")
        assert f"sure {value}" in cards([Said(FULL), reply])
        assert words in cards([Said(FULL), reply])


def test_a_visitor_names_a_second_look_that_is_offered_and_no_file(tmp_path):
    look = fv.SecondLook(method=method_of("divprune", tokens=4), sure=0.5)
    look.save(tmp_path / "sure.json")
    assert check_names("?", [look.name, "v2drop"], {look.name: look}) == [look.name, "v2drop"]
    with pytest.raises(SettingError, match="names a file"):
        check_names("?", [str(tmp_path / "sure.json")], {look.name: look})
