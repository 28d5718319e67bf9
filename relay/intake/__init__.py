"""From a submission to a committed row."""
