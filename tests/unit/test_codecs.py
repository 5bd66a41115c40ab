"""The codecs: each writes payloads, opens its own, and refuses all others."""

import base64
import contextlib
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtimer import Json, OptionError, PayloadError, PayloadTooLarge, Signed, UnreadablePayload, Zlib
from dtimer.contrib.codecs import Encrypted
from dtimer.model import payload, sealed
from dtimer.model.codecs import Layers
from dtimer.model.options import validate

KEY, OTHER = b"0123456789abcdef", b"fedcba9876543210"
FERNET, OTHER_FERNET = (base64.urlsafe_b64encode(2 * key) for key in (KEY, OTHER))

EVENT = {"to": "ann@example.org", "text": "x" * 600, "n": 2**70}
PLAIN = payload.encode(EVENT, 10_000).encode()

CODECS = {
    "json": Json(),
    "zlib": Zlib(),
    "signed": Signed(KEY),
    "encrypted": Encrypted(FERNET),
    "all": Json() | Zlib() | Signed(KEY, "shop") | Encrypted([FERNET]),
}


class Marked:
    """A codec of a user, with a tag of its own."""

    def encode(self, payload):
        return b"\xa0" + repr(sorted(payload.items())).encode()

    def decode(self, raw):
        return dict(eval(raw.removeprefix(b"\xa0")))


def kind(value):
    """Return the name of a case."""
    return type(value).__name__


def coder(codec):
    """Return the codec as dtimer calls it."""
    return validate({"codec": codec}).codec


def stored(codec, event=EVENT, limit=10_000):
    """Return the bytes that a post of *event* stores."""
    return coder(codec).encode(event, limit).encode(errors="surrogateescape")


def opened(codec, raw):
    """Return the payload that a node with *codec* reads."""
    return coder(codec).decode(raw)


class TestEachCodec:
    """Every codec, alone and composed."""

    @pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
    def test_reads_what_it_wrote(self, codec):
        """A payload arrives as it was posted, also numbers beyond the precision of a double."""
        assert opened(codec, stored(codec)) == EVENT
        assert codec.decode(codec.encode(EVENT)) == EVENT

    @pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
    @given(raw=st.binary(max_size=80))
    def test_decodes_any_bytes_or_raises_a_documented_error(self, codec, raw):
        """A foreign writer may store anything, and the claim of an event must not raise."""
        for head in (b"", sealed.COMPRESSED, sealed.SIGNED, sealed.ENCRYPTED):
            with contextlib.suppress(PayloadError):
                assert isinstance(opened(codec, head + raw), dict)

    @pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
    def test_refuses_a_payload_above_the_limit(self, codec):
        """``max_payload`` counts the bytes of JSON, before they are compressed or encrypted."""
        assert stored(codec, limit=len(PLAIN))
        with pytest.raises(PayloadTooLarge):
            stored(codec, limit=len(PLAIN) - 1)

    @pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
    def test_refuses_a_value_that_json_has_not(self, codec):
        """The error names the place of the value before any I/O, with each codec."""
        with pytest.raises(PayloadError, match=r"payload\['when'\]"):
            stored(codec, {"when": object()})

    @pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
    def test_does_not_show_its_key(self, codec):
        """Options are printed and logged."""
        for key in (KEY, FERNET):
            assert key.decode() not in repr(codec) + repr(coder(codec)) + repr(validate({}))


def test_the_default_codec_costs_no_call():
    """Each event would pay for a wrapper, and most applications have no codec."""
    assert validate({}).codec.encode is payload.encode
    assert validate({}).codec.decode is payload.decode
    assert validate({"codec": Json()}).codec is validate({}).codec


class TestTags:
    """The first byte of a stored payload."""

    @pytest.mark.parametrize("codec", [Signed(KEY), Encrypted(FERNET), Marked()], ids=kind)
    def test_tell_a_node_without_the_codec_to_wait(self, codec):
        """If the payload counted as corrupt, a deployment would make dead letters of events."""
        with pytest.raises(UnreadablePayload):
            opened(Json(), stored(codec))

    @pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"\xc3\xa4", b"junk"])
    def test_are_absent_from_bytes_that_are_not_a_payload(self, raw):
        """Only bytes that can be opened, and are not a JSON object, are corrupt."""
        with pytest.raises(PayloadError) as caught:
            opened(Json(), raw)
        assert type(caught.value) is PayloadError

    @given(text=st.text(min_size=1))
    def test_do_not_begin_a_text(self, text):
        """A text of another program is not taken for the work of a codec."""
        assert not sealed.is_tagged(text.encode(errors="surrogatepass"))

    def test_are_described_to_people(self):
        """The command line shows the kind and the length instead of the payload."""
        assert "encrypted, 3 bytes" == sealed.describe(b"\x82ab")
        assert "of a codec with the tag 0xa7, 1 bytes" == sealed.describe(b"\xa7")


class TestZlib:
    """Compression."""

    def test_makes_a_large_payload_smaller(self):
        """Otherwise it would be pointless."""
        assert stored(Zlib()).startswith(sealed.COMPRESSED)
        assert len(stored(Zlib())) < len(PLAIN) / 4

    @pytest.mark.parametrize("event", [{}, {"a": 1}], ids=str)
    def test_leaves_a_small_payload_as_it_is(self, event):
        """Compression would not make it smaller."""
        assert payload.encode(event, 100).encode() == stored(Zlib(), event)
        assert payload.encode(event, 100).encode() == stored(Zlib(1), event)

    def test_is_opened_by_each_node(self):
        """Compression can be switched on in one step: nodes that do not have it read it."""
        assert opened(Json(), stored(Zlib())) == EVENT
        assert opened(Signed(KEY), stored(Zlib() | Signed(KEY))) == EVENT

    def test_opens_no_more_than_the_largest_payload(self):
        """A few bytes of a foreign writer must not fill the memory of a node."""
        bomb = sealed.COMPRESSED + zlib.compress(b" " * (sealed.MOST_BYTES + 1), 1)
        assert len(bomb) < sealed.MOST_BYTES / 100
        with pytest.raises(UnreadablePayload, match="more than"):
            opened(Json(), bomb)

    def test_opens_a_payload_above_the_limit_of_the_reader(self):
        """``max_payload`` limits posts. A node with a lower limit must handle earlier events."""
        raw = stored(Zlib(), {"x": "y" * 5_000})
        assert validate({"max_payload": 100}).codec.decode(raw) == {"x": "y" * 5_000}

    @pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw + b"x"])
    def test_does_not_open_a_damaged_payload(self, damage):
        """A part of a payload would be handled as the whole."""
        with pytest.raises(UnreadablePayload):
            opened(Json(), damage(stored(Zlib())))

    def test_is_opened_once(self):
        """Nested compression of a foreign writer would multiply the work."""
        twice = sealed.COMPRESSED + zlib.compress(stored(Zlib()))
        with pytest.raises(UnreadablePayload):
            opened(Json(), twice)


class TestSigned:
    """Signatures."""

    def test_refuses_a_change_of_any_byte(self):
        """A writer without the key must not make a node act."""
        raw = stored(Signed(KEY), {"pay": 1})
        for at in range(len(raw)):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            with pytest.raises(UnreadablePayload):
                opened(Signed(KEY), changed)

    def test_refuses_a_plain_payload(self):
        """Otherwise a writer would leave the signature out."""
        with pytest.raises(UnreadablePayload, match="is plain, and must be signed"):
            opened(Signed(KEY), PLAIN)

    def test_refuses_another_context(self):
        """A payload of one application must not be handled by another with the same key."""
        assert opened(Signed(KEY, "shop"), stored(Signed(KEY, "shop"))) == EVENT
        for context in ("", "bank", "shop{"):
            with pytest.raises(UnreadablePayload):
                opened(Signed(KEY, context), stored(Signed(KEY, "shop")))

    def test_leaves_the_payload_as_it_is(self):
        """A signature is not encryption."""
        assert stored(Signed(KEY)).endswith(PLAIN)

    @pytest.mark.parametrize("key", [b"", b"short", [], None, 7, [b"short"], {KEY: 1}], ids=str)
    def test_refuses_a_weak_key(self, key):
        """A short key can be found by trying; the error does not quote it."""
        with pytest.raises(OptionError) as caught:
            Signed(key)
        assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [(Signed, KEY, OTHER), (Encrypted, FERNET, OTHER_FERNET)],
    ids=["signed", "encrypted"],
)
class TestKeys:
    """Several keys, and the stages of a roll-out."""

    def test_are_all_read_and_the_first_writes(self, make, old, new):
        """So a key is rotated without losing an event."""
        both = make([new, old])
        assert opened(both, stored(make(old))) == EVENT
        assert opened(make(new), stored(both)) == EVENT
        with pytest.raises(UnreadablePayload):
            opened(make(old), stored(both))

    def test_are_rolled_out_in_stages(self, make, old, new):
        """At each step the old nodes and the new ones read what both write."""
        steps = [Json(), make(old, stage="open"), make(old, stage="seal"), make(old)]
        for earlier, later in itertools.pairwise(steps):
            assert opened(earlier, stored(later)) == EVENT
            assert opened(later, stored(earlier)) == EVENT
        assert PLAIN == stored(steps[1])
        assert opened(Json(), stored(steps[1])) == EVENT
        with pytest.raises(UnreadablePayload):
            opened(steps[3], PLAIN)

    def test_are_refused_if_the_stage_is_unknown(self, make, old, new):
        """A misspelt stage must not switch a check off."""
        with pytest.raises(OptionError, match="open, seal, require"):
            make(old, stage="required")


@pytest.mark.parametrize("keys", ["", b"x", [], None, [None], [FERNET, "x"]], ids=str)
def test_encryption_refuses_a_key_of_another_form(keys):
    """The error comes with the constructor, and does not quote the key."""
    with pytest.raises(OptionError) as caught:
        Encrypted(keys)
    assert caught.value.__cause__ is None
    assert FERNET.decode() not in str(caught.value)


class TestComposition:
    """Codecs that are joined with ``|``."""

    def test_applies_the_layers_from_the_left(self):
        """Encrypted bytes cannot be compressed, so the order matters."""
        raw = stored(Json() | Zlib() | Encrypted(FERNET))
        assert len(raw) < len(PLAIN) / 2
        assert raw.startswith(sealed.ENCRYPTED)

    def test_is_the_same_in_any_grouping(self):
        """``a | b | c`` and ``a | (b | c)`` look alike."""
        text = repr(Json() | Zlib() | Signed(KEY))
        assert text == repr(Zlib() | Signed(KEY)) == repr((Json() | Zlib()) | Signed(KEY))
        assert "Json() | Zlib(512, level=6) | Signed(…)" == text

    @pytest.mark.parametrize("wrong", [Json(), "x", None, Signed, Signed(OTHER)], ids=kind)
    def test_refuses_what_is_not_another_layer(self, wrong):
        """The mistake is reported where it is made."""
        with pytest.raises(OptionError):
            Layers(Signed(KEY), wrong)

    def test_adds_layers_to_a_codec_of_the_user(self):
        """The user's codec writes the payload, and the layers protect it."""
        codec = Marked() | Signed(KEY)
        raw = stored(codec, {"a": (1, b"x")})
        assert raw.startswith(sealed.SIGNED)
        assert opened(codec, raw) == {"a": (1, b"x")}


class TestForeignCodec:
    """A codec that the user has written."""

    def test_may_write_values_that_json_has_not(self):
        """A user writes a codec for such values."""
        assert opened(Marked(), stored(Marked(), {"a": {1, 2}})) == {"a": {1, 2}}

    @pytest.mark.parametrize("written", ["text", None, b"plain", b"\x81x"], ids=str)
    def test_must_write_json_or_a_tag_of_its_own(self, written):
        """Other nodes would take an event without a tag for a corrupt one."""
        codec = Marked()
        codec.encode = lambda payload: written
        with pytest.raises(PayloadError, match="the codec Marked"):
            stored(codec)

    def test_may_raise_anything_while_it_writes(self):
        """The post raises a documented error, before any I/O."""
        codec = Marked()
        codec.encode = {}.__getitem__
        with pytest.raises(PayloadError, match="the codec Marked raised TypeError"):
            stored(codec)

    def test_may_raise_anything_while_it_reads(self):
        """An exception of the codec must not make a dead letter, or end a thread."""
        with pytest.raises(UnreadablePayload, match="the codec Marked raised SyntaxError"):
            opened(Marked(), b"\xa0(")

    def test_must_return_a_payload(self):
        """Bytes that were opened, and are not a payload, are corrupt."""
        codec = Marked()
        codec.decode = lambda raw: [1]
        with pytest.raises(PayloadError, match="not a dict") as caught:
            opened(codec, b"\xa0")
        assert type(caught.value) is PayloadError

    @pytest.mark.parametrize("codec", [None, "json", b"", Json, Signed, 3, {}], ids=str)
    def test_has_both_methods(self, codec):
        """Another value is refused by the constructor of the timer."""
        with pytest.raises(OptionError, match="codec must be a codec"):
            validate({"codec": codec})
