"""The library: the only truth about base models, tasks, masks, adapters, runs and rounds.

Rows live in a database, everything large in a folder of blobs named by their digest. A blob is
durable before the row that names it is written, so that a process killed anywhere leaves rows whose
blobs are there, and at worst a blob that no row names.
"""

from fedsprig_server.library.blobs import BlobStore
from fedsprig_server.library.library import Library
from fedsprig_server.library.records import BaseRecord, Entry, Round, Run

__all__ = ["BaseRecord", "BlobStore", "Entry", "Library", "Round", "Run"]
