"""Feature store to trained fusion models and numbers. Kept free of imports."""
