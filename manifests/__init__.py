"""Corpora as data, one TOML each; `mer.pipeline.datasets.corpora` reads them (docs/adding.md)."""
