"""Settings from the environment, logging and error reports: what differs from one installation to the next."""
