"""What everything else is built on: errors, storage, hashes, weight files."""
