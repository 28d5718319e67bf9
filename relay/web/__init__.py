"""What comes back: tracked links, and what Amazon SES reports of mails that left."""
