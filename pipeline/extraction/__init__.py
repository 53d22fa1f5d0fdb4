"""Media and transcripts → store, once: `extract` (steps.py) takes one step after the other."""

from mer.pipeline.extraction.options import ExtractOptions
from mer.pipeline.extraction.outcome import ExtractReport, TooManyFailures
from mer.pipeline.extraction.request import Here, Scheduler, Share, Workers
from mer.pipeline.extraction.steps import extract, repair

__all__ = [
    "ExtractOptions",
    "ExtractReport",
    "Here",
    "Scheduler",
    "Share",
    "TooManyFailures",
    "Workers",
    "extract",
    "repair",
]
