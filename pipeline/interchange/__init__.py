"""Doors in: features made elsewhere, as a store. (The doors out are pipeline/store/export.py.) One
kind of file a module."""
