-- Makes an API key in the database of a trial and prints it: it can't be read later (contract section 3).
-- Where OpenSend runs, its dashboard makes the keys.
WITH fresh AS MATERIALIZED (
    SELECT 'os_live_' || replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '') AS token
), stored AS (
    INSERT INTO api_keys (id, name, token_hash, token_preview, permission, user_id)
    SELECT gen_random_uuid(), 'trial', encode(sha256(convert_to(token, 'UTF8')), 'hex'), left(token, 11) || '…',
           'full_access', gen_random_uuid()::text
    FROM fresh
)
SELECT token FROM fresh;
