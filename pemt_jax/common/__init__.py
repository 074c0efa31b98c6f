"""What everything else stands on: errors, storage, hashes, weight files."""
