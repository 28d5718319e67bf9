"""Runs the block for Python of docs/clients.md: `python smtplib_recipe.py SUBJECT BLOCK`."""

from __future__ import annotations

import os
import smtplib
import ssl
import sys
from email.message import EmailMessage
from pathlib import Path

message = EmailMessage()
message["From"] = "you@example.com"
message["To"] = "to@x.example"
message["Subject"] = sys.argv[1]
message.set_content("Hello\n")
exec(Path(sys.argv[2]).read_text(), {"message": message, "os": os, "smtplib": smtplib, "ssl": ssl})
