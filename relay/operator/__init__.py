"""What a person runs: check, warming, metrics."""
