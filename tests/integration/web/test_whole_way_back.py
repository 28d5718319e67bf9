"""A mail by SMTP, out through the double of SES, and all that comes back: links, what SES tells, the next refusal.

Every part is a separate process; the double of SES tells by itself what becomes of each mail, signed as SNS does.
"""

from __future__ import annotations

import email.message
import email.policy
import re
import smtplib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.database import NewApiKey
from scripts.services import Delivery, Relay, Ses, Web, free_port, start_together
from tests.integration.web.conftest import SECRET, Stage, settings_of
from tests.support.service_process import eventually

#: Local part at Amazon's mailbox simulator → status in the end, and the types of the events that SES tells.
WAYS = {
    "success": ("delivered", ["delivered", "sent"]),
    "bounce": ("bounced", ["bounced", "sent"]),
    "complaint": ("complained", ["complained", "delivered", "sent"]),
    "suppressionlist": ("bounced", ["bounced", "sent"]),
}


def mail(to: str) -> email.message.EmailMessage:
    made = email.message.EmailMessage()
    made["From"], made["To"], made["Subject"] = "Ann <ann@example.com>", to, f"To {to}"
    made.set_content("text")
    made.add_alternative('<a href="https://target.example/?a=1&amp;b=2">go</a>', subtype="html")
    return made


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def test_a_mail_goes_out_and_what_becomes_of_it_comes_back(
    postgres_url: str, redis_url: str, make_api_key: Callable[..., NewApiKey], tmp_path: Path
) -> None:
    key = make_api_key()
    common = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url}
    web_port = free_port()
    with Ses(tmp_path / "ses") as ses:
        sns = ses.notify(f"http://127.0.0.1:{web_port}/events/ses")
        web = Web(tmp_path / "web", settings_of(postgres_url, redis_url), web_port, sns=sns)
        relay = Relay(tmp_path / "relay", common)
        delivery = Delivery(
            tmp_path / "delivery",
            {
                **common,
                **ses.client_environment,
                "TRACKING_SECRET": SECRET,
                "TRACKING_BASE_URL": web.url,
                "SES_EVENTS_SNS_TOPIC_ARN": "arn:aws:sns:us-east-1:123456789012:ses-events",
            },
        )
        start_together(web, relay, delivery)
        try:
            stage = Stage(web, postgres_url, None)  # type: ignore[arg-type]  # the double signs by itself
            domain_id = stage.add_domain(user_id=key.user_id, ses_configuration_set_name="opensend")
            stage.add_webhook("email.clicked", "email.bounced", "email.delivered", user_id=key.user_id)
            with smtplib.SMTP(relay.host, relay.port, "localhost", timeout=60) as client:
                client.login("opensend", key.token)
                for name in WAYS:
                    client.send_message(mail(f"{name}@simulator.amazonses.com"))
                _came_back(stage)
                _links_lead_there(stage, ses, domain_id)
                # An address that bounced or complained gets no more mail; the cache has not grown old meanwhile.
                for name in ("bounce", "complaint", "suppressionlist"):
                    with pytest.raises(smtplib.SMTPDataError, match="suppressed") as refused:
                        client.send_message(mail(f"{name}@simulator.amazonses.com"))
                    assert refused.value.smtp_code == 550
                client.send_message(mail("success@simulator.amazonses.com"))
        finally:
            for server in (relay, delivery, web):
                server.stop()
        for server in (relay, delivery, web):
            assert "Traceback" not in server.log_path.read_text(), server.name


def _came_back(stage: Stage) -> None:
    def statuses() -> dict[str, str]:
        rows = stage.query('SELECT "to" ->> 0, status FROM emails')
        return {address.partition("@")[0]: status for address, status in rows}

    eventually("all statuses", lambda: statuses() == {name: status for name, (status, _) in WAYS.items()})
    for name, (_, types) in WAYS.items():
        found = stage.query(
            'SELECT v.type FROM email_events v JOIN emails e ON e.id = v.email_id WHERE e."to" ->> 0 = %s ORDER BY 1',
            f"{name}@simulator.amazonses.com",
        )
        assert [kind for (kind,) in found] == types, name
    suppressed = stage.query("SELECT email, reason FROM email_suppressions ORDER BY email")
    assert suppressed == [
        ("bounce@simulator.amazonses.com", "bounced"),
        ("complaint@simulator.amazonses.com", "complained"),
        ("suppressionlist@simulator.amazonses.com", "bounced"),
    ]


def _links_lead_there(stage: Stage, ses: Ses, domain_id: str) -> None:
    opener = urllib.request.build_opener(_NoRedirect)
    for taken in ses.taken():
        parsed = email.message_from_bytes(taken.octets, policy=email.policy.default)
        assert isinstance(parsed, email.message.EmailMessage)
        html = parsed.get_body(("html",))
        assert html is not None
        ((href,),) = [re.findall(r'href="([^"]+)"', html.get_content())]
        assert href.startswith(f"{stage.web.url}/api/track/click/")
        with pytest.raises(urllib.error.HTTPError) as answer:
            opener.open(href, timeout=60)
        assert answer.value.code == 302
        assert answer.value.headers["Location"] == "https://target.example/?a=1&b=2"
        answer.value.close()
        events = [payload for kind, payload in stage.events(taken.email_id) if kind == "email.clicked"]
        assert [(event["domain_id"], event["url"]) for event in events] == [
            (domain_id, "https://target.example/?a=1&b=2")
        ]
    clicked = stage.query(
        "SELECT count(*) FROM webhook_deliveries d JOIN email_events v ON v.id = d.event_id WHERE v.type LIKE '%%.%%'"
    )
    assert clicked == [(len(WAYS),)]
