"""
TLS: what a connection that fails has to do with it, and in which words.

The library's errors tell what OpenSSL says of a certificate. What they do not tell is that
one side speaks TLS and the other does not: then one waits, or hangs up, without a reason.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

# What only a person can mend. An end in the middle of a handshake is not among these: so
# ends also a server that is killed.
_MISTRUST = re.compile(
    r"\[SSL: (?:CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"
    r"|UNSUPPORTED_PROTOCOL|NO_SHARED_CIPHER|\w*ALERT_(?:\w*CERTIFICATE\w*|UNKNOWN_CA"
    r"|ACCESS_DENIED|HANDSHAKE_FAILURE|PROTOCOL_VERSION|INSUFFICIENT_SECURITY))\]"
)
_HUNG_UP = re.compile(r"closed by server|reset by peer|Protocol Error: b'\\x15\\x03")

SILENT = "no answer to the TLS handshake, or none at all: does the server speak TLS at this port?"
PLAIN = "it hung up at the first word: does it speak TLS at this port? Then the URL is rediss://"


def mistrusted(error: BaseException) -> bool:
    """Tell whether the two sides do not trust, or do not understand, each other's TLS."""
    return isinstance(error.__context__, ssl.SSLCertVerificationError) or bool(
        _MISTRUST.search(str(error))
    )


def speaks_tls(connection: Any) -> bool:
    """Tell whether *connection*, of the library, is one of TLS."""
    return hasattr(connection, "cert_reqs")


def hung_up(connection: Any, error: BaseException) -> bool:
    """Tell whether a server of TLS may have hung up on *connection*, which is without."""
    tcp = hasattr(connection, "host") and not speaks_tls(connection)
    return tcp and bool(_HUNG_UP.search(str(error)))


def verified(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Have the name in the certificate checked, too, where nothing else is asked for.

    The library does so by itself from redis-py 6 on only.
    """
    trusts_all = settings.get("ssl_cert_reqs") in ("none", ssl.CERT_NONE)
    return settings if trusts_all else {"ssl_check_hostname": True} | settings
