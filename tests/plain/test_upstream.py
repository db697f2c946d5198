"""Settings of other libraries: changed by any number of threads, and restored by the last."""

import threading
import warnings

from foveate.plain.upstream import Shared, ignored


def overlapping(first, second, meanwhile=lambda: None):
    """Two threads: the second enters before the first leaves, and leaves last."""
    inside = threading.Barrier(2, timeout=10)
    left = threading.Event()

    def begin():
        with first:
            inside.wait()
        left.set()

    def follow():
        with second:
            inside.wait()
            assert left.wait(10)
            meanwhile()

    threads = [threading.Thread(target=call) for call in (begin, follow)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def test_the_last_to_leave_restores_a_setting_and_keeps_what_others_set():
    values = {"limit": 3}
    shared = Shared(lambda: values["limit"], lambda value: values.update(limit=value), 7)
    seen = []
    overlapping(shared, shared, lambda: seen.append(values["limit"]))
    assert (seen, values) == ([7], {"limit": 3})
    overlapping(shared, shared, lambda: values.update(limit=5))
    assert values == {"limit": 5}


def test_a_warning_is_ignored_until_the_last_thread_leaves_and_no_other_filter_is_touched():
    few, all_of_them = ignored(FutureWarning), ignored(Warning, "tests")
    before = list(warnings.filters)
    overlapping(few, few, lambda: warnings.warn("future", FutureWarning, stacklevel=1))
    overlapping(few, all_of_them, lambda: warnings.warn("any", UserWarning, stacklevel=1))
    assert warnings.filters == before
    overlapping(all_of_them, few, lambda: warnings.simplefilter("always", BytesWarning))
    assert [line for line in warnings.filters if line not in before] == [("always", None, BytesWarning, None, 0)]
    warnings.filters[:] = before
