"""HTTPS calls to AWS: signing, connections, SQS."""
