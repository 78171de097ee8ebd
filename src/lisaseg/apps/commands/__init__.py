"""The commands of `lisaseg`, one file a group. Each file has `register(app)`; nothing heavy is imported before a command runs."""
