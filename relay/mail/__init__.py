"""Raw bytes to a `Message`. flanker lives in this package and nowhere else; nothing here does I/O."""
