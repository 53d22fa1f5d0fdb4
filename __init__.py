"""mer: multimodal emotion recognition on cached features.

Kept free of imports, so that `import mer` costs nothing: `mer.pipeline` makes feature stores,
`mer.fusion` trains on them, `mer.cli` is the command line.
"""
