// Runs the block for nodemailer of docs/clients.md: node nodemailer_recipe.cjs SUBJECT BLOCK
const nodemailer = require('nodemailer');

const [subject, block] = process.argv.slice(2);
const given = { nodemailer, from: 'you@example.com', to: 'to@x.example', bcc: [], subject, html: '<p>Hello</p>' };
const AsyncFunction = (async () => {}).constructor;
new AsyncFunction(...Object.keys(given), require('fs').readFileSync(block, 'utf8'))(...Object.values(given)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
