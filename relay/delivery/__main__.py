"""`python -m relay.delivery`: the delivery worker, under the same master as the relay."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from relay.process import delivery_children, master

    sys.exit(master.run(delivery_children.prepare, delivery_children.load, delivery_children.serve))
