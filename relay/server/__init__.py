"""Sockets: listeners, connections and the certificate."""
