"""Parts of the models, named as in the papers."""
