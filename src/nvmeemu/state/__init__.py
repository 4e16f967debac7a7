"""The saved state of a drive in a file: a database of SQLite. docs/state.md is its page for users."""
