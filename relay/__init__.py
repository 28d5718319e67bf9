"""SMTP submission for OpenSend: from a TCP connection to a queued row and a published send job."""

__version__ = "0.1.0"
