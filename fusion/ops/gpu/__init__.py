"""The contrastive terms in Triton; imported only where kernels are launched or compiled."""
