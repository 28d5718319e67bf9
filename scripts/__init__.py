"""Commands for development and operation. `./scripts/NAME` runs one in the checkout's environment, which it makes."""

import importlib.util
import sys

from config.missing_package import absent

# Said here once, before the imports of a command fail one after the other.
for _package in ("gevent", "psycopg2", "structlog"):
    if importlib.util.find_spec(_package) is None:
        sys.stderr.write(absent(_package, "scripts"))
        raise SystemExit(2)
