"""What a template does once it has loaded all code, before processes are forked from it."""

from __future__ import annotations

import gc

from gevent._hub_local import get_hub_if_exists


def settle() -> None:
    """Nothing that is loaded keeps a hub, and no collection moves it."""
    # A library that asks at its import whether there is IPv6 opens a socket of gevent's, and with it a hub: the
    # processes that are forked would all wait at the same descriptor.
    hub = get_hub_if_exists()
    if hub is not None:
        hub.destroy(destroy_loop=True)
    # A collection in a process would write to each page that it shares with the others.
    gc.collect()
    gc.freeze()
