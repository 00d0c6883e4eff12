# kd-toolkit with its default data set, on the CPU or, with `docker run --gpus all`, on an NVIDIA GPU.
#
#   docker build -t kd-toolkit .
#   docker run --rm -v kd-models:/app/models kd-toolkit distill
#   docker run --rm -v kd-models:/app/models -p 7860:7860 kd-toolkit demo
#
# The wheels bring CUDA, cuDNN and cuRAND themselves; the base brings what the driver's container runtime asks for.
# Any base of Debian 12 or Ubuntu 24.04, or newer, does.
ARG BASE_IMAGE=nvidia/cuda:13.2.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# What comes out of this stage is a list of requirements and a wheel. A layer below is built anew only when their bytes
# change: new code leaves the packages alone, and so does a pyproject.toml that asks for the same ones.
FROM base AS build
RUN python3 -m venv /build && /build/bin/pip install --no-cache-dir "hatchling==1.*"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > /requirements.txt
COPY models models
COPY toolkit toolkit
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-cache-dir --wheel-dir /wheel .

FROM base
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends dataset-fashion-mnist \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# Any user may write home, cache and models, so that `--user "$(id -u)"` works with a mounted folder of one's own.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin toolkit \
    && mkdir -p /app/models /var/cache/kd-toolkit \
    && chmod 1777 /app/models /var/cache/kd-toolkit /home/toolkit

# Taken out again: headers, static libraries, a library that nothing links to, and triton, which only torch.compile
# uses, and not without a C compiler. That is 1.5 GB.
RUN --mount=type=bind,from=build,source=/requirements.txt,target=/requirements.txt \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    python3 -m venv /opt/kd-toolkit \
    && /opt/kd-toolkit/bin/pip install --no-cache-dir -c /constraints.txt -r /requirements.txt \
    && rm -rf \
        /opt/kd-toolkit/lib/python3*/site-packages/triton \
        /opt/kd-toolkit/lib/python3*/site-packages/torch/include \
        /opt/kd-toolkit/lib/python3*/site-packages/nvidia/*/include \
        /opt/kd-toolkit/lib/python3*/site-packages/nvidia/cu13/lib/libcusolverMg.so.* \
    && find /opt/kd-toolkit -name '*.a' -delete
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    /opt/kd-toolkit/bin/pip install --no-cache-dir --no-deps /wheel/*.whl

# TORCH_LOGS quiets the one remark that torch makes about the missing triton.
ENV PATH=/opt/kd-toolkit/bin:$PATH \
    HOME=/home/toolkit \
    USER=toolkit \
    KD_TOOLKIT_CACHE=/var/cache/kd-toolkit \
    KD_TOOLKIT_HOST=0.0.0.0 \
    GRADIO_ANALYTICS_ENABLED=False \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1 \
    TORCH_LOGS=-torch.utils.flop_counter
USER 10001
WORKDIR /app
EXPOSE 7860
# Python turns SIGINT into a clean end; as the container's first process it would not react to SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["toolkit"]
CMD ["--help"]
