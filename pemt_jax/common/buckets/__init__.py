"""Object storage: paths on it, folders that are replaced as one, Google's file system."""
