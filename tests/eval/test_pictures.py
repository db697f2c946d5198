from collections import Counter

import pytest

import foveate as fv
from foveate.embedded.questions import TASKS
from foveate.eval.embedded.pictures import check_tasks, questions


def test_every_task_is_asked_and_no_question_twice():
    asked = questions(TASKS, 120)
    assert set(Counter(one.question.task for one in asked)) == set(TASKS)
    assert len({one.key for one in asked}) == len(asked) == 120
    assert [one.picture for one in asked] == sorted(one.picture for one in asked)


def test_a_seed_gives_the_same_questions_and_another_one_other_pictures():
    first, again, other = questions(TASKS[:2], 8), questions(TASKS[:2], 8), questions(TASKS[:2], 8, seed=3)
    assert first == again
    assert not {one.picture for one in first} & {one.picture for one in other}


def test_tasks_keep_their_order_and_wrong_ones_are_refused_with_the_list():
    assert check_tasks(()) == TASKS
    assert check_tasks(("count", "colour")) == ("colour", "count")
    with pytest.raises(fv.UnknownNameError, match=r"'smell'.*colour, shape"):
        check_tasks(("smell",))
    with pytest.raises(fv.SettingError, match="got 0 and 0"):
        questions(TASKS, 0)
    with pytest.raises(fv.SettingError, match="got 5 and -1"):
        questions(TASKS, 5, seed=-1)
