"""A client under TLS 1.3 that sends KeyUpdate messages (RFC 8446 section 4.6.3), which `ssl` has no function for."""

from __future__ import annotations

import _ssl
import ctypes
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from typing import Any

import pytest


def openssl() -> Any:
    """The OpenSSL that Python was linked with; the test is skipped where its functions can't be called."""
    library = ctypes.CDLL(_ssl.__file__)
    functions: dict[str, tuple[Any, list[Any]]] = {
        "TLS_client_method": (c_void_p, []),
        "SSL_CTX_new": (c_void_p, [c_void_p]),
        "SSL_CTX_free": (None, [c_void_p]),
        "SSL_new": (c_void_p, [c_void_p]),
        "SSL_free": (None, [c_void_p]),
        "SSL_set_fd": (c_int, [c_void_p, c_int]),
        "SSL_connect": (c_int, [c_void_p]),
        "SSL_set0_wbio": (None, [c_void_p, c_void_p]),
        "SSL_key_update": (c_int, [c_void_p, c_int]),
        "SSL_do_handshake": (c_int, [c_void_p]),
        "SSL_write": (c_int, [c_void_p, c_char_p, c_int]),
        "BIO_s_mem": (c_void_p, []),
        "BIO_new": (c_void_p, [c_void_p]),
        "BIO_read": (c_int, [c_void_p, c_char_p, c_int]),
        "BIO_ctrl_pending": (c_size_t, [c_void_p]),
    }
    try:
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError:
        pytest.skip("OpenSSL is a part of this Python, and its functions have no names")
    return library


def updates(descriptor: int, count: int, content: bytes) -> bytes:
    """Makes a handshake over a socket that blocks; what a client sends then: so many messages, and the content."""
    library = openssl()
    context = library.SSL_CTX_new(library.TLS_client_method())
    tls = library.SSL_new(context)
    try:
        library.SSL_set_fd(tls, descriptor)
        assert library.SSL_connect(tls) == 1
        memory = library.BIO_new(library.BIO_s_mem())
        library.SSL_set0_wbio(tls, memory)
        for _ in range(count):
            assert library.SSL_key_update(tls, 0) == 1
            assert library.SSL_do_handshake(tls) == 1
        assert library.SSL_write(tls, content, len(content)) == len(content)
        octets = ctypes.create_string_buffer(library.BIO_ctrl_pending(memory))
        assert library.BIO_read(memory, octets, len(octets)) == len(octets)
        return octets.raw
    finally:
        library.SSL_free(tls)
        library.SSL_CTX_free(context)
