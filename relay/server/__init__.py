"""Sockets: who listens, who is connected, and with which certificate."""
