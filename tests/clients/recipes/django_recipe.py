"""Runs the block for Django of docs/clients.md: `python django_recipe.py SUBJECT BLOCK`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.mail import send_mail

names: dict[str, Any] = {"os": os}
exec(Path(sys.argv[2]).read_text(), names)
settings.configure(**{name: value for name, value in names.items() if name.isupper()})
send_mail(sys.argv[1], "Hello\n", "you@example.com", ["to@x.example"])
