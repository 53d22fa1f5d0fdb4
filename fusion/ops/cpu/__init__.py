"""The contrastive terms in plain PyTorch: on CPUs, and wherever the kernels cannot run."""
