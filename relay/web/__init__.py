"""What comes back: tracked links, and what Amazon SES tells of mails that left."""
