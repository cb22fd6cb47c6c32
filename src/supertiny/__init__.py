"""supertiny: an expensive LLM pipeline in, a super-tiny model out."""

__version__ = "0.1.0"
