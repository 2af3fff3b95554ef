"""What people, and other tools, see of a search while it runs."""
