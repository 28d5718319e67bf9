"""Types of the driver, by the names that classes have elsewhere."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg2.extensions

Connection: TypeAlias = psycopg2.extensions.connection
#: Of the default kind: rows are tuples.
Cursor: TypeAlias = psycopg2.extensions.cursor
#: Values as the statement lists its columns: only the statement says of which types they are.
Row: TypeAlias = tuple[Any, ...]
