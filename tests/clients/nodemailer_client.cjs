// Sends one mail with nodemailer; the order is JSON on standard input.
const nodemailer = require('nodemailer');

const { account, mail } = JSON.parse(require('fs').readFileSync(0, 'utf8'));
const transport = nodemailer.createTransport({
  host: account.host,
  port: account.port,
  secure: account.security === 'tls',
  requireTLS: account.security === 'starttls',
  auth: { user: account.username, pass: account.password },
});
transport
  .sendMail({
    from: mail.from,
    to: mail.to,
    cc: mail.cc,
    bcc: mail.bcc,
    subject: mail.subject,
    text: mail.text,
    html: mail.html || undefined,
    attachments: mail.attachment
      ? [
          {
            filename: mail.attachment.filename,
            content: mail.attachment.content,
            encoding: 'base64',
            contentType: mail.attachment.type,
          },
        ]
      : [],
  })
  .then((info) => console.log(info.response))
  .catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
