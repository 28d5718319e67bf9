// What a user would otherwise run: the relay's job on the libraries that a JavaScript programmer takes for it. It is
// there to be measured against (scripts/benchmark), not to be used: no TLS, no deduplication, no jobs, no limits.
//
//   DATABASE_URL=… YARDSTICK_PORT=… node server.mjs
import { createHash } from "node:crypto";
import pg from "pg";
import { simpleParser } from "mailparser";
import { SMTPServer } from "smtp-server";

const database = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

const FIND_KEY = "SELECT id, user_id, domain FROM api_keys WHERE token_hash = $1";
const FIND_SUPPRESSED = "SELECT email FROM email_suppressions WHERE user_id = $1 AND email = ANY ($2) LIMIT 1";
const STORE = `INSERT INTO emails
  (id, user_id, status, "from", "to", cc, bcc, reply_to, subject, html, text, headers, attachments, tags)
  VALUES (gen_random_uuid(), $1, 'queued', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, '[]') RETURNING id`;

// Not what is stored in the column `headers` (they have columns of their own, or are void in a mail that is rebuilt).
const ELSEWHERE = new Set(
  "from to cc bcc subject reply-to content-type mime-version message-id date".split(" "),
);

function refuse(code, text) {
  const error = new Error(text);
  error.responseCode = code;
  return error;
}

// mailparser gives one object for a field that came once, a list for one that came several times, groups nested.
function mailboxes(field) {
  const entries = field === undefined ? [] : [field].flat().flatMap((one) => one.value);
  return entries.flatMap((entry) => entry.group ?? [entry]).filter((entry) => entry.address);
}

const bare = (field) => mailboxes(field).map((mailbox) => mailbox.address);

async function login(password) {
  const hash = createHash("sha256").update(password.trim()).digest("hex");
  const found = await database.query(FIND_KEY, [hash]);
  const key = found.rows[0];
  if (!key?.user_id) throw refuse(535, "no such key");
  return key;
}

function headersOf(mail) {
  const kept = {};
  for (const { key, line } of mail.headerLines) {
    if (!ELSEWHERE.has(key)) kept[line.slice(0, line.indexOf(":"))] = line.slice(line.indexOf(":") + 1).trim();
  }
  return kept;
}

async function store(stream, key) {
  const mail = await simpleParser(stream);
  if (stream.sizeExceeded) throw refuse(552, "too large");
  const [sender] = mailboxes(mail.from);
  const to = bare(mail.to);
  const cc = bare(mail.cc);
  const bcc = bare(mail.bcc);
  const everyone = [...new Set([...to, ...cc, ...bcc].map((address) => address.toLowerCase()))];
  if (!sender || everyone.length === 0) throw refuse(550, "no From, or nobody to send to");
  if (key.domain && sender.address.split("@").pop().toLowerCase() !== key.domain.toLowerCase()) {
    throw refuse(550, "not from this domain");
  }
  const suppressed = await database.query(FIND_SUPPRESSED, [key.user_id, everyone]);
  if (suppressed.rows.length > 0) throw refuse(550, `suppressed: ${suppressed.rows[0].email}`);
  const attachments = mail.attachments.map((part) => ({
    filename: part.filename ?? "attachment",
    content: part.content.toString("base64"),
    content_type: part.contentType,
  }));
  const stored = await database.query(STORE, [
    key.user_id,
    sender.name ? `${sender.name} <${sender.address}>` : sender.address,
    ...[to, cc, bcc, bare(mail.replyTo)].map((list) => JSON.stringify(list)),
    mail.subject ?? "",
    mail.html || "",
    mail.text ?? "",
    JSON.stringify(headersOf(mail)),
    JSON.stringify(attachments),
  ]);
  return `queued as ${stored.rows[0].id}`;
}

const server = new SMTPServer({
  size: 41943040,
  authMethods: ["PLAIN", "LOGIN"],
  allowInsecureAuth: true,
  disabledCommands: ["STARTTLS"],
  disableReverseLookup: true,
  onAuth(auth, _session, answer) {
    login(auth.password ?? "").then((key) => answer(null, { user: key }), answer);
  },
  onData(stream, session, answer) {
    store(stream, session.user).then((text) => answer(null, text), answer);
  },
});
// A client that goes away is no reason to end.
server.on("error", (error) => console.error(error.message));
server.listen(Number(process.env.YARDSTICK_PORT), "127.0.0.1");
