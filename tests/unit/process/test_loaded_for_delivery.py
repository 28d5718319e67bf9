"""What a delivery process has in memory: the code that its settings make necessary, loaded before it is forked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import sys
sys.modules["rich"] = None
from config.settings import Settings
from relay.process import delivery

def load(**settings):
    delivery.load(Settings(database_url="postgres://unused", **settings).to_json())
    print(*sys.modules)

load(provider="maildir")
load(provider="smtp")
load(provider="ses")
load(queue_url="https://queue.example/")
"""
#: What reads mail that comes in: 10 MB. A delivery process composes.
READS_MAIL = {"flanker", "relay.mail.reader", "relay.mail.message"}
#: What SES and a queue need: 12 MB.
AWS = {"boto3", "botocore", "urllib3"}


def test_a_delivery_process_loads_what_its_settings_need_and_no_more() -> None:
    command = [sys.executable, "-P", "-c", CODE]
    environment = {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    maildir, smtp, ses, queue = (set(line.split()) for line in ended.stdout.splitlines())
    assert not (READS_MAIL | AWS) & (maildir | smtp)
    assert not READS_MAIL & (ses | queue)
    assert ses >= AWS | {"relay.delivery.ses_provider"}
    assert queue >= {"relay.delivery.queue_jobs", "relay.aws.sqs_receiver"}
