"""The scheduler where something fails: a step, an admission, a callback, a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hmer.decode import DecodeRequest, EncodedImage, Scheduler, StepResult, decode_all
from hmer.errors import (
    BadParameter,
    BlankImage,
    Cancelled,
    InferenceFailed,
)
from hmer.vocab import EOS_ID
from tests.decode_client import Client, check_books
from tests.decode_fixtures import ScriptedStep, script

A, B, C = 5, 6, 7


class Failing(ScriptedStep):
    """Fails in the step or at admission when told to."""

    step_error: Exception | None = None
    admit_error: Exception | None = None
    release_error: Exception | None = None
    damage: Callable[[StepResult], StepResult] | None = None

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        super().admit(slot, encoded)
        if self.admit_error is not None:
            raise self.admit_error

    def release(self, slot: int) -> None:
        super().release(slot)
        if self.release_error is not None:
            raise self.release_error

    def step(self, slots: Sequence[int]) -> StepResult:
        result = super().step(slots)
        if self.step_error is not None:
            raise self.step_error
        return self.damage(result) if self.damage is not None else result


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("out of memory"), InferenceFailed),
        (BlankImage("The picture is blank."), BlankImage),
    ],
)
def test_a_failing_step_fails_those_in_flight_and_nobody_else(
    error: Exception, kind: type[Exception]
) -> None:
    step = Failing(slots=2)
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    client.ask("a", *[A] * 5)
    client.ask("b", *[A] * 5)
    client.ask("waits", B)
    scheduler.run_once()
    step.step_error = error
    scheduler.run_once()
    step.step_error = None
    errors = [client.outcomes[name].error for name in ("a", "b")]
    assert [type(found) for found in errors] == [kind, kind]
    assert str(error) in str(errors[0])
    assert errors[0] is not errors[1]
    assert client.outcomes["a"].ids == (A,)
    while scheduler.run_once():
        pass
    assert client.outcomes["waits"].ids == (B, EOS_ID)
    assert scheduler.stats().failed == 2
    check_books(scheduler)


def test_nan_fails_its_row_alone() -> None:
    def nan_in_the_first_row(result: StepResult) -> StepResult:
        result.scores[0, 1] = np.nan
        return result

    step = Failing(slots=2, k=2)
    step.damage = nan_in_the_first_row
    scheduler = Scheduler(step, max_queue=0)
    client = Client(scheduler)
    client.ask("broken", A, B, C)
    client.ask("sound", A)
    scheduler.run_once()
    outcome = client.outcomes["broken"]
    assert isinstance(outcome.error, InferenceFailed)
    assert "nan" in str(outcome.error)
    assert outcome.ids == (A,)
    assert client.outcomes["sound"].ids == (A, EOS_ID)
    assert scheduler.stats().failed == 1


def test_nan_after_the_end_is_nobodys_business() -> None:
    def nan_at_the_end(result: StepResult) -> StepResult:
        result.scores[:, 3] = np.nan
        return result

    step = Failing(k=4)
    step.damage = nan_at_the_end
    (outcome,) = decode_all(step, [script(A, B)], 10)
    assert outcome.reason == "eos"


def test_a_step_of_the_wrong_shape_is_an_error() -> None:
    step = Failing(k=4)
    step.damage = lambda result: StepResult(result.tokens[:, :2], result.scores)
    (outcome,) = decode_all(step, [script(A, B)], 10)
    assert isinstance(outcome.error, InferenceFailed)
    assert "shape" in str(outcome.error)


def test_a_failing_admission_fails_that_request_alone() -> None:
    step = Failing(slots=2)
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    client.ask("good", A, A, A)
    scheduler.run_once()
    step.admit_error = ValueError("bad shape")
    client.ask("bad", A)
    scheduler.run_once()
    step.admit_error = None
    client.ask("next", B)
    while scheduler.run_once():
        pass
    assert isinstance(client.outcomes["bad"].error, InferenceFailed)
    assert client.outcomes["good"].ids == (A, A, A, EOS_ID)
    assert client.outcomes["next"].ids == (B, EOS_ID)
    assert step.scripts == {}


def test_callbacks_that_raise_do_not_hurt_the_others() -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("broken callback")

    step = Failing(slots=4)
    step.release_error = RuntimeError("release")
    scheduler = Scheduler(step, max_queue=5)
    client = Client(scheduler)
    scheduler.submit(DecodeRequest(script(A), 10, on_done=broken))
    client.ask("asked", A, A, cancelled=broken)
    client.ask("streamed", A, A, on_tokens=broken)
    client.ask("good", A, B)
    while scheduler.run_once():
        pass
    assert isinstance(client.outcomes["asked"].error, Cancelled)
    assert isinstance(client.outcomes["streamed"].error, Cancelled)
    assert client.outcomes["good"].ids == (A, B, EOS_ID)
    check_books(scheduler)
    assert scheduler.stats().slots_in_use == 0


def test_tokens_are_streamed_without_eos() -> None:
    scheduler = Scheduler(ScriptedStep(k=2), max_queue=0)
    client = Client(scheduler)
    parts: list[tuple[list[int], list[float]]] = []
    client.ask("s", A, B, C, A, on_tokens=lambda ids, s: parts.append((list(ids), list(s))))
    while scheduler.run_once():
        pass
    assert parts == [([A, B], [-0.5, -0.5]), ([C, A], [-0.5, -0.5])]
    parts.clear()
    client.ask("t", A, B, C, on_tokens=lambda ids, s: parts.append((list(ids), list(s))))
    while scheduler.run_once():
        pass
    assert [ids for ids, _ in parts] == [[A, B], [C]]


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(BadParameter):
        Scheduler(ScriptedStep(slots=0), max_queue=1)
    with pytest.raises(BadParameter):
        Scheduler(ScriptedStep(), max_queue=-1)
    with pytest.raises(BadParameter, match="max_tokens"):
        Client(Scheduler(ScriptedStep(), max_queue=1)).ask("a", A, max_tokens=0)
