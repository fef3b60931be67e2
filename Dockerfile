# se3_fast with its compiled operations. docs/docker.md says how to build it for other bases and without a Docker engine.
#
# BASE_IMAGE     has Python 3 and, if the CUDA kernels are to be compiled ahead of time, nvcc. CUDA 12: CUDA 13 dropped Volta.
# RUNTIME_IMAGE  of the same family, without the compilers.
# TORCH          what pip installs where the base has no PyTorch, such as torch==2.13.0; empty where it has.
# ARCHITECTURES  compute capabilities of the GPUs; empty for the CPU alone.
ARG BASE_IMAGE=pytorch/pytorch:2.10.0-cuda12.6-cudnn9-devel
ARG RUNTIME_IMAGE=pytorch/pytorch:2.10.0-cuda12.6-cudnn9-runtime

FROM ${BASE_IMAGE} AS build
ARG TORCH=""
ARG ARCHITECTURES="7.0;7.5;8.0;8.6;9.0+PTX"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/se3_fast
ENV PATH=/opt/se3_fast/bin:${PATH}
COPY requirements-dev.txt /source/
# Versions are those of requirements-dev.txt; PyTorch stays what the base or TORCH has, and with it what it asks for itself.
# hadolint ignore=DL3013
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv --system-site-packages /opt/se3_fast \
    && if [ -n "${TORCH}" ]; then python -m pip install --no-cache-dir "${TORCH}"; fi \
    && grep --invert-match --extended-regexp '^(torch|triton|cuda-bindings|nvidia-.*)==' /source/requirements-dev.txt \
        > /source/constraints.txt \
    && python -c "from importlib.metadata import version; print('torch==' + version('torch'))" >> /source/constraints.txt \
    && python -m pip install --no-cache-dir 'setuptools>=70.1' wheel
COPY . /source
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    if [ -n "${ARCHITECTURES}" ]; then export SE3_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST="${ARCHITECTURES}"; fi \
    && SE3_FAST_CPP=1 python -m pip install --no-cache-dir --no-build-isolation --constraint /source/constraints.txt \
        "/source${ARCHITECTURES:+[cuda]}"

FROM ${RUNTIME_IMAGE}
LABEL org.opencontainers.image.title="se3_fast" \
      org.opencontainers.image.description="Fast SE(3)-Transformers: equivariant graph attention for 3D points, in PyTorch" \
      org.opencontainers.image.licenses="MIT"
# Triton compiles small C stubs when a kernel is first launched.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 chemist
COPY --from=build /opt/se3_fast /opt/se3_fast
COPY scripts /opt/se3_fast/scripts
ENV VIRTUAL_ENV=/opt/se3_fast
ENV PATH=/opt/se3_fast/bin:/opt/se3_fast/scripts:${PATH}
USER 1001
WORKDIR /home/chemist
RUN python -m se3_fast.train --help > /dev/null
CMD ["python", "-m", "se3_fast.train", "--help"]
