"""How much mer takes from a file that somebody else may have made, in one place; docs/store.md has them as a table.

Each bound lies far above what mer itself writes, and has a test that hits it.
"""

from __future__ import annotations

# --- Stores, work folders, locks

HEADER_BYTES = 64 << 20  # of JSON in a head file or shard: header, failures, provenance
INDEX_BYTES = 2 << 30  # of one array of an index: ids, offsets, transcripts
ATTRIBUTE_BYTES = 64 << 10  # of one attribute of an HDF5 file
JSON_LEVELS = 64  # of lists and objects inside each other; mer writes at most seven
DIM = 1 << 24  # values a frame
PLAN_BYTES = 256 << 20  # of .work/plan.json
LOCK_BYTES = 1 << 20  # of .hold and .turn
ECHO_CHARACTERS = 200  # of a value that is repeated in a message
