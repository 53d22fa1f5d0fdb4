"""Features in other tools' formats, so that nobody is locked in: one format per module, its reading
and its writing side by side (`formats.py` lists them).

In: `read(path, options)` of a format gives a `Foreign`, which `importing.write_store` makes a store
of. Out: `export.export` gives a `Copy` of a store to `write(copy, out)` of a format.
"""
