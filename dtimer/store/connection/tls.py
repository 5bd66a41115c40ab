"""
Recognise and explain connection failures that are caused by TLS.

The library's errors include OpenSSL's reason for rejecting a certificate. They give no reason if
only one side speaks TLS: then the other side just waits, or closes the connection.
"""

from __future__ import annotations

import re
import ssl
from typing import Any

# Errors that last until an operator fixes the set-up. A connection that ends during the handshake
# is not among them, because the server may have been killed.
_MISTRUST = re.compile(
    r"\[SSL: (?:CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"
    r"|UNSUPPORTED_PROTOCOL|NO_SHARED_CIPHER|\w*ALERT_(?:\w*CERTIFICATE\w*|UNKNOWN_CA"
    r"|ACCESS_DENIED|HANDSHAKE_FAILURE|PROTOCOL_VERSION|INSUFFICIENT_SECURITY))\]"
)
_HUNG_UP = re.compile(r"closed by server|reset by peer|Protocol Error: b'\\x15\\x03")

SILENT = "no answer to the TLS handshake: does the server speak TLS on this port?"
PLAIN = "the server closed the connection at once: if it speaks TLS on this port, use rediss://"


def mistrusted(error: BaseException) -> bool:
    """Return True if one side does not trust the other, or cannot agree on a TLS version."""
    return isinstance(error.__context__, ssl.SSLCertVerificationError) or bool(
        _MISTRUST.search(str(error))
    )


def speaks_tls(connection: Any) -> bool:
    """Return True if *connection* (of the client library) uses TLS."""
    return hasattr(connection, "cert_reqs")


def hung_up(connection: Any, error: BaseException) -> bool:
    """Return True if *connection* is without TLS and a TLS server may have closed it."""
    tcp = hasattr(connection, "host") and not speaks_tls(connection)
    return tcp and bool(_HUNG_UP.search(str(error)))


def verified(settings: dict[str, Any]) -> dict[str, Any]:
    """
    Return *settings* with a check of the host name in the certificate.

    The user's settings may turn the check off. redis-py makes the check by default only from
    version 6.
    """
    trusts_all = settings.get("ssl_cert_reqs") in ("none", ssl.CERT_NONE)
    return settings if trusts_all else {"ssl_check_hostname": True} | settings
