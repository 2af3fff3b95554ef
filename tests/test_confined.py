import threading
import time

import pytest

from tune_lung.confined import Confined, ConfinedError

BOUNDS = {"memory_bytes": 10**8, "cpu_seconds": 1, "most_bytes": 1000}

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def child():
    with Confined("tests.confined_answers") as confined:
        yield confined


def test_a_child_answers_one_question_after_another(child):
    first, second = child.ask({}, **BOUNDS)[0], child.ask({}, **BOUNDS)[0]
    assert first["pid"] == second["pid"]
    assert child.ask({"bytes": 1000}, **BOUNDS) == ({}, bytes(1000))


def test_a_child_imports_nothing_from_a_working_folder(child, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('a stranger's')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    told = child.ask({}, **BOUNDS)[0]
    assert "" not in told["path"]
    assert told["folder"] == "/"


@pytest.mark.parametrize(("question", "is_over_bounds"), [({"think": True}, True), ({"abort": True}, False)])
def test_a_child_that_takes_too_long_or_ends_is_told_of_and_another_follows(child, question, is_over_bounds):
    pid = child.ask({}, **BOUNDS)[0]["pid"]
    with pytest.raises(ConfinedError, match="ended with status") as caught:
        child.ask(question, **BOUNDS)
    assert caught.value.is_over_bounds is is_over_bounds
    assert child.ask({}, **BOUNDS)[0]["pid"] != pid


def test_a_child_gets_no_more_memory_than_it_may_take(child):
    assert child.ask({"take": 5 * 10**7}, **BOUNDS)[0] == {"taken": 5 * 10**7}
    with pytest.raises(ConfinedError, match="more memory than is allowed") as caught:
        child.ask({"take": 2 * 10**8}, **BOUNDS)
    assert caught.value.is_over_bounds


def test_a_child_that_gets_less_than_it_may_take_says_so(child):
    child.ask({"limit": 2 * 10**7}, **BOUNDS)
    with pytest.raises(ConfinedError, match="gives less memory or time than is allowed") as caught:
        child.ask({"take": 5 * 10**7}, **BOUNDS)
    assert caught.value.from_outside
    assert not caught.value.is_over_bounds


def test_where_the_system_does_not_say_what_memory_a_child_has_the_users_bound_alone_holds():
    with Confined("tests.confined_answers_without_proc") as child:
        assert child.ask({"take": 2 * 10**8}, **BOUNDS)[0] == {"taken": 2 * 10**8}
        child.ask({"limit": 2 * 10**7}, **BOUNDS)
        with pytest.raises(ConfinedError, match="more memory than is allowed"):
            child.ask({"take": 5 * 10**7}, **BOUNDS)


def test_a_child_that_gets_less_time_than_it_may_take_says_so(child):
    child.ask({"seconds": 5}, **BOUNDS)
    with pytest.raises(ConfinedError, match="gives less memory or time than is allowed") as caught:
        child.ask({}, **BOUNDS | {"cpu_seconds": 10})
    assert caught.value.from_outside


@pytest.mark.parametrize(
    ("question", "from_outside"), [({"think": True}, False), ({"abort": True}, False), ({"exit": 1}, True), ({"exit": 0}, True)]
)
def test_a_child_says_whether_its_end_came_from_outside(child, question, from_outside):
    with pytest.raises(ConfinedError, match="ended with status") as caught:
        child.ask(question, **BOUNDS)
    assert caught.value.from_outside is from_outside


def test_an_answer_that_is_too_large_is_not_taken(child):
    with pytest.raises(ConfinedError, match="1001 bytes, more than is allowed"):
        child.ask({"bytes": 1001}, **BOUNDS)


def test_a_child_is_ended_from_another_thread_and_no_other_starts(child):
    timer = threading.Timer(0.5, child.interrupt)
    timer.start()
    started = time.monotonic()
    with pytest.raises(ConfinedError, match="ended with status -9") as caught:
        child.ask({"sleep": True}, **BOUNDS)
    assert time.monotonic() - started < 30
    assert caught.value.from_outside
    with pytest.raises(ConfinedError, match="Interrupted"):
        child.ask({}, **BOUNDS)
    timer.join()
