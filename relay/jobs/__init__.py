"""Send jobs and the sweep that publishes what was left behind."""
