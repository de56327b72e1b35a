# The relay as a container: dependencies in a layer of their own, bytecode compiled, no build tool in what is shipped.
#   docker build -t relay .
#   docker run --rm --init --stop-timeout 40 -p 8080:8080 -v "$PWD/relay.yaml:/etc/relay/relay.yaml:ro" -e OPENAI_API_KEY relay
# The relay listens on every address of the container, so the file must name `keys`.

FROM python:3.13-slim AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/relay
WORKDIR /src

COPY pyproject.toml constraints.txt ./
# Names of extras, such as "otel", with spaces between them.
ARG EXTRAS=
RUN python -c "import sys, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *(r for e in sys.argv[1:] for r in p['optional-dependencies'][e]), sep='\n')" ${EXTRAS} > requirements.txt \
 && pip --python /opt/relay/bin/python install --compile --only-binary :all: --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY relay relay
RUN pip --python /opt/relay/bin/python install --compile --no-deps .


FROM python:3.13-slim

ARG VERSION=unreleased
ARG COMMIT=
LABEL org.opencontainers.image.title="relay" \
      org.opencontainers.image.description="A streaming reverse proxy for LLM APIs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# /var/lib/relay is for what is to stay: a volume that is mounted there belongs to the relay's user.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relay \
 && install -d -o relay -g relay -m 0700 /var/lib/relay
COPY --from=build /opt/relay /opt/relay
ENV RELAY_COMMIT=${COMMIT} PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# http.client, because it does not go through a proxy that the environment may name.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["relay"]
CMD ["serve", "--config", "/etc/relay/relay.yaml", "--listen", "0.0.0.0:8080"]
