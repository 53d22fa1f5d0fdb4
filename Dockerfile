# The GPU batch stage. The torch wheels carry their CUDA libraries, so the host needs only an NVIDIA driver (R580 or newer
# for CUDA 13) and the NVIDIA container toolkit.
#
#   docker build -t mer .
#   docker run --rm --gpus all -v /data:/data mer extract --dataset meld --root /data/MELD.Raw --out /data/feats.h5
#
# Not built yet: it was written on a machine without a Docker engine. Every step was run by hand on Debian 12 with Python 3.11.
FROM python:3.11-slim-bookworm
WORKDIR /opt/mer
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml README.md LICENSE __init__.py cli.py ./
COPY pipeline pipeline
COPY fusion fusion
COPY manifests manifests
RUN pip install --no-cache-dir --no-deps .
WORKDIR /data
ENTRYPOINT ["mer"]
