# kd-toolkit with its default data set, on the CPU or, with `docker run --gpus all`, on an NVIDIA GPU.
#
#   docker build -t kd-toolkit .
#   docker run --rm -v kd-models:/app/models kd-toolkit distill
#   docker run --rm -v kd-models:/app/models -p 7860:7860 kd-toolkit demo
#
#   FLAVOUR=cuda        the wheels bring CUDA, cuDNN, cuFFT and cuRAND; of the host it needs the driver alone
#   FLAVOUR=cpu         a quarter of the size, for machines without a GPU
#   BASE_IMAGE=...      Debian 12 or Ubuntu 24.04, or newer; none of NVIDIA's is needed
#
# docs/container.md says how to run it, how large it is and what was left out.
ARG FLAVOUR=cuda
ARG BASE_IMAGE=ubuntu:24.04

# DL3006: what BASE_IMAGE names has a tag.
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
# DL3008: the base pins Debian's packages by its release; a version named here would be gone with their next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates dataset-fashion-mnist python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log

# What installs and builds stays in the stages from here on.
FROM base AS tools
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends binutils python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY locks/build.txt /locks/
# DL3042: pip's cache is a mount, in no layer.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /build && /build/bin/pip install --require-hashes -r /locks/build.txt

# The packages, at the versions and with the hashes of the lock, which is complete: hence --no-deps.
FROM tools AS packages
ARG FLAVOUR
COPY locks/${FLAVOUR}.txt /locks/
COPY scripts/slim.py /
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/kd-toolkit \
    && /build/bin/pip --python /opt/kd-toolkit/bin/python install --no-deps --require-hashes -r "/locks/${FLAVOUR}.txt" \
    && python3 /slim.py /opt/kd-toolkit/lib/python3*/site-packages "--${FLAVOUR}"

FROM tools AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY models models
COPY toolkit toolkit
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheel .

FROM base AS image
# What is written goes to models, where any user may write, so that `--user "$(id -u)"` needs no preparation; or to /tmp,
# home and cache too, so that a read-only container needs no more than `--tmpfs /tmp`.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin toolkit \
    && mkdir -p /app/models \
    && chmod 1777 /app/models
COPY --from=packages /opt/kd-toolkit /opt/kd-toolkit
RUN --mount=type=bind,from=tools,source=/build,target=/build \
    --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /build/bin/pip --python /opt/kd-toolkit/bin/python install --no-cache-dir --no-deps /wheel/*.whl

# TORCH_LOGS quiets the one remark that torch makes about the missing triton.
ENV PATH=/opt/kd-toolkit/bin:$PATH \
    HOME=/tmp \
    USER=toolkit \
    KD_TOOLKIT_CACHE=/tmp/kd-toolkit \
    KD_TOOLKIT_HOST=0.0.0.0 \
    KD_TOOLKIT_VOLUME=/app/models \
    GRADIO_ANALYTICS_ENABLED=False \
    PYTHONUNBUFFERED=1 \
    TORCH_LOGS=-torch.utils.flop_counter
USER 10001
WORKDIR /app
EXPOSE 7860
# Python turns SIGINT into a clean end; as the container's first process it would not react to SIGTERM.
STOPSIGNAL SIGINT
# Asks a demo for /healthz; a stage is well as long as it runs.
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m --start-interval=2s --retries=3 \
    CMD ["python", "-m", "toolkit.machine.health"]
ENTRYPOINT ["toolkit"]
CMD ["--help"]

# What NVIDIA's container toolkit reads: every GPU; of the driver what computes, and nvidia-smi; and the least CUDA that the
# driver must know, whatever BASE_IMAGE asks for (13.0 is driver 580).
FROM image AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"

# A GPU that an engine gives all the same is not seen: there is no code for it here.
FROM image AS cpu
ENV NVIDIA_VISIBLE_DEVICES=void \
    CUDA_VISIBLE_DEVICES=""

# DL3006: a stage of this file has no tag.
# hadolint ignore=DL3006
FROM ${FLAVOUR}
ARG FLAVOUR
ARG BASE_IMAGE
ARG REVISION=""
LABEL org.opencontainers.image.title="kd-toolkit" \
      org.opencontainers.image.description="Distil an image classifier, export it to ONNX, measure and show it (${FLAVOUR})" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
