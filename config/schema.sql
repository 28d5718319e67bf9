-- The tables of contract section 3, as the relay needs them. Only for the embedded database of development and tests:
-- where OpenSend runs, it owns and migrates these tables, and this file is never applied there.
-- May be applied again at every start.

CREATE TABLE IF NOT EXISTS api_keys (
    id            uuid PRIMARY KEY,
    name          varchar(255) NOT NULL,
    token_hash    text NOT NULL UNIQUE,
    token_preview varchar(50),
    permission    varchar(50) NOT NULL DEFAULT 'full_access',
    domain        varchar(255),
    last_used_at  timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    document      jsonb,
    user_id       text
);

CREATE TABLE IF NOT EXISTS domains (
    id                         uuid PRIMARY KEY,
    name                       varchar(255) NOT NULL,
    status                     varchar(50) NOT NULL,
    region                     varchar(50) NOT NULL DEFAULT 'us-east-1',
    track_clicks               boolean NOT NULL DEFAULT false,
    track_opens                boolean NOT NULL DEFAULT false,
    tracking_subdomain         varchar(255),
    ses_configuration_set_name varchar(255),
    created_at                 timestamptz NOT NULL DEFAULT now(),
    user_id                    text
);

CREATE TABLE IF NOT EXISTS emails (
    id                          uuid PRIMARY KEY,
    "from"                      varchar(512) NOT NULL,
    "to"                        jsonb NOT NULL,
    cc                          jsonb,
    bcc                         jsonb,
    reply_to                    jsonb,
    subject                     text NOT NULL,
    html                        text,
    text                        text,
    status                      varchar(50) NOT NULL DEFAULT 'queued',
    headers                     jsonb,
    attachments                 jsonb,
    tags                        jsonb,
    scheduled_at                timestamptz,
    sent_at                     timestamptz,
    created_at                  timestamptz NOT NULL DEFAULT now(),
    user_id                     text,
    topic_id                    uuid,
    idempotency_key             varchar(256),
    provider_retry_count        integer NOT NULL DEFAULT 0,
    provider_last_attempted_at  timestamptz,
    provider_next_retry_at      timestamptz,
    provider_dead_lettered_at   timestamptz,
    provider_last_error_code    varchar(255),
    provider_last_error_message text,
    document                    jsonb,
    thread_id                   uuid,
    reply_address               varchar(512),
    reply_token                 varchar(128)
);

CREATE UNIQUE INDEX IF NOT EXISTS emails_user_id_idempotency_key ON emails (user_id, idempotency_key);
CREATE UNIQUE INDEX IF NOT EXISTS emails_user_id_reply_token ON emails (user_id, reply_token);
CREATE INDEX IF NOT EXISTS emails_status ON emails (status);
CREATE INDEX IF NOT EXISTS emails_created_at ON emails (created_at);
CREATE INDEX IF NOT EXISTS emails_status_created_at ON emails (status, created_at);
CREATE INDEX IF NOT EXISTS emails_user_id_created_at ON emails (user_id, created_at);
CREATE INDEX IF NOT EXISTS emails_tags ON emails USING gin (tags);

CREATE TABLE IF NOT EXISTS email_suppressions (
    id                uuid PRIMARY KEY,
    user_id           text NOT NULL,
    email             varchar(512) NOT NULL,
    reason            varchar(50) NOT NULL,
    source_event_id   varchar(255),
    source_message_id varchar(255),
    source_email_id   uuid,
    metadata          jsonb,
    suppressed_at     timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, email)
);

CREATE TABLE IF NOT EXISTS email_events (
    id          uuid PRIMARY KEY,
    email_id    uuid REFERENCES emails (id),
    source_id   varchar(255) UNIQUE,
    type        varchar(50) NOT NULL,
    payload     jsonb NOT NULL,
    user_id     text,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS webhooks (
    id                 uuid PRIMARY KEY,
    url                text NOT NULL,
    event_types        jsonb NOT NULL,
    status             varchar(50) NOT NULL DEFAULT 'active',
    signing_secret_enc text,
    created_at         timestamptz NOT NULL DEFAULT now(),
    user_id            text
);

CREATE TABLE IF NOT EXISTS webhook_deliveries (
    id            uuid PRIMARY KEY,
    webhook_id    uuid NOT NULL REFERENCES webhooks (id),
    event_id      uuid NOT NULL REFERENCES email_events (id),
    attempt       integer NOT NULL DEFAULT 1,
    status_code   integer,
    response_body text,
    status        varchar(50) NOT NULL,
    attempted_at  timestamptz,
    next_retry_at timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS webhook_deliveries_status ON webhook_deliveries (status);
CREATE INDEX IF NOT EXISTS webhook_deliveries_webhook_id ON webhook_deliveries (webhook_id);
