"""A lock that threads get in the order in which they ask."""

import threading

import pytest

from foveate.core.turns import Turn
from tests.setups.running import until


def start(work, *args):
    thread = threading.Thread(target=work, args=args, daemon=True)
    thread.start()
    return thread


def test_threads_get_it_in_the_order_in_which_they_ask_and_its_holder_does_not_overtake_them():
    turn, order, threads = Turn(), [], []

    def work(number):
        with turn:
            order.append(number)

    turn.acquire()
    for number in range(4):
        threads.append(start(work, number))
        until(lambda: len(turn._queue) == len(threads))
    turn.release()
    work("again")
    assert order == [0, 1, 2, 3, "again"]
    assert turn.owner is None


def test_its_holder_may_take_it_again():
    turn = Turn()
    with turn, turn:
        assert turn.acquire(blocking=False)
        turn.release()
        taken = []
        start(lambda: taken.append(turn.acquire(blocking=False))).join(60)
        start(lambda: taken.append(turn.acquire(timeout=0.01))).join(60)
        start(lambda: taken.append(turn.acquire(gives_up=lambda: True))).join(60)
        assert taken == [False, False, False]
    assert not turn._queue
    with pytest.raises(RuntimeError, match="another thread"):
        turn.release()


def test_a_thread_that_gives_up_leaves_the_queue():
    turn, tired, taken = Turn(), threading.Event(), []
    with turn:
        thread = start(lambda: taken.append(turn.acquire(gives_up=tired.is_set)))
        until(lambda: turn._queue)
        tired.set()
        thread.join(60)
    assert taken == [False]
    assert turn.acquire(blocking=False)


def test_an_error_while_waiting_leaves_the_queue_and_takes_nothing():
    turn, failed = Turn(), []

    def work():
        with pytest.raises(ZeroDivisionError):
            turn.acquire(gives_up=lambda: bool(failed and 1 / 0))
        failed.append(True)

    with turn:
        thread = start(work)
        until(lambda: turn._queue)
        failed.append(True)
        thread.join(60)
    assert len(failed) == 2
    assert turn.acquire(blocking=False)
