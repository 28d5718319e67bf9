"""Everything that asks Redis: all key names and commands are here."""
