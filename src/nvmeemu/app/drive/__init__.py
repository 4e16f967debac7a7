"""A drive as its user describes it: in a drive file, or with options of the command line. docs/drive-file.md."""
