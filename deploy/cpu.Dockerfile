# syntax=docker/dockerfile:1
# The embedded server on a CPU: no GPU, no torch, no NVIDIA image.
#   docker build -f deploy/cpu.Dockerfile -t hmer:cpu .
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/hmer
COPY deploy/requirements/cpu.txt deploy/requirements/build.txt ./deploy/requirements/
RUN /opt/hmer/bin/pip install --require-hashes --only-binary :all: -r deploy/requirements/cpu.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r deploy/requirements/build.txt
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY hmer ./hmer
COPY training ./training
COPY export ./export
COPY model_repository ./model_repository
COPY client ./client
COPY benchmarks ./benchmarks
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /dist . \
    && /opt/hmer/bin/pip install --no-deps /dist/*.whl \
    && /opt/hmer/bin/hmer-export repository hmer/pretrained --host embedded --target onnxruntime \
        --output /repository

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="hmer" \
    org.opencontainers.image.description="Handwritten formulas to LaTeX, embedded Triton on a CPU" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/hmer /opt/hmer
# Another model: mount a repository of hmer-export here.
COPY --from=build /repository /repository
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin hmer
# The root file system may be read-only; /tmp and /dev/shm are written to.
ENV PATH=/opt/hmer/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["hmer-client", "health", "--url", "127.0.0.1:8001"]
ENTRYPOINT ["hmer-serve", "--repository", "/repository", "--host", "0.0.0.0"]
CMD ["--verbose", "--log-requests", "--log-format", "json"]
