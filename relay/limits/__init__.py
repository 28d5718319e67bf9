"""What keeps one client from taking what belongs to all: connections, guesses at keys, messages, file descriptors.

Limits are counted for an origin (`relay.limits.origin`), never for an address as such. What all processes have to know
is in Redis, or in memory that the workers of one service share; without Redis each process counts for itself.
"""
