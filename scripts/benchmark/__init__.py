"""`./scripts/bench`: what a message costs, how long it takes, how much memory it all needs, beside a yardstick.

The yardstick (`scripts/yardstick`) does the same job on Node, on the libraries that a JavaScript programmer would take.
Both are loaded by the same client, with the same messages, against the same Postgres, one after the other in
alternating rounds, so that whatever else the machine does hits both. Ratios therefore travel between machines;
milliseconds don't.

    messages    what is sent
    load        the client: many connections in one process, without a library
    hold        the client that only keeps connections open
    subjects    what is measured: starts it, reads its CPU time and its memory from the kernel
    speed       CPU per message and throughput
    latency     how long one message takes, alone and beside large ones
    footprint   memory
    traffic     what goes to Postgres and Redis for a message
    delivery    the way out, beside a naive worker
    report      the table
"""
