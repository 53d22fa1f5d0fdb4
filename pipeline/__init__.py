"""Media and transcripts to a feature store.

Kept free of imports so that `mer.pipeline.store` loads without torch.
"""
