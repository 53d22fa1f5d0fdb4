# The GPU batch stage. The torch wheels carry their CUDA libraries, so the host needs only an NVIDIA driver (R580 or newer
# for CUDA 13) and the NVIDIA container toolkit.
#
#   docker build -t mer .
#   docker run --rm --gpus all -v /data:/data -v mer-cache:/cache mer extract --dataset meld --root /data/MELD.Raw --out /data/feats.h5
#
# It runs as an ordinary user, 1000 unless the build says another (--build-arg UID=$(id -u)): /data must be writable for it.
# /cache keeps the encoders of the Hugging Face hub and what Triton and torch.compile have compiled from run to run.
#
# Not built yet: it was written on a machine without a Docker engine. Every step was run by hand on Debian 12 with Python 3.11.
FROM python:3.11-slim-bookworm
# Triton compiles the launcher of a kernel when it first runs one: a C compiler, the headers of libc, and Python's, which the
# image has; the last line stops the build where one is missing.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && echo '#include <Python.h>' | gcc -fsyntax-only -I "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" -x c -
WORKDIR /opt/mer
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md LICENSE __init__.py cli.py ./
COPY commands commands
COPY pipeline pipeline
COPY fusion fusion
COPY manifests manifests
RUN pip install --no-cache-dir --no-deps .
ARG UID=1000
RUN useradd --uid "$UID" --create-home mer \
    && install --directory --owner mer --mode 0755 /cache /cache/huggingface /cache/triton /cache/inductor /cache/matplotlib /data
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    MPLCONFIGDIR=/cache/matplotlib
VOLUME /cache
USER mer
WORKDIR /data
ENTRYPOINT ["mer"]
