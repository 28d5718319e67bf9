"""Settings from the environment, logging and error reports: everything that differs from one installation to the next."""
