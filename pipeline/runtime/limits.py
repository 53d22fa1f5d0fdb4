"""Bounds on what is read from a file that somebody else made: constants only, each with its unit
and its reason.

A file beyond a bound ends in one line that names the bound. The bounds lie far above what real data
hold, and low enough that a file made to exhaust a machine is refused within seconds and a few
gigabytes.
"""

from __future__ import annotations

# --- Stores, work folders, locks

HEADER_BYTES = 64 << 20  # of JSON in a head file or shard: header, failures, provenance
INDEX_BYTES = 2 << 30  # of one array of an index: ids, offsets, transcripts
ATTRIBUTE_BYTES = 64 << 10  # of one attribute of an HDF5 file
JSON_LEVELS = 64  # of lists and objects inside each other; mer writes at most seven
DIM = 1 << 24  # values per frame, and of the layer means of one utterance
PLAN_BYTES = 256 << 20  # of .work/plan.json
LOCK_BYTES = 1 << 20  # of .hold and .turn
ECHO_CHARACTERS = 200  # of a value that is repeated in a message

# --- What an error line or a warning shows

SHOWN_CHARACTERS = 80  # of one value; a longer one is cut, with an ellipsis
SHOWN_NAMES = 12  # of a list of names (columns, labels, files); the rest is counted
LINE_CHARACTERS = 1_000  # of a whole line on stderr; the middle of a longer one is left out

# --- Tables and manifests (`mer prepare`, manifest.parquet)

# columns of a table; wider ones are matrices of features, not tables of utterances
TABLE_COLUMNS = 10_000
TABLE_ROWS = 5_000_000  # utterances; the largest corpora of the field have a few hundred thousand
# of a csv, JSON or text file, and of the columns of a Parquet file as they are unpacked
TABLE_BYTES = 2**30
TABLE_VALUES = 100_000_000  # of one Parquet column, those within lists counted one by one
# of one line of JSON Lines, or of the first lines of a csv, where its header is
TABLE_LINE_CHARACTERS = 16 * 2**20
CELL_CHARACTERS = 1_000_000  # of one cell: an hour of speech has about 60,000
# of a whole number in a cell, 1,233 digits; Python itself spells no more than 4,300 digits
INTEGER_BITS = 4_096
# of the JSON in a manifest's metadata: its report names files and ids
MANIFEST_METADATA_BYTES = 256 * 2**20

# --- Imports (`mer import`) and exports

# utterances of one file; the largest corpora of the field have a few hundred thousand
IMPORT_ROWS = 5_000_000
# of the columns that are not features, unpacked: run-length and dictionary coding know no bound
IMPORT_TABLE_BYTES = 2 * 2**30
# of one modality of one utterance: 87 minutes at 50 Hz and 1,024 numbers
IMPORT_UTTERANCE_BYTES = 2**30
SUBSET_BYTES = 256 * 2**20  # of a file with one id a line
IMPORT_MEMBERS = 10_000  # arrays of one npz, columns of one Parquet file
# of an npz or of a Parquet column that are not held against the packed size
UNPACKED_FREE_BYTES = 256 * 2**20
UNPACKED_RATIO = 200  # beyond that: real features deflate by less than 50, padding included
PARQUET_BATCH_BYTES = 64 * 2**20  # of features unpacked at a time, by the file's own counts
PICKLE_OPCODES = 20_000_000  # of MOSEI's largest published pickle: under a million
PICKLE_DEPTH = 50  # containers inside each other; the published forms have four
PICKLE_NUMBER_DIGITS = 4_000  # of one number spelled in decimals
# bytes of all values, shared ones counted each time, to bytes of the file ...
PICKLE_SHARED_RATIO = 10
PICKLE_SHARED_FREE_BYTES = 256 * 2**20  # ... beyond this many

# --- Media

# Samples of one channel held in memory, before or after resampling: 1 GiB, 93 minutes at 48 kHz,
# 4.6 hours at 16 kHz or less.
MEDIA_SAMPLES = 2**28
# Full scale is 1: 32-bit integers saved as floats reach 2.1e9 and are let through; squares of much
# more overflow in encoders.
MEDIA_LEVEL = 2.0**31
MEDIA_RATES_HZ = (1_000, 768_000)  # a header outside this range is damaged or hostile
MEDIA_GAP_SECONDS = 24 * 3600.0  # more is a damaged time stamp
# of one picture, and of what it becomes with square pixels; 8K has 33 million
MEDIA_FRAME_PIXELS = 2**26
MEDIA_FRAMES = 2**20  # pictures of one clip: 73 hours at 4 a second
MEDIA_FPS = 1_000.0  # moments a second that can be asked for
# Likewise: a clip counts as lasting for all intervals of its pictures, the last one whole.
MEDIA_FPS_LEAST = 1 / 3600
MEDIA_RETRIES = 10_000  # times that FFmpeg may ask to be called again for the next packet
MEDIA_CHUNKS = 10_000  # chunks, boxes or tags looked at before a file is left to its decoder
# of a file of frames that are looked at; what is longer is decoded to learn its length
MEDIA_SCANNED_BYTES = 1 << 28

# --- Checkpoints of encoders

# of a configuration, vocabulary or tokenizer file; those of XLM-RoBERTa have 17 MB
CHECKPOINT_TEXT_BYTES = 256 << 20
DETECTOR_BYTES = 64 << 20  # of the file of a detector of faces; YuNet has less than a megabyte

# --- Run folders, presets and `--set`

CONFIG_BYTES = 1 << 16  # of a preset or config.toml; those of mer have a kB or two
CONFIG_LEVELS = 8  # tables within tables; mer has three
CONFIG_DOTS = 32  # in a line before its "=": tomllib's time grows with the square of their number
CONFIG_LIST_ITEMS = 1 << 10
LEDGER_BYTES = 1 << 26  # of a ledger of test openings: about 100,000 lines
RUN_JSON_BYTES = 1 << 26  # of a JSON file of a run folder; a run.json has a few kB
SPLIT_JSON_BYTES = 1 << 30  # of split.json, which names every utterance
# of a number in JSON: a 64-bit integer has 20, a float as Python writes it 24
JSON_NUMBER_DIGITS = 25
