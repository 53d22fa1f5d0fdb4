"""Doors in: features made elsewhere, as a store.

(The doors out are pipeline/interchange/export.py.) One kind of file a module.
"""
