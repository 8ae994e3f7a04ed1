"""Transformations by hand: how they are written, and when they are asked for. No engine: its futures are given here."""

import threading
import time
from concurrent.futures import Future

import pytest

from gyges import EngineConfig
from gyges.engine.by_hand import ByHand, HandCommand, check_degrees, check_devices, degrees_of, parse_command
from gyges.engine.transformer import TransformationReport
from gyges.errors import EngineError, UserError
from gyges.transform.plan import PlanImpossible

DEADLINE_S = 20


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("5s merge 0,1,2,3", HandCommand(5.0, "merge", (0, 1, 2, 3), (4,))),
        ("  1.5 MERGE  0-3 ", HandCommand(1.5, "merge", (0, 1, 2, 3), (4,))),
        ("250ms merge 4,2", HandCommand(0.25, "merge", (4, 2), (2,))),
        ("2m split 0-1,5,7 tp2,tp1,tp1", HandCommand(120.0, "split", (0, 1, 5, 7), (2, 1, 1))),
        ("0s split 0,1,2,3 2xtp2", HandCommand(0.0, "split", (0, 1, 2, 3), (2, 2))),
    ],
)
def test_a_command_is_read_and_written_so_that_it_can_be_read_again(text, command):
    assert parse_command(text) == command
    assert parse_command(str(command)) == command


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("merge 0,1", "2 words"),
        ("5s merge 0,1 and 2", "5 words"),
        ("soon merge 0,1", "'soon' is no time"),
        ("5h merge 0,1", "'5h' is no time"),
        ("-1s merge 0,1", "'-1s' is no time"),
        ("5s join 0,1", "'join' is neither merge nor split"),
        ("5s merge 0,one", "'one' is no device"),
        ("5s merge 0,,1", "'' is no device"),
        ("5s merge 0,1,0", "names a device twice"),
        ("5s merge 3-3", "fewer than two devices"),
        ("5s merge 0-1 tp2", "leave out 'tp2'"),
        ("5s split 0-2", "tp1,tp1,tp1"),
        ("5s split 0-3 tp2,tp1", "takes 3 devices, and 0-3 names 4"),
        ("5s split 0-1 tp2", "a split makes several instances"),
        ("5s split 0-1 two", "'two'"),
    ],
)
def test_what_cannot_be_read_is_said(text, said):
    with pytest.raises(UserError) as caught:
        parse_command(text)
    assert said in str(caught.value)


def test_what_a_host_can_never_do_is_said_before_the_run():
    commands = [parse_command("1s merge 0-3"), parse_command("2s split 0-3 tp2,tp1,tp1")]
    assert degrees_of(commands) == (1, 2, 4)
    host = EngineConfig(instances=(1, 1, 1, 1), tp_degrees=(1, 2, 4))
    check_degrees(commands, host)
    check_devices(commands, 4)
    with pytest.raises(UserError, match=r"needs TP2.*\(TP1, TP4\); give --tp-degrees 1,2,4"):
        check_degrees(commands, host.with_(tp_degrees=(1, 4)))
    with pytest.raises(UserError, match=r"names device 3, and the last one is 2: .*--devices 4"):
        check_devices(commands, 3)


class Engine:
    """Answers with what it was told to; records what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.news = list(answers), [], threading.Condition()
        self.open: list[Future] = []

    def merge(self, devices, cause="by hand"):
        return self._ask(("merge", devices))

    def split(self, devices, degrees, cause="by hand"):
        return self._ask(("split", devices, degrees))

    def _ask(self, what):
        future: Future = Future()
        with self.news:
            self.asked.append(what)
            answer = self.answers.pop(0) if self.answers else None
            if answer is None:
                self.open.append(future)
            elif isinstance(answer, TransformationReport):
                future.set_result(answer)
            elif answer == "down":
                raise EngineError("the engine is closed")
            else:
                future.set_exception(answer)
            self.news.notify_all()
        return future

    def wait_for(self, count):
        with self.news:
            assert self.news.wait_for(lambda: len(self.asked) >= count, DEADLINE_S), self.asked


def report(at: float = 0.0) -> TransformationReport:
    return TransformationReport("merge", (0, 1), (1, 1), (2,), "by hand", True, at, at + 1, at + 2)


def by_hand(engine, *texts, timeout=DEADLINE_S) -> ByHand:
    made = ByHand(engine, [parse_command(text) for text in texts], timeout)
    made.zero = time.monotonic()
    made.start(made.zero)
    return made


def test_without_commands_there_is_no_thread():
    quiet = by_hand(Engine())
    quiet.stop(wait=True)
    assert quiet.outcomes() == []


def test_what_cannot_be_done_yet_is_tried_until_it_works_and_the_reason_is_kept():
    engine = Engine(PlanImpossible("a long request runs"), PlanImpossible("a long request still runs"), report())
    running = by_hand(engine, "0s split 0,1 tp1,tp1")
    engine.wait_for(3)
    running.stop(wait=True)
    (outcome,) = running.outcomes()
    assert (outcome.state, outcome.attempts, outcome.reason) == ("done", 3, "a long request still runs")
    assert engine.asked == [("split", (0, 1), (1, 1))] * 3
    assert outcome.end_s == pytest.approx(2 - running.zero)


def test_one_that_never_becomes_possible_says_so_at_the_end():
    class Never(Engine):
        def _ask(self, what):
            self.answers = [PlanImpossible("a long request runs")]
            return super()._ask(what)

    engine = Never()
    running = by_hand(engine, "0s split 0,1 tp1,tp1")
    engine.wait_for(2)
    running.stop(wait=True)
    (outcome,) = running.outcomes()
    assert outcome.state == "not done"
    assert f"{outcome.attempts} attempts until the run ended: a long request runs" in outcome.reason
    assert running.outcomes()[0].reason == outcome.reason


def test_nonsense_is_refused_once_and_failures_are_told():
    engine = Engine(UserError("no such instance"), EngineError("worker 1 died"), "down")
    running = by_hand(engine, "0s merge 0,1", "0s merge 2,3", "0s merge 4,5")
    engine.wait_for(3)
    running.stop(wait=True)
    assert [(o.state, o.reason) for o in running.outcomes()] == [
        ("refused", "no such instance"),
        ("failed", "worker 1 died"),
        ("failed", "the engine is closed"),
    ]


def test_commands_on_the_same_devices_take_turns_and_others_do_not_wait():
    engine = Engine()
    running = by_hand(engine, "0s merge 0,1", "0s split 1,0 tp1,tp1", "0s merge 2,3")
    engine.wait_for(2)
    assert engine.asked == [("merge", (0, 1)), ("merge", (2, 3))]
    engine.open[0].set_result(report())
    engine.wait_for(3)
    assert engine.asked[2] == ("split", (1, 0), (1, 1))
    for future in engine.open[1:]:
        future.set_result(report())
    running.stop(wait=True)
    assert [o.state for o in running.outcomes()] == ["done"] * 3


def test_the_end_of_the_run_waits_for_what_is_under_way_but_not_if_interrupted():
    engine = Engine()
    running = by_hand(engine, "0s merge 0,1", "3600s split 0,1 tp1,tp1")
    engine.wait_for(1)
    threading.Timer(0.05, engine.open[0].set_result, [report()]).start()
    running.stop(wait=True)
    assert [(o.state, o.reason) for o in running.outcomes()] == [
        ("done", ""),
        ("not done", "the run ended before its turn"),
    ]
    engine = Engine()
    running = by_hand(engine, "0s merge 0,1")
    engine.wait_for(1)
    running.stop(wait=False)
    (outcome,) = running.outcomes()
    assert (outcome.state, outcome.attempts) == ("not done", 1)
    assert "under way" in outcome.reason


def test_an_engine_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("gyges.engine.by_hand._GRACE_S", 0.0)
    engine = Engine()
    running = by_hand(engine, "0s merge 0,1", timeout=0.1)
    engine.wait_for(1)
    running.stop(wait=True)
    (outcome,) = running.outcomes()
    assert outcome.state == "failed"
    assert "no answer within 0.1 s" in outcome.reason
