"""Where may be written, by whom, and how: complete folders, leases, output that a user names."""
