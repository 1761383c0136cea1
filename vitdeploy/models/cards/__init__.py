"""Cards as data, one file a family; nothing here imports torch."""
