"""Where the code of tests lies, and which way it is imported (CONTRIBUTING.md, "Tests")."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Modules without a test of their name, and where they are tested: with real servers, as part of what they belong to,
#: or by what the whole makes of a message.
_CORPUS = "tests/unit/mail/test_corpus.py"
_DELIVERY = "tests/integration/delivery/test_deliverer.py"
_MASTER = "tests/integration/test_master.py"
_STATEMENTS = "tests/integration/delivery/test_statements.py"
#: Folders whose modules are tested together, with real servers, where they have no test of their name.
TOGETHER = {
    "relay/web": "tests/integration/web",
    "relay/delivery": "tests/integration/delivery",
    "relay/operator": "tests/integration/test_check.py",
}
ELSEWHERE = {
    "config/missing_package.py": "tests/integration/test_missing_packages.py",
    "config/line_output.py": "tests/unit/config/test_full_disk.py",
    "config/settings.py": "tests/unit/config/test_environment.py",
    "relay/aws/causes.py": "tests/unit/core/test_causes.py",
    "relay/postgres/causes.py": "tests/unit/core/test_causes.py",
    "relay/redis/causes.py": "tests/unit/core/test_causes.py",
    "relay/aws/credentials.py": "tests/integration/storage/test_credentials.py",
    "relay/aws/https.py": "tests/integration/storage/test_https.py",
    "relay/aws/service.py": "tests/integration/storage/test_credentials.py",
    "relay/aws/ses.py": _DELIVERY,
    "relay/aws/sns_host.py": "tests/integration/web/test_ses_events.py",
    "relay/aws/sqs.py": "tests/integration/storage/test_jobs.py",
    "relay/aws/sqs_receiver.py": "tests/integration/delivery/test_process.py",
    "relay/command.py": "tests/unit/test_package_command.py",
    "relay/core/errors.py": "tests/integration/storage/test_store.py",
    "relay/core/outcomes.py": "tests/unit/limits/test_client.py",
    "relay/core/records.py": "tests/integration/storage/test_store.py",
    "relay/intake/acceptor.py": "tests/integration/test_accept.py",
    "relay/intake/footprint.py": "tests/integration/test_child_memory.py",
    "relay/intake/lookups.py": "tests/integration/test_second_look.py",
    "relay/intake/services.py": "tests/integration/test_accept.py",
    "relay/jobs/intents.py": "tests/integration/storage/test_jobs.py",
    "relay/jobs/job.py": "tests/integration/storage/test_jobs.py",
    "relay/jobs/sweep.py": "tests/integration/storage/test_sweep.py",
    "relay/aws/ses_account.py": "tests/integration/delivery/test_paced_deliveries.py",
    "relay/redis/shared_allowance.py": "tests/integration/storage/test_shared_allowance.py",
    "relay/mail/address_spec.py": "tests/unit/mail/test_mailbox.py",
    "relay/mail/body.py": "tests/unit/mail/test_pieces.py",
    "relay/mail/boundary.py": "tests/unit/mail/test_structure.py",
    "relay/mail/charset_detection.py": "tests/unit/mail/test_charset.py",
    "relay/mail/charset_labels.py": "tests/unit/mail/test_charset.py",
    "relay/mail/description.py": _CORPUS,
    "relay/mail/encoded_word.py": "tests/unit/mail/test_header_values.py",
    "relay/mail/filename.py": _CORPUS,
    "relay/mail/flanker_address.py": "tests/unit/mail/test_mailbox.py",
    "relay/mail/flanker_scan.py": "tests/unit/mail/test_linear_bodies.py",
    "relay/mail/flowed.py": _CORPUS,
    "relay/mail/header_block.py": "tests/differential/test_shortcuts.py",
    "relay/mail/html_charset.py": "tests/unit/mail/test_structure.py",
    "relay/mail/html_joining.py": "tests/unit/mail/test_pieces.py",
    "relay/mail/html_text.py": "tests/unit/mail/test_pieces.py",
    "relay/mail/html_tokens.py": "tests/unit/mail/test_pieces.py",
    "relay/mail/message.py": _CORPUS,
    "relay/mail/opensend_fields.py": _CORPUS,
    "relay/mail/parameters.py": "tests/differential/test_shortcuts.py",
    "relay/mail/part.py": _CORPUS,
    "relay/mail/people.py": "tests/unit/mail/test_address_list.py",
    "relay/mail/stored_headers.py": "tests/unit/mail/test_header_values.py",
    "relay/mail/structure_shortcut.py": "tests/differential/test_shortcuts.py",
    "relay/mail/transfer_encoding.py": "tests/unit/mail/test_linear_bodies.py",
    "relay/postgres/driver.py": "tests/integration/storage/test_store.py",
    "relay/postgres/events.py": "tests/integration/web/test_ses_events.py",
    "relay/postgres/leases.py": "tests/integration/delivery/test_leases.py",
    "relay/postgres/left_rows.py": "tests/integration/delivery/test_claimed_rows.py",
    "relay/postgres/lost_claims.py": "tests/integration/delivery/test_lost_claims.py",
    "relay/postgres/outgoing.py": _DELIVERY,
    "relay/postgres/own_transaction.py": "tests/integration/storage/test_lock_waits.py",
    "relay/redis/webhook_wakes.py": "tests/integration/delivery/test_webhook_wakes.py",
    "relay/postgres/webhook_deliveries.py": "tests/integration/delivery/test_webhook_claims.py",
    "relay/postgres/row_contents.py": "tests/integration/delivery/test_large_mails.py",
    "relay/postgres/schema_check.py": "tests/integration/test_schema_check.py",
    "relay/postgres/sending_facts.py": _STATEMENTS,
    "relay/postgres/closed_rows.py": "tests/integration/delivery/test_closed_rows.py",
    "relay/postgres/ended_rows.py": _STATEMENTS,
    "relay/postgres/failed_rows.py": _STATEMENTS,
    "relay/postgres/sent_rows.py": _STATEMENTS,
    "relay/postgres/snapshot.py": "tests/integration/storage/test_warm_cache.py",
    "relay/postgres/store.py": "tests/integration/storage/test_store.py",
    "relay/postgres/suppressions.py": "tests/integration/storage/test_guard.py",
    "relay/postgres/transaction.py": "tests/integration/storage/test_lock_waits.py",
    "relay/process/bulk.py": "tests/integration/test_bulk.py",
    "relay/process/bulk_child.py": "tests/integration/test_slow_parsing.py",
    "relay/process/children.py": _MASTER,
    "relay/process/delivery.py": "tests/integration/delivery/test_process.py",
    "relay/process/delivery_children.py": "tests/integration/delivery/test_process.py",
    "relay/process/forking.py": _MASTER,
    "relay/process/master.py": _MASTER,
    "relay/process/master_log.py": "tests/faults/test_log_readers.py",
    "relay/process/signals.py": _MASTER,
    "relay/process/template.py": "tests/integration/test_master_recovery.py",
    "relay/process/web.py": "tests/integration/web/test_web_process.py",
    "relay/process/web_children.py": "tests/integration/web/test_web_process.py",
    "relay/process/worker.py": _MASTER,
    "relay/redis/claim_states.py": "tests/integration/delivery/test_handovers.py",
    "relay/redis/cache.py": "tests/integration/storage/test_cache.py",
    "relay/redis/kept_events.py": "tests/integration/web/test_web_process.py",
    "relay/redis/keys.py": "tests/integration/storage/test_recorded_formats.py",
    "relay/redis/link.py": "tests/integration/storage/test_cache.py",
    "relay/postgres/waiting.py": "tests/integration/delivery/test_waiting.py",
    "relay/server/accept_loop.py": "tests/faults/test_room.py",
    "relay/server/server.py": "tests/integration/test_dialogue_process.py",
    "relay/smtp/authentication.py": "tests/unit/smtp/test_session.py",
    "relay/smtp/command.py": "tests/unit/smtp/test_commands.py",
    "relay/smtp/connection.py": "tests/integration/test_dialogue_connection.py",
    "relay/smtp/error_counts.py": "tests/unit/smtp/test_session_limits.py",
    "relay/smtp/submission.py": "tests/unit/smtp/test_session.py",
    "relay/smtp/transaction.py": "tests/dialogues/test_dialogues.py",
    "relay/smtp/transport.py": "tests/integration/test_dialogue_connection.py",
}

#: Commands that run what lies in tests/; whatever else is in scripts/ knows nothing of it.
COMMANDS = {"scripts/soak.py", "scripts/fuzz.py", "scripts/try_clients.py", "scripts/try_smart_hosts.py"}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, and what it imports from them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def unit_test(module: Path) -> Path:
    """Where the test of a module's name would be."""
    folder = module.parts[1:-1] if module.parts[0] == "relay" else module.parts[:-1]
    return Path("tests", "unit", *folder, f"test_{module.name}")


def test_each_module_has_a_test_of_its_name_or_one_that_is_named_here() -> None:
    modules = {
        path.relative_to(ROOT)
        for folder in ("relay", "config")
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.startswith("__") and path.parent.relative_to(ROOT).as_posix() not in TOGETHER
    }
    assert len(modules) > 100
    without = {module for module in modules if not (ROOT / unit_test(module)).is_file()}
    assert {str(module) for module in without} - ELSEWHERE.keys() == set(), "write a test, or say where it is tested"
    assert ELSEWHERE.keys() - {str(module) for module in without} == set(), (
        "these have tests of their name, or are gone"
    )
    assert [path for path in (*TOGETHER.values(), *ELSEWHERE.values()) if not (ROOT / path).exists()] == []


def test_scripts_that_tests_import_know_nothing_of_tests() -> None:
    paths = [path for path in (ROOT / "scripts").rglob("*.py") if path.relative_to(ROOT).as_posix() not in COMMANDS]
    assert paths
    assert [path.name for path in paths if any(name.split(".")[0] == "tests" for name in imported(path))] == []


def test_what_lies_in_support_imports_no_other_folder_of_tests() -> None:
    paths = list((ROOT / "tests" / "support").glob("*.py"))
    assert paths
    wrong = [
        f"{path.name}: {name}"
        for path in paths
        for name in imported(path)
        if name.startswith("tests.") and not name.startswith("tests.support")
    ]
    assert wrong == []


def test_no_two_test_files_have_one_name() -> None:
    """They are imported by their names alone: of two, pytest refuses the second one it comes to."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []
