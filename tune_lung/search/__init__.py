"""A search by command or from Python: its options, what they ask for, the steps from images to a report, and how it ends."""
