"""From a store to batches: which rows train, choose and report, and what a model is shown."""
