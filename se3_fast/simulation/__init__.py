"""Running force fields: single points for other programs, and the commands that simulate."""
