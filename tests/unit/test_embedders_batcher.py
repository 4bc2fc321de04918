"""Concurrent requests for vectors: who shares a call, who is told what, and what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_store import EmbedderError
from memory_store.embedders import CheckedEmbedder
from memory_store.embedders.batcher import _Wanted
from tests.unit.toy_model import ToyModel, array_of, settle


def ask(checked: CheckedEmbedder, *texts: str) -> asyncio.Task[np.ndarray]:
    async def embed() -> np.ndarray:
        return await checked(list(texts))

    return asyncio.create_task(embed())


async def test_many_who_ask_for_one_text_share_a_call() -> None:
    model = ToyModel()
    checked = CheckedEmbedder(model, cache_bytes=0)

    answers = await asyncio.gather(*(checked(["x"]) for _ in range(100)))

    assert all(np.array_equal(answer, array_of(["x"])) for answer in answers)
    assert model.calls == [["x"]]


async def test_who_comes_while_it_is_under_way_waits_for_it() -> None:
    model = ToyModel()
    model.go.clear()
    checked = CheckedEmbedder(model)
    first = ask(checked, "x", "y")
    await settle()
    second = ask(checked, "y", "z")
    await settle()
    assert model.calls == [["x", "y"]]

    model.go.set()

    assert np.array_equal(await first, array_of(["x", "y"]))
    assert np.array_equal(await second, array_of(["y", "z"]))
    assert model.calls == [["x", "y"], ["z"]]


async def test_who_comes_when_it_has_just_landed_is_given_it() -> None:
    model = ToyModel(batch_size=1)
    checked = CheckedEmbedder(model)

    # The second comes to the text after its call has ended and before the first has been woken.
    await asyncio.gather(checked(["x"]), checked(["", "", "", "x"]))

    assert model.calls == [["x"]]


async def test_what_arrives_while_a_call_runs_forms_the_next_batches() -> None:
    model = ToyModel(batch_size=4)
    checked = CheckedEmbedder(model)
    model.go.clear()
    asking = [ask(checked, "first")]
    await settle()
    asking += [ask(checked, f"{number}") for number in range(10)]
    await settle()

    model.go.set()

    await asyncio.gather(*asking)
    assert [len(call) for call in model.calls] == [1, 4, 4, 2]


async def test_callers_of_one_moment_share_the_first_call() -> None:
    model = ToyModel(batch_size=64, concurrency=4)
    checked = CheckedEmbedder(model)

    await asyncio.gather(*(checked([f"{number}"]) for number in range(64)))

    assert [len(call) for call in model.calls] == [64]


async def test_no_more_calls_than_allowed_are_under_way() -> None:
    model = ToyModel(batch_size=2, concurrency=3)
    checked = CheckedEmbedder(model)

    await asyncio.gather(*(checked([f"{caller}.{number}" for number in range(20)]) for caller in range(5)))

    assert model.most_under_way == 3


async def test_a_caller_with_thousands_of_texts_does_not_keep_others_waiting() -> None:
    model = ToyModel(batch_size=4)
    checked = CheckedEmbedder(model)
    large = ask(checked, *(f"{number}" for number in range(1000)))
    await settle()

    await checked(["a query"])

    assert not large.done()
    assert len(model.calls) < 10
    await large


async def test_a_cancelled_caller_leaves_the_call_to_the_others() -> None:
    model = ToyModel()
    model.go.clear()
    checked = CheckedEmbedder(model)
    first, second = ask(checked, "x"), ask(checked, "x")
    await settle()

    first.cancel()
    await settle()
    assert first.cancelled()
    model.go.set()

    assert np.array_equal(await second, array_of(["x"]))
    assert model.calls == [["x"]]
    assert model.cancelled == []


async def test_a_call_that_nobody_waits_for_is_cancelled() -> None:
    model = ToyModel()
    model.go.clear()
    checked = CheckedEmbedder(model)
    asking = [ask(checked, "x", "y"), ask(checked, "y")]
    await settle()

    for task in asking:
        task.cancel()
    await settle()

    assert model.cancelled == [["x", "y"]]
    model.go.set()
    assert np.array_equal(await checked(["x"]), array_of(["x"])), "the next one asks anew"


async def test_who_asks_again_while_the_cancelled_call_ends_gets_an_answer() -> None:
    model = ToyModel()
    model.go.clear()
    checked = CheckedEmbedder(model)
    first = ask(checked, "x")
    await settle()
    first.cancel()
    second = ask(checked, "x")
    model.go.set()

    assert np.array_equal(await second, array_of(["x"]))


async def test_what_nobody_wants_any_more_leaves_the_queue() -> None:
    model = ToyModel(batch_size=2)
    model.go.clear()
    checked = CheckedEmbedder(model)
    running, queued, other = ask(checked, "a"), ask(checked, "b", "c"), ask(checked, "c", "d")
    await settle()
    assert model.calls == [["a", "b"]]

    queued.cancel()
    await settle()
    model.go.set()

    await asyncio.gather(running, other)
    assert model.calls == [["a", "b"], ["c", "d"]]


async def test_a_failure_that_may_pass_is_told_to_all_at_once() -> None:
    model = ToyModel()
    model.refused["y"] = EmbedderError("busy", retryable=True)
    checked = CheckedEmbedder(model)

    answers = await asyncio.gather(ask(checked, "x"), ask(checked, "y"), return_exceptions=True)

    assert answers == [model.refused["y"]] * 2
    assert model.calls == [["x", "y"]]
    model.refused.clear()
    assert np.array_equal(await checked(["x", "y"]), array_of(["x", "y"])), "a failed call is not remembered"


async def test_a_refused_text_fails_only_who_brought_it() -> None:
    model = ToyModel(batch_size=4)
    model.refused["too long"] = ValueError("8,193 tokens")
    checked = CheckedEmbedder(model)

    one, two, three = await asyncio.gather(
        ask(checked, "x"), ask(checked, "y", "too long"), ask(checked, "z"), return_exceptions=True
    )

    assert np.array_equal(one, array_of(["x"]))
    assert isinstance(two, EmbedderError)
    assert "8,193 tokens" in str(two)
    assert np.array_equal(three, array_of(["z"]))
    assert model.calls == [["x", "y", "too long", "z"], ["x"], ["y"], ["too long"], ["z"]]


async def test_a_caller_whose_text_is_refused_takes_his_others_with_him() -> None:
    model = ToyModel(batch_size=100)
    model.refused["bad"] = ValueError("no")
    checked = CheckedEmbedder(model)

    with pytest.raises(EmbedderError):
        await checked(["bad", *(f"{number}" for number in range(50))])
    await settle()

    assert len(model.calls) <= 3, "the batch, the bad text, and perhaps what was begun before its caller had left"


async def test_two_errors_of_one_caller_leave_nothing_unseen(caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel(batch_size=1, concurrency=2)
    model.refused |= {"a": ValueError("a"), "b": ValueError("b")}
    checked = CheckedEmbedder(model)

    with pytest.raises(EmbedderError, match="ValueError: a"):
        await checked(["a", "b"])

    await settle()
    gc.collect()
    assert caplog.records == [], "asyncio tells of errors that nobody has looked at"


async def test_vectors_do_not_wait_for_the_garbage_collector() -> None:
    checked = CheckedEmbedder(ToyModel(), cache_bytes=0)
    gc.collect()
    before = [thing for thing in gc.get_objects() if isinstance(thing, _Wanted)]  # held by tracebacks of other tests
    gc.disable()
    try:
        await checked(["a", "b", "c"])
        await settle()
        assert [thing for thing in gc.get_objects() if isinstance(thing, _Wanted) and thing not in before] == []
    finally:
        gc.enable()


async def test_a_model_that_cancels_itself_is_told_as_an_error() -> None:
    model = ToyModel()
    model.refused["x"] = asyncio.CancelledError()  # type: ignore[assignment]
    checked = CheckedEmbedder(model)

    with pytest.raises(EmbedderError, match="the call of the model was cancelled"):
        await checked(["x"])


callers = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5),
        st.none() | st.integers(0, 8),
    ),
    max_size=12,
)


@given(callers, st.sets(st.sampled_from("abcdefgh"), max_size=2), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_everyone_gets_his_own_answer_and_nothing_is_left_behind(
    callers: list[tuple[int, list[str], int | None]],
    refused: set[str],
    batch_size: int,
    concurrency: int,
    remembering: bool,
) -> None:
    """Each caller comes some turns after the one before, and some are cancelled some turns later."""

    async def run() -> None:
        model = ToyModel(batch_size=batch_size, concurrency=concurrency)
        model.refused = {text: ValueError(text) for text in refused}
        checked = CheckedEmbedder(model, cache_bytes=10_000 if remembering else 0)
        asking = []
        for turns_before, texts, _ in callers:
            for _ in range(turns_before):
                await asyncio.sleep(0)
            asking.append(ask(checked, *texts))
        for task, (_, _, turns) in zip(asking, callers, strict=True):
            for _ in range(turns or 0):
                await asyncio.sleep(0)
            if turns is not None:
                task.cancel()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        await settle()

        for answer, (_, texts, turns) in zip(answers, callers, strict=True):
            if isinstance(answer, asyncio.CancelledError):
                assert turns is not None
            elif refused.intersection(texts):
                assert isinstance(answer, EmbedderError)
            else:
                assert isinstance(answer, np.ndarray), answer
                assert np.array_equal(answer, array_of(texts))
        batcher = checked._documents
        assert (len(batcher._wanted), len(batcher._queue), len(batcher._calls), model.under_way) == (0, 0, 0, 0)
        assert model.most_under_way <= concurrency
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
