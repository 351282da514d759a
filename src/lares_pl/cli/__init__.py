"""The `lares` command: parsing, help, completion, and how the stages follow one another."""
