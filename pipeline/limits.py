"""Bounds on what is read from a file that somebody else made: constants only, each with its unit and its reason.

A file beyond a bound ends in one line that names the bound. The bounds lie far above what real data hold, and low enough
that a file made to exhaust a machine is refused within seconds and a few gigabytes.
"""

from __future__ import annotations

# What an error line or a warning shows.
SHOWN_CHARACTERS = 80  # of one value; a longer one is cut, with an ellipsis
SHOWN_NAMES = 12  # of a list of names (columns, labels, files); the rest is counted
LINE_CHARACTERS = 1_000  # of a whole line on stderr; the middle of a longer one is left out

# Tables and manifests (`mer prepare table`, the corpora's own csv files, manifest.parquet).
TABLE_COLUMNS = 10_000  # columns of a table; wider ones are matrices of features, not tables of utterances
TABLE_LINE_BYTES = 64 * 2**20  # bytes of one line of JSON Lines, or of the header of a csv
CELL_CHARACTERS = 1_000_000  # of one cell: an hour of speech has about 60,000
TEXT_FILE_BYTES = 512 * 2**20  # of a csv, json or txt that is read as a whole
MANIFEST_METADATA_BYTES = 64 * 2**20  # of the JSON in a manifest's metadata, its report included
PATH_LEVELS = 64  # folders in one audio path; file systems allow about 2,000
PATH_BYTES = 4_096  # of one audio path, Linux' PATH_MAX
NAME_BYTES = 255  # of one part of a path, Linux' NAME_MAX

# Imports (`mer import`) and exports.
IMPORT_ROWS = 5_000_000  # utterances of one file; the largest corpora of the field have a few hundred thousand
IMPORT_TABLE_BYTES = 2 * 2**30  # of the columns that are not features, unpacked: run-length and dictionary coding know no bound
IMPORT_UTTERANCE_BYTES = 2**30  # of one modality of one utterance: 87 minutes at 50 Hz and 1,024 numbers
IMPORT_MEMBERS = 10_000  # arrays of one npz, columns of one Parquet file
HEADER_BYTES = 64 * 2**20  # of the JSON header in an exported file
UNPACKED_FREE_BYTES = 256 * 2**20  # of an npz or of a Parquet column that are not held against the packed size
UNPACKED_RATIO = 200  # beyond that: real features deflate by less than 50, padding included
PARQUET_BATCH_BYTES = 64 * 2**20  # of features unpacked at a time, by the file's own counts
PICKLE_OPCODES = 20_000_000  # of MOSEI's largest published pickle: under a million
PICKLE_DEPTH = 50  # containers inside each other; the published forms have four
PICKLE_NUMBER_DIGITS = 4_000  # of one number spelled in decimals
PICKLE_SHARED_RATIO = 10  # bytes of all values, shared ones counted each time, to bytes of the file ...
PICKLE_SHARED_FREE_BYTES = 256 * 2**20  # ... beyond this many
