"""What answers for images: a run's trained networks, and how they are taken out of it."""
