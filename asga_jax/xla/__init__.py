"""The same numbers, faster: forms that a compiler or a device runs better."""
