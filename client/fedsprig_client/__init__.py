"""The device side: local data and store, local training and the Flower ClientApp."""
