"""Who gets which task, and whose results are taken: decided without any process."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from kpstore.errors import ExtractorError, KpstoreError, WorkersError
from kpstore.ingest import roster
from kpstore.ingest.doubts import Opinion
from kpstore.ingest.job import Doubts, Job
from kpstore.ingest.plan import OnDeath, PlannedVideo, Task, long_first
from kpstore.ingest.roster import Claim, Order, Roster, Work, Worker
from kpstore.ingest.sight import Look
from kpstore.ingest.worker import TaskResult
from tests.fakes import FakeExtractor, FakeSource, record

N_FRAMES = 10


WAIT_S = 300.0


def a_task(number: int) -> Task:
    start = N_FRAMES * number
    video = PlannedVideo(number, start, start + N_FRAMES, record(f"v{number}", N_FRAMES))
    return Task(number, (video,), 1000)


def a_roster(
    n_tasks: int = 1, fit: Iterable[str] = ("a", "b"), on_death: OnDeath = lambda _: None
) -> Roster:
    """A roster whose workers have proved themselves, each on a host of its own."""
    job = Job("run", FakeSource({}), FakeExtractor())
    tasks = [a_task(number) for number in range(n_tasks)]
    found = Roster(job, tasks, {}, on_death, wait_s=WAIT_S)
    for name in fit:
        found.enlist(f"{name}:1", name)
        found.workers[f"{name}:1"].state = "fit"
    return found


def orders_of(found: Roster, name: str) -> list[Order]:
    return [order for order in found.orders.values() if order.worker.name == name]


def answered(found: Roster, name: str) -> Order:
    """Close the first order of a worker."""
    return found.orders.pop(orders_of(found, name)[0].key)


def result(task: Task, doubts: Doubts) -> TaskResult:
    return TaskResult(task, None, {}, {}, {task.number: doubts} if doubts else {})


def claimed(found: Roster, doubts: Doubts, *, has_unread: bool = False) -> Claim:
    """Have the first worker answer its task with a result in which something failed.

    Another worker is asked about it with the next orders.
    """
    found.hand_out()
    order = answered(found, "a")
    assert isinstance(order.about, Work)
    claim = found.take(order, result(order.about.task, doubts), has_unread=has_unread)
    assert claim is not None
    found.hand_out()
    return claim


NO_DOUBTS = Doubts()
RAISED = Doubts(raised=frozenset({3}))
UNREAD = Doubts(unread=frozenset({3, 4}))


def test_every_fit_worker_gets_a_task_and_one_ahead_while_there_are_many() -> None:
    found = a_roster(n_tasks=9)
    found.enlist("c:1", "c")
    found.hand_out()
    found.hand_out()
    assert [len(orders_of(found, name)) for name in "abc"] == [2, 2, 0]
    few = a_roster(n_tasks=3)
    few.hand_out()
    assert [len(orders_of(few, name)) for name in "ab"] == [1, 1]


def test_a_new_worker_is_asked_once_and_admitted_if_it_has_no_flaws() -> None:
    found = a_roster(n_tasks=1, fit=())
    found.enlist("a:1", "a")
    found.enlist("b:1", "b")
    found.ask_for_proofs()
    found.ask_for_proofs()
    assert [order.about for order in found.orders.values()] == [None, None]
    found.judge(answered(found, "a").worker, [])
    found.judge(answered(found, "b").worker, ["other code"])
    assert [worker.state for worker in found.workers.values()] == ["fit", "out"]
    found.hand_out()
    assert len(orders_of(found, "a")) == 1


def test_what_a_worker_could_not_do_another_one_does() -> None:
    found = a_roster()
    found.hand_out()
    found.refused(answered(found, "a"), "its GPU is gone")
    found.hand_out()
    assert len(orders_of(found, "b")) == 1
    assert found.workers["a:1"].state == "out"


def test_a_task_that_always_loses_its_worker_is_recorded_as_failed() -> None:
    found = a_roster(fit=())
    for _ in range(roster.MAX_TRIES):
        assert found.taken == []
        found.enlist("a:1", "a")
        found.workers["a:1"].state = "fit"
        found.hand_out()
        found.lose("a:1")
    reason = found.taken[0].failures[0].video
    assert reason == f"its worker process died {roster.MAX_TRIES} times"
    assert found.orders == {}


def test_only_the_order_that_a_worker_was_at_may_have_killed_it() -> None:
    died_at: list[Task] = []
    found = a_roster(n_tasks=9, fit="a", on_death=died_at.append)
    found.hand_out()
    first, second = orders_of(found, "a")
    first.worker.at = first.key
    found.lose("a:1")
    assert isinstance(first.about, Work)
    assert isinstance(second.about, Work)
    assert (first.about.losses, first.about.deaths) == (1, 1)
    assert (second.about.losses, second.about.deaths) == (1, 0)
    assert died_at == [first.about.task]


def test_a_result_without_failures_is_taken() -> None:
    found = a_roster()
    found.hand_out()
    order = answered(found, "a")
    assert found.take(order, result(a_task(0), NO_DOUBTS), has_unread=False) is None
    assert [one.task.number for one in found.taken] == [0]


@pytest.mark.parametrize(("elsewhere", "is_taken"), [({3}, True), (set(), False)])
def test_frames_that_the_model_failed_at_are_tried_elsewhere(
    elsewhere: set[int], is_taken: bool
) -> None:
    found = a_roster()
    claim = claimed(found, RAISED)
    opinion = answered(found, "b")
    assert opinion.about is claim
    found.decide(opinion, Opinion({0: frozenset(elsewhere)}, {}))
    assert (len(found.taken), claim.worker.strikes) == ((1, 0) if is_taken else (0, 1))
    assert (found.claims, claim.worker.held) == ([], 0)
    found.hand_out()
    assert len(orders_of(found, "b")) == (not is_taken)


def test_without_another_worker_a_failure_is_taken_as_it_is() -> None:
    found = a_roster(fit="a")
    claimed(found, RAISED)
    assert len(found.taken) == 1


def test_a_failure_waits_for_a_worker_that_may_become_fit() -> None:
    found = a_roster(fit="a")
    found.enlist("b:1", "b")
    claimed(found, RAISED)
    found.hand_out()
    assert (found.taken, found.orders) == ([], {})
    found.workers["b:1"].state = "fit"
    found.hand_out()
    assert len(orders_of(found, "b")) == 1


@pytest.mark.parametrize(("driver", "is_taken"), [({3, 4}, True), ({4}, False)])
def test_what_a_worker_could_not_read_is_its_own_fault_if_the_driver_can(
    driver: set[int], is_taken: bool
) -> None:
    found = a_roster()
    claim = claimed(found, UNREAD, has_unread=True)
    assert found.orders == {}
    found.compare(claim, {0: Look("", frozenset(driver))})
    found.hand_out()
    assert len(found.taken) == is_taken
    assert claim.worker.strikes == (not is_taken)


def test_a_worker_with_two_strikes_is_left_out_with_all_that_it_holds() -> None:
    found = a_roster(n_tasks=9)
    doubtful = claimed(found, UNREAD, has_unread=True)
    assert roster.MAX_STRIKES == 2
    found.broken_off(answered(found, "a"), "RuntimeError: a bug")
    found.ask_for_proofs()
    assert doubtful.worker.state == "asked"
    found.broken_off(answered(found, "a"), "RuntimeError: a bug")
    assert doubtful.worker.state == "out"
    assert (orders_of(found, "a"), found.claims) == ([], [])
    assert doubtful.work.avoid == {"a:1"}


def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    found = a_roster()
    claimed(found, RAISED)
    found.enlist("c:1", "c")
    found.ask_for_proofs()
    late = orders_of(found, "c")[0].since + roster.OPINION_S + 1
    found.expire(late, {order.key for order in orders_of(found, "b")})
    assert found.workers["c:1"].state == "out"
    assert len(orders_of(found, "b")) == 1
    found.expire(late, ())
    assert orders_of(found, "b") == []
    found.hand_out()
    assert len(found.taken) == 1


def test_deaths_in_proof_end_a_run_only_without_a_fit_worker() -> None:
    notes: dict[str, str] = {}
    job = Job("run", FakeSource({}), FakeExtractor())
    found = Roster(job, [], notes, lambda _: None, wait_s=WAIT_S)
    found.enlist("a:1", "a")
    found.workers["a:1"].state = "fit"
    for number in range(2 * roster.MAX_TRIES):
        found.lost(Order(f"{number}", Worker(f"b:{number}", "b")))
    found.enlist("b:1", "b")
    found.ask_for_proofs()
    assert notes == {"b": "it died 3 times while it proved that it can work"}
    assert [worker.state for worker in found.workers.values()] == ["fit", "out"]
    found.workers.clear()
    with pytest.raises(WorkersError, match="workers died while they proved"):
        found.lost(Order("last", Worker("c:1", "c")))


@pytest.mark.parametrize(
    ("second", "error", "said"),
    [("no weights", ExtractorError, "^no weights$"), ("no GPU", WorkersError, "none of 2 workers")],
)
def test_what_all_workers_say_in_the_same_words_is_not_their_fault(
    second: str, error: type[KpstoreError], said: str
) -> None:
    found = a_roster()
    for name, reason in (("a", "no weights"), ("b", second)):
        found.hand_out()
        found.check_hope(0.0)
        found.refused(answered(found, name), reason, ExtractorError(reason))
    with pytest.raises(error, match=said):
        found.check_hope(0.0)


def test_long_videos_come_first_and_others_in_their_order() -> None:
    lengths = [4, 5, 30, 4, 6, 11, 5, 0, 40]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    tasks = [
        Task(number, (PlannedVideo(number, start, start + n, record(f"v{number}", n)),), 200)
        for number, (start, n) in enumerate(zip(starts, lengths, strict=True))
    ]
    assert [task.number for task in long_first(tasks)] == [8, 2, 5, 0, 1, 3, 4, 6, 7]
    assert long_first([]) == []


def test_workers_that_are_gone_are_waited_for_a_while() -> None:
    found = a_roster()
    found.lose("a:1")
    found.lose("b:1")
    found.check_hope(0.0)
    found.check_hope(WAIT_S - 1)
    with pytest.raises(WorkersError, match="all workers are gone, and none came back"):
        found.check_hope(WAIT_S)
