# syntax=docker/dockerfile:1
# NVIDIA's Triton on a GPU. The tag must be one of hmer/engine_images.py, where it stands with the
# TensorRT that it carries: a plan loads only in the version that built it.
#   docker build -f deploy/gpu.Dockerfile --target builder -t hmer:gpu-builder .
#   docker build -f deploy/gpu.Dockerfile -t hmer:gpu .
# Engines fit the kind of GPU that they were built on, and a build of an image has none. So the
# builder runs once, on the machine that serves, before the server: deploy/build_engines.sh.
ARG TAG=26.07-py3

FROM nvcr.io/nvidia/tensorrt:${TAG} AS builder
ARG TAG
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1
COPY deploy/requirements/builder.txt /opt/hmer/
RUN pip install --require-hashes --only-binary :all: -r /opt/hmer/builder.txt
WORKDIR /opt/hmer
COPY hmer ./hmer
COPY training ./training
COPY export ./export
COPY model_repository ./model_repository
COPY deploy/build_engines.sh ./deploy/
ENV PYTHONPATH=/opt/hmer PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    HMER_IMAGE=nvcr.io/nvidia/tritonserver:${TAG}
# A new volume gets the owner of the folder that it is mounted over.
RUN mkdir /served && chown 10001:10001 /served
USER 10001:10001
VOLUME ["/served"]
ENTRYPOINT ["sh", "deploy/build_engines.sh"]
CMD ["hmer/pretrained", "/served"]

FROM nvcr.io/nvidia/tritonserver:${TAG} AS server
ARG TAG
LABEL org.opencontainers.image.title="hmer" \
    org.opencontainers.image.description="Handwritten formulas to LaTeX, Triton on a GPU" \
    org.opencontainers.image.licenses="Apache-2.0"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1
COPY deploy/requirements/gpu.txt /opt/hmer/
RUN pip install --require-hashes --only-binary :all: -r /opt/hmer/gpu.txt
COPY hmer /opt/hmer/hmer
COPY model_repository /opt/hmer/model_repository
ENV PYTHONPATH=/opt/hmer PYTHONDONTWRITEBYTECODE=1 HOME=/tmp HMER_LOG_REQUESTS=json \
    HMER_IMAGE=nvcr.io/nvidia/tritonserver:${TAG}
USER 10001:10001
VOLUME ["/served"]
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8000/v2/health/ready"]
# Checks every file against its hash, the engines against image and GPU, then becomes tritonserver.
ENTRYPOINT ["python3", "-m", "model_repository.container", "/served/repository"]
CMD ["--exit-timeout-secs=30"]
