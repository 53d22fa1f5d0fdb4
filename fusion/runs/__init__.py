"""Run folders: what is in them, how it is written and read, and every run as a row."""
