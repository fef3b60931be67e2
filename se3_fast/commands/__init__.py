"""Options of the commands: what a command runs is imported when they are parsed, so that help and mistakes wait for nothing."""
