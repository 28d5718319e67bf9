"""`opensend-relay warm-cache` in a checkout. Run from anywhere: python scripts/warm_cache.py --help"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import missing_package

try:
    from relay.operator import warm_cache
except ModuleNotFoundError as error:
    raise SystemExit(missing_package.refuse(error, "scripts/warm_cache.py")) from None

if __name__ == "__main__":
    warm_cache.main(sys.argv[1:], "python -m scripts.warm_cache")
