# One image for the SMTP relay, the delivery worker and the HTTP process: the command chooses (docs/install.md).
#     docker build -t opensend-relay .
#     docker run -e DATABASE_URL=… -e BACKGROUND_JOBS_QUEUE_URL=… -p 2587:2587 opensend-relay
# Any base serves that has Python 3.11 to 3.14 with its venv module, and a C library that the wheels are made for.
ARG BASE=docker.io/library/python:3.13-slim

FROM ${BASE} AS build
# Another index than pip's own. It is not part of the result.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/opensend-relay
WORKDIR /source
COPY requirements/build.txt requirements/base.txt requirements/
# Some packages come as source; what builds them is pinned too, so it is not looked up for each of them.
RUN /opt/opensend-relay/bin/python -m pip install --require-hashes -r requirements/build.txt \
 && /opt/opensend-relay/bin/python -m pip install --require-hashes --no-build-isolation --use-pep517 \
    -r requirements/base.txt
COPY pyproject.toml README.md LICENSE ./
COPY requirements/base.in requirements/
COPY config config
COPY relay relay
# flanker writes the tables of its grammar beside its code at its first import: later that is a file system to read.
RUN /opt/opensend-relay/bin/python -m pip install --no-deps --no-index --no-build-isolation . \
 && /opt/opensend-relay/bin/python -c "import relay.mail" \
 && /opt/opensend-relay/bin/python -m pip uninstall --yes setuptools pip

FROM ${BASE}
COPY --from=build /opt/opensend-relay /opt/opensend-relay
# A user by number, which orchestrators can tell from root, and a folder that volumes take their owner from.
RUN echo 'opensend:x:10001:' >> /etc/group \
 && echo 'opensend:x:10001:10001::/var/lib/opensend-relay:/usr/sbin/nologin' >> /etc/passwd \
 && mkdir -p /var/lib/opensend-relay \
 && chown 10001:10001 /var/lib/opensend-relay
ENV PATH=/opt/opensend-relay/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/opensend-relay
EXPOSE 2587 8080
# No shell between: SIGTERM reaches the master, which drains for SMTP_RELAY_DRAIN_SECONDS. Give it longer than that.
STOPSIGNAL SIGTERM
ENTRYPOINT ["opensend-relay"]
CMD ["serve"]
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s CMD ["opensend-relay", "health"]
