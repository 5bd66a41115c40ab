"""The bridge to asyncio: coroutines as handlers, and calls from coroutines."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import contextmanager

import pytest
from background import in_thread
from servers import LATER, PATIENCE, eventually

from dtimer import OptionError, State, UsageError
from dtimer.contrib.aio import AsyncioBridge
from dtimer.testing import Catch


def run(coroutine):
    """Run a coroutine on a new event loop, with a time limit that only a failing test reaches."""
    return asyncio.run(asyncio.wait_for(coroutine, 2 * PATIENCE))


class TestHandlers:
    """A coroutine function as the listener of 'event'."""

    def test_a_coroutine_handles_events_on_the_loop_of_the_application(self, make):
        """A handler may use the clients of the application, which belong to its loop."""
        timer = make(max_events=10)
        bridge = AsyncioBridge(timer)

        async def application():
            loop, handled = asyncio.get_running_loop(), asyncio.Queue()

            @timer.on("event")
            @bridge.handler
            async def handle(events):
                assert loop is asyncio.get_running_loop()
                for ev in events:
                    await handled.put(ev["n"])

            async with bridge.lifespan():
                for n in range(3):
                    id = await bridge.call(timer.post, {"n": n})
                assert [0, 1, 2] == sorted([await handled.get() for _ in range(3)])
                return id

        id = run(application())
        assert not timer.joined
        assert timer.peek(id) is None
        assert 3 == timer.stats().totals["confirmed"]

    def test_an_exception_of_the_coroutine_has_the_event_retried(self, make):
        """A coroutine that fails must not count as done because its thread has only started it."""
        timer = make(backoff=0)
        bridge, errors = AsyncioBridge(timer), Catch(timer, "error")

        async def application():
            done = asyncio.Event()

            @timer.on("event")
            @bridge.handler
            async def handle(events):
                if events[0].attempt == 1:
                    raise OSError("the bank is closed")
                done.set()

            async with bridge.lifespan():
                await bridge.call(timer.post, {}, max_retries=1)
                await done.wait()

        run(application())
        assert "the bank is closed" == str(errors.next().__cause__)
        assert 1 == timer.stats().totals["confirmed"]

    def test_the_end_of_the_lifespan_cancels_a_coroutine_after_the_drain(self, make):
        """A server that stops must not wait for a coroutine that never returns."""
        timer = make(backoff=0)
        bridge = AsyncioBridge(timer, drain=0)
        cancelled = threading.Event()

        async def application():
            begun = asyncio.Event()

            @timer.on("event")
            @bridge.handler
            async def handle(events):
                begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

            async with bridge.lifespan():
                id = await bridge.call(timer.post, {})
                await begun.wait()
            assert await asyncio.to_thread(cancelled.wait, PATIENCE)
            return id

        id = run(application())
        record = timer.peek(id)
        assert (State.SCHEDULED, 1) == (record.state, record.attempt)

    def test_a_coroutine_whose_loop_is_closed_does_not_hold_its_thread(self, make):
        """The loop may end before the node leaves, and the coroutine then never returns."""
        timer = make(backoff=LATER)
        bridge, errors = AsyncioBridge(timer), Catch(timer, "error")
        loop = asyncio.new_event_loop()
        begun = threading.Event()

        async def handle(events):
            begun.set()
            await asyncio.Event().wait()

        timer.on("event", bridge.handler(handle))
        bridge._loop = loop
        ended = in_thread(loop.run_forever)
        with timer:
            timer.post({})
            assert begun.wait(PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
            ended.result(PATIENCE)
            (task,) = asyncio.all_tasks(loop)
            task._log_destroy_pending = False
            loop.close()
            assert "closed" in str(errors.next().__cause__)
        task.get_coro().close()

    def test_a_handler_without_a_loop_says_so(self, make):
        """A node that joined without the lifespan has no loop to run a coroutine on."""
        timer = make(backoff=LATER)
        errors = Catch(timer, "error")

        async def handle(events):
            raise AssertionError

        timer.on("event", AsyncioBridge(timer).handler(handle))
        with timer:
            timer.post({})
            error = errors.next().__cause__
        assert isinstance(error, UsageError)
        assert "lifespan" in str(error)

    def test_a_plain_function_is_refused(self, make):
        """The mistake shows when the function is registered, and not with the first event."""
        with pytest.raises(OptionError, match="coroutine function"):
            AsyncioBridge(make()).handler(lambda events: None)

    def test_the_coroutine_sees_the_context_of_the_middleware(self, make):
        """A transaction or a request id that a middleware has set is there for the coroutine."""
        timer, seen = make(), []
        bridge = AsyncioBridge(timer)
        request = contextvars.ContextVar("request", default="none")

        @timer.middleware
        @contextmanager
        def set_request(emission):
            token = request.set(emission.name)
            yield
            request.reset(token)

        async def application():
            done = asyncio.Event()

            @timer.on("event")
            @bridge.handler
            async def handle(events):
                seen.append(request.get())
                done.set()

            async with bridge.lifespan():
                await bridge.call(timer.post, {})
                await done.wait()

        run(application())
        assert ["event"] == seen


class TestCalls:
    """Calls of the timer from coroutines."""

    def test_a_call_does_not_block_the_loop(self, make):
        """The coroutine that lets the call end runs on the loop meanwhile."""
        bridge, gate = AsyncioBridge(make()), threading.Event()

        async def application():
            asyncio.get_running_loop().call_soon(gate.set)
            return await bridge.call(gate.wait, PATIENCE)

        assert run(application())

    def test_no_more_calls_run_at_a_time_than_the_bridge_allows(self, make):
        """Each call opens a connection of its own, and a burst of requests must not open 32."""
        bridge, running, most = AsyncioBridge(make(), calls=2), [], []
        full = threading.Barrier(2)

        def call():
            running.append(1)
            full.wait(PATIENCE)
            most.append(len(running))
            full.wait(PATIENCE)
            running.pop()

        async def application():
            await asyncio.gather(*(bridge.call(call) for _ in range(8)))

        run(application())
        assert {2} == set(most)

    def test_a_bridge_serves_one_loop_after_another(self, make):
        """Test suites start the application again and again, each time on a new loop."""
        timer = make()
        bridge = AsyncioBridge(timer, calls=1)

        async def application():
            async with bridge.lifespan():
                ids = [bridge.call(timer.post, {}, LATER) for _ in range(3)]
                return await asyncio.gather(*ids)

        assert 6 == len({*run(application()), *run(application())})


def test_the_application_starts_while_redis_is_down(clean, proxy, make):
    """The site serves its pages meanwhile, and the node joins when Redis is back."""
    proxy.refuse()
    timer = make(url=proxy.url, timeout=200, lease=600_000)
    bridge, errors = AsyncioBridge(timer), Catch(timer, "error")

    async def application():
        async with bridge.lifespan():
            await asyncio.to_thread(errors.next)
            assert timer.health().joining
            proxy.heal()
            await asyncio.to_thread(lambda: eventually(lambda: timer.joined))

    run(application())
    assert not timer.joined
