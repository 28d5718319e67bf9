"""The SMTP dialogue (RFC 5321): framing, commands and replies. Knows nothing of databases."""
