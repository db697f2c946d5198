from collections import Counter

import pytest

import foveate as fv
from foveate.embedded import TASKS
from foveate.eval.held_out import APART, check_tasks, questions


def test_every_task_is_asked_and_no_question_twice():
    asked = questions(TASKS, 120)
    assert set(Counter(one.task for one in asked)) == set(TASKS)
    assert len({one.key for one in asked}) == len(asked) == 120
    assert [one.picture for one in asked] == sorted(one.picture for one in asked)


def test_a_seed_gives_the_same_questions_and_another_one_other_pictures():
    first, again, other = questions(TASKS[:2], 8), questions(TASKS[:2], 8), questions(TASKS[:2], 8, (3,))
    assert first == again
    assert not {one.picture for one in first} & {one.picture for one in other}


def test_tasks_keep_their_order_and_wrong_ones_are_refused_with_the_list():
    assert check_tasks(()) == TASKS
    assert check_tasks(("count", "colour")) == ("colour", "count")
    with pytest.raises(fv.UnknownNameError, match=r"'smell'.*colour, shape"):
        check_tasks(("smell",))


def test_several_seeds_share_the_questions():
    asked = questions(TASKS[:2], 8, (3, 0, 7))
    assert Counter(one.picture // APART for one in asked) == {3: 3, 0: 3, 7: 2}
    assert asked[:3] == questions(TASKS[:2], 3, (3,))
