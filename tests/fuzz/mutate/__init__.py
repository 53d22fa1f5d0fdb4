"""One file a format: what accidents and bad intentions do to a sound file of it.

Every function takes a generator of random numbers, and the same numbers make the same file.
"""
