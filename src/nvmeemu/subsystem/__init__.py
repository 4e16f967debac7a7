"""What controllers share: namespaces, and what the drive remembers of its life."""
