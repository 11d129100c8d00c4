"""What is refused or estimated before a run: settings, files, hub, sizes, memory."""
