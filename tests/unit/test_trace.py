"""The trace context that is stored with an event."""

import pytest
from servers import YEAR_2096

from dtimer import DTimer
from dtimer.model.trace import stored_trace, traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_the_context_of_a_sampled_trace_is_stored():
    """50 bytes instead of 55, and the header comes back as it was."""
    header = f"00-{TRACE}-{SPAN}-01"
    assert f"{TRACE}{SPAN}01" == stored_trace(header)
    assert header == traceparent(stored_trace(header))


def test_a_header_of_a_later_version_is_stored():
    """The standard requires that its first fields are read."""
    assert f"{TRACE}{SPAN}03" == stored_trace(f"01-{TRACE}-{SPAN}-03-more")


def test_a_trace_that_is_not_sampled_takes_no_memory():
    """No collector has its spans, so a link to them leads nowhere."""
    assert "" == stored_trace(f"00-{TRACE}-{SPAN}-00")
    assert traceparent("") is None


@pytest.mark.parametrize(
    "header",
    [
        *(None, 7, "", "junk", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01"),
        *(f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n"),
    ],
)
def test_an_invalid_header_is_not_stored(header):
    """A tracer that misbehaves must not fail a post."""
    assert "" == stored_trace(header)


class TestPosting:
    """The trace context of a post."""

    @pytest.fixture
    def poster(self):
        """The part of a timer that posts. It needs no server before it sends."""
        return DTimer("poster", "redis://127.0.0.1:1", now=lambda: YEAR_2096)._poster

    def test_is_empty_without_a_tracer(self, poster):
        """Without tracing, a post costs no more than before."""
        assert "" == poster.trace()

    def test_is_that_of_the_current_span(self, poster):
        """The tracer is asked at each post, because each may have another span."""
        poster.traceparent = lambda: f"00-{TRACE}-{SPAN}-01"
        assert f"{TRACE}{SPAN}01" == poster.trace()

    def test_a_tracer_that_raises_is_asked_once(self, poster):
        """Telemetry never fails an event."""

        def fail():
            raise ValueError

        poster.traceparent = fail
        assert "" == poster.trace()
        assert poster.traceparent is None
