"""How a store cuts content into chunks, and names them: its config says it, and each manifest."""

MIN_CHUNK, MAX_CHUNK, DEFAULT_CHUNK = 1 << 20, 16 << 20, 4 << 20
HASH = "blake3"


def is_chunk_size(chunk_size: int) -> bool:
    """Return whether a chunk size is a power of two from 1 to 16 MiB."""
    return MIN_CHUNK <= chunk_size <= MAX_CHUNK and not chunk_size & (chunk_size - 1)
