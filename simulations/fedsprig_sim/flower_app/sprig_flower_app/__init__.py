"""The Flower bundle: it only names the applications, which are installed with fedsprig."""
