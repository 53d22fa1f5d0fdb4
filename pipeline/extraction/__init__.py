"""Manifest to store: encoders run once over every utterance."""
