"""The search command: its options, what they ask for, the steps from images to a report, and every way in which it ends."""
