"""Media files to what an encoder takes. `load` and `probe` read sound (audio.py)."""

from mer.pipeline.media.audio import Clip, ClipInfo, MediaError, load, probe

__all__ = ["Clip", "ClipInfo", "MediaError", "load", "probe"]
