"""SMTP submission for OpenSend: from a TCP connection to a queued row and a published send job."""

__version__ = "0.2.0"
