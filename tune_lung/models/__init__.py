"""The networks: the handcrafted CNN, torchvision's ResNets, what is frozen, and where weights come from."""
