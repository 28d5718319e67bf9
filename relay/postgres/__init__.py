"""Everything that asks Postgres: all SQL is here."""
